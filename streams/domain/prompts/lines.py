"""Makes the lines of a batch file from rows of variables, each line naming one stored prompt.

    {"text": "First …"}  ->  {"custom_id": "row-000001", "method": "POST",
                              "url": "/v1/chat/completions",
                              "body": {"prompt_slug": "summarize",
                                       "variables": {"text": "First …"}}}

One generator for the command line, the HTTP route and whoever imports it. It holds one row at a
time, and 100 bytes or so a row to find a repeated custom_id.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Raw

from streams.domain.intake.lines import MAX_CUSTOM_ID_CHARS
from streams.domain.prompts.request import PROMPT_ENDPOINTS

#: Where lines go unless the caller says otherwise.
DEFAULT_ENDPOINT = next(iter(PROMPT_ENDPOINTS))
#: Deepest nesting of a value that is not Raw; JSON readers go deeper, but not all equally deep.
MAX_DEPTH = 100
#: Whole numbers in an id column become ids up to this many digits.
_MAX_ID_DIGITS = 40
#: Python refuses to write whole numbers of more than 4300 digits.
_MAX_BITS = 14_280
#: Without one of these in it, a value has no number that is infinite, or too long.
_RISKY = re.compile(rb"[0-9][eE]|[0-9]{300}")
#: Names are cut to this many characters in messages.
_SHOWN_CHARS = 64
#: The last is for numbers of too many digits.
_NOT_JSON = (msgspec.DecodeError, RecursionError, ValueError)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRef:
    """What the lines name. version None: the one published when the batch is validated; model
    None: that of the prompt."""

    slug: str
    version: int | None = None
    model: str | None = None
    endpoint: str = DEFAULT_ENDPOINT


class RowError(ValueError):
    """A row can't become a line. Never to be logged: `message` and `name` hold the caller's words.

    row: its number, from 1. name: the variable or id column, where it is about one.
    """

    def __init__(self, row: int, message: str, name: str | None = None) -> None:
        super().__init__(f"row {row}")
        self.row = row
        self.message = message
        self.name = name


def batch_lines(
    prompt: PromptRef,
    rows: Iterable[Mapping[str, Any]],
    id_column: str | None = None,
    *,
    keep_id: bool = False,
) -> Iterator[bytes]:
    """The lines, each with its newline, in the order of the rows. Raises RowError.

    A row's values are what JSON has (None, bool, int, finite float, str, list, dict), or
    msgspec.Raw as a decoder made it, which is taken over as it is written. Without id_column the
    custom_ids are row-000001, row-000002 and so on. With it they are that column's texts or whole
    numbers, and the column is no variable, unless keep_id.
    """
    if keep_id and id_column is None:
        raise ValueError("keep_id needs an id_column.")
    before = b',"method":"POST","url":' + _encode(prompt.endpoint) + b',"body":{'
    if prompt.model is not None:
        before += b'"model":' + _encode(prompt.model) + b","
    before += b'"prompt_slug":' + _encode(prompt.slug)
    if prompt.version is not None:
        before += b',"prompt_version":' + _encode(prompt.version)
    before += b',"variables":'
    #: 64-bit hash of each custom_id -> row; a false alarm in 50,000 ids is one in 10^10.
    seen: dict[int, int] = {}
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise RowError(number, "is not an object of variables")
        custom_id = f"row-{number:06d}"
        variables = dict(row)
        if id_column is not None:
            custom_id = _custom_id(row, number, id_column)
            first = seen.setdefault(hash(custom_id), number)
            if first != number:
                message = f"has the same '{_shown(id_column)}' as row {first}"
                raise RowError(number, message, id_column)
            if not keep_id:
                del variables[id_column]
        for name, value in variables.items():
            variables[name] = _checked(value, name, number)
        yield b"".join((b'{"custom_id":', _encode(custom_id), before, _encode(variables), b"}}\n"))


def _encode(value: str | int | dict[str, Any]) -> bytes:
    return msgspec.json.encode(value)


def _custom_id(row: Mapping[str, Any], number: int, column: str) -> str:
    """The row's id, which is not empty and not too long."""
    value = row.get(column)
    if isinstance(value, Raw):
        value = _decoded(value, column, number)
    shown = _shown(column)
    if value is None or value == "":
        raise RowError(number, f"has no '{shown}', the id column", column)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**_MAX_ID_DIGITS:
        return str(value)
    if not isinstance(value, str):
        raise RowError(number, f"has a '{shown}' that is neither a text nor a whole number", column)
    if len(value) > MAX_CUSTOM_ID_CHARS:
        message = f"has a '{shown}' of more than {MAX_CUSTOM_ID_CHARS} characters"
        raise RowError(number, message, column)
    return _unicode(value, column, number)


def _checked(value: object, name: object, number: int) -> object:
    """The value of one variable, found good; one line of it."""
    if not isinstance(name, str):
        raise RowError(number, "has a name that is not a text")
    _unicode(name, name, number)
    if type(value) is str:
        return _unicode(value, name, number)
    if isinstance(value, Raw):
        return _raw(value, name, number)
    _check_json(value, name, number, MAX_DEPTH)
    return value


def _unicode(text: str, name: str, number: int) -> str:
    """The text, if UTF-8 can write it: half of a surrogate pair it can't."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"has a '{_shown(name)}' that is not valid Unicode"
        raise RowError(number, message, name) from error
    return text


def _raw(raw: Raw, name: str, number: int) -> Raw:
    """JSON as it was written, without line breaks between its values."""
    data = bytes(raw)
    if data[:1] != b'"' and _RISKY.search(data):
        # Who cut it out has judged it, but for the size of numbers.
        _decoded(raw, name, number)
    if b"\n" in data or b"\r" in data:
        return Raw(msgspec.json.format(data, indent=-1))
    return raw


def _decoded(raw: Raw, name: str, number: int) -> Any:
    try:
        return msgspec.json.decode(raw)
    except _NOT_JSON as error:
        message = f"has a '{_shown(name)}' that JSON can't hold"
        raise RowError(number, message, name) from error


def _check_json(value: object, name: str, number: int, depth: int) -> None:
    """Refuses what JSON has no word for."""
    if value is None or (isinstance(value, int) and value.bit_length() <= _MAX_BITS):
        return
    shown = _shown(name)
    if isinstance(value, int):
        raise RowError(number, f"has a '{shown}' with a number that is too long", name)
    if not depth:
        raise RowError(number, f"has a '{shown}' nested more than {MAX_DEPTH} deep", name)
    match value:
        case str():
            _unicode(value, name, number)
        case float():
            if not math.isfinite(value):
                message = f"has a '{shown}' that is no finite number, which JSON can't hold"
                raise RowError(number, message, name)
        case list() | tuple():
            for item in value:
                _check_json(item, name, number, depth - 1)
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    raise RowError(number, f"has a '{shown}' with a name that is no text", name)
                _unicode(key, name, number)
                _check_json(item, name, number, depth - 1)
        case _:
            kind = type(value).__name__
            raise RowError(number, f"has a '{shown}' of type {kind}, which JSON lacks", name)


def _shown(name: str) -> str:
    """What of a caller's name may stand in a message."""
    cut = name if len(name) <= _SHOWN_CHARS else f"{name[: _SHOWN_CHARS - 1]}…"
    return cut.encode("utf-8", "replace").decode()
