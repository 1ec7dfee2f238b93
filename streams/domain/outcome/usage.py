"""Reads an upstream's answer: is it one JSON object, and how many tokens does it say it used.

An answer is inserted verbatim into a file of ours, so its syntax is checked here as strictly as
any reader of that file might: UTF-8, no raw control characters, no NaN, no lone surrogates.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import msgspec

from schemas.records import Usage
from streams.domain.not_json import NOT_JSON

#: No single line uses more tokens than this; a larger figure is an upstream's mistake.
MAX_TOKENS = 10_000_000
#: The upstream reported no usage.
MISSING = "missing"
#: A figure was negative, not a whole number, above MAX_TOKENS, or a part larger than its whole.
ABSURD = "absurd"

#: Endpoints whose answers have no output tokens.
_INPUT_ONLY = frozenset({"/v1/embeddings"})
_NO_USAGE = Usage()

_Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]


class _Details(msgspec.Struct):
    cached_tokens: _Tokens | None = None
    reasoning_tokens: _Tokens | None = None


class _Usage(msgspec.Struct):
    # Chat completions, completions and embeddings say prompt and completion; responses say
    # input and output.
    prompt_tokens: _Tokens | None = None
    completion_tokens: _Tokens | None = None
    input_tokens: _Tokens | None = None
    output_tokens: _Tokens | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Plain(msgspec.Struct):
    usage: _Usage | None = None


class _Odd(msgspec.Struct):
    usage: msgspec.Raw = msgspec.Raw(b"null")


_plain = msgspec.json.Decoder(_Plain)
_odd = msgspec.json.Decoder(_Odd)


class Reading(NamedTuple):
    """A readable answer: its bytes on one line, its usage, and why usage was corrected, if so."""

    body: bytes
    usage: Usage
    flag: str


def read_answer(body: bytes, endpoint: str) -> Reading | None:
    """What the answer says; None if it is not one JSON object in UTF-8."""
    try:
        usage, flag = _judge(_plain.decode(body).usage, endpoint)
    except msgspec.ValidationError:
        found = _read_odd(body, endpoint)
        if found is None:
            return None
        usage, flag = found
    except NOT_JSON:
        return None
    line = _one_line(body)
    return None if line is None else Reading(line, usage, flag)


def read_object(body: bytes) -> bytes | None:
    """The answer on one line; None if it is not one JSON object in UTF-8."""
    try:
        _odd.decode(body)
    except NOT_JSON:
        return None
    return _one_line(body)


def _one_line(body: bytes) -> bytes | None:
    """`body`, which is valid JSON but perhaps not UTF-8, without newlines."""
    body = body.strip()
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError:
            return None
    if b"\n" in body or b"\r" in body:
        return bytes(msgspec.json.format(body, indent=-1))
    return body


def _judge(found: _Usage | None, endpoint: str) -> tuple[Usage, str]:
    if found is None:
        return _NO_USAGE, MISSING
    into, out = found.prompt_tokens, found.completion_tokens
    into_details, out_details = found.prompt_tokens_details, found.completion_tokens_details
    if into is None:
        into, into_details = found.input_tokens, found.input_tokens_details
    if out is None:
        out, out_details = found.output_tokens, found.output_tokens_details
    whole = into is not None and (out is not None or endpoint in _INPUT_ONLY)
    return _bounded(
        into or 0,
        (into_details and into_details.cached_tokens) or 0,
        out or 0,
        (out_details and out_details.reasoning_tokens) or 0,
        "" if whole else MISSING,
    )


def _bounded(into: int, cached: int, out: int, reasoning: int, flag: str) -> tuple[Usage, str]:
    if cached > into or reasoning > out:
        cached, reasoning, flag = min(cached, into), min(reasoning, out), ABSURD
    usage = Usage(
        input_tokens=into, cached_tokens=cached, output_tokens=out, reasoning_tokens=reasoning
    )
    return usage, flag


def _read_odd(body: bytes, endpoint: str) -> tuple[Usage, str] | None:
    """Usage that is not of the expected shape; None if the answer is no JSON object at all."""
    try:
        raw = _odd.decode(body).usage
    except NOT_JSON:
        return None
    try:
        found = msgspec.json.decode(raw)
    except NOT_JSON:
        # Its syntax is good, so this is a number beyond any machine's range.
        return _NO_USAGE, ABSURD
    if not isinstance(found, dict):
        return _NO_USAGE, ABSURD
    usage, _flag = _judge(_repaired(found), endpoint)
    return usage, ABSURD


def _repaired(found: dict[str, Any]) -> _Usage:
    fixed = _Usage()
    for name in ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"):
        if name in found:
            setattr(fixed, name, _capped(found[name]))
        details = found.get(f"{name}_details")
        if isinstance(details, dict):
            parts = {k: _capped(details[k]) for k in _Details.__struct_fields__ if k in details}
            setattr(fixed, f"{name}_details", _Details(**parts))
    return fixed


def _capped(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    return int(min(max(value, 0), MAX_TOKENS))
