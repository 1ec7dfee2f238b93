"""What a request's body says about a stored prompt, in either form:

    {"prompt_slug": "summarize", "prompt_version": 2, "variables": {"text": …}, …}
    {"prompt": {"id": "summarize", "version": "2", "variables": {…}}, …}     /v1/responses only

Batch lines and real-time requests are read by the same function.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
from msgspec import Raw

#: Endpoints that take stored prompts, and the field that a rendered prompt fills.
PROMPT_ENDPOINTS: dict[str, str] = {
    "/v1/chat/completions": "messages",
    "/v1/responses": "input",
}
#: Fields that are ours and never reach the upstream. `prompt` is one on /v1/responses only.
SLUG_FIELDS = ("prompt_slug", "prompt_version", "variables")
#: The highest version number that is looked for.
MAX_VERSION = 1_000_000_000

_RESPONSES = "/v1/responses"
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_DIGITS = re.compile(r"[1-9][0-9]{0,9}", re.ASCII)
_NULL = Raw(b"null")
_variables = msgspec.json.Decoder(dict[str, Raw])


class ParamNames(NamedTuple):
    """The names of the three fields, in the form that the caller used."""

    slug: str
    version: str
    variables: str


SLUG_FORM = ParamNames("prompt_slug", "prompt_version", "variables")
PROMPT_FORM = ParamNames("prompt.id", "prompt.version", "prompt.variables")


class PromptUse(NamedTuple):
    """A prompt by its slug; version None: the published one; variables by name, as JSON."""

    slug: str
    version: int | None
    variables: dict[str, Raw]
    names: ParamNames = SLUG_FORM


class UseError(Exception):
    """What is wrong with the fields; `param` is a path within the body. Never to be logged."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(param)
        self.message = message
        self.param = param


def is_slug(text: str) -> bool:
    """Whether a prompt may be called that."""
    return _SLUG.fullmatch(text) is not None


def prompt_use(fields: Mapping[str, Raw], endpoint: str) -> PromptUse | None:
    """The prompt that a body names; None if it names none. Raises UseError."""
    slug = fields.get("prompt_slug", _NULL)
    form = fields.get("prompt", _NULL) if endpoint == _RESPONSES else _NULL
    if slug == _NULL and form == _NULL:
        return None
    needed = PROMPT_ENDPOINTS.get(endpoint)
    if needed is None:
        raise UseError("Stored prompts are not available on this endpoint.", "prompt_slug")
    if fields.get(needed, _NULL) != _NULL:
        message = f"Give either '{needed}' or a stored prompt, not both."
        raise UseError(message, needed)
    if form == _NULL:
        return PromptUse(
            _slug(slug, "prompt_slug"),
            _version(fields.get("prompt_version", _NULL), "prompt_version"),
            _given(fields.get("variables", _NULL), "variables"),
        )
    if slug != _NULL:
        raise UseError("Give either 'prompt_slug' or 'prompt', not both.", "prompt_slug")
    return _from_form(form)


def _from_form(form: Raw) -> PromptUse:
    try:
        fields = _variables.decode(form)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UseError("Invalid type for 'prompt': expected an object.", "prompt") from error
    names = PROMPT_FORM
    given = _given(fields.get("variables", _NULL), names.variables)
    return PromptUse(
        _slug(fields.get("id", _NULL), names.slug),
        _version(fields.get("version", _NULL), names.version, text_too=True),
        {name: _input_text(raw, f"{names.variables}.{name}") for name, raw in given.items()},
        names,
    )


def _slug(raw: Raw, param: str) -> str:
    try:
        slug = msgspec.json.decode(raw, type=str)
    except msgspec.DecodeError as error:
        raise UseError(f"Invalid type for '{param}': expected a string.", param) from error
    if not is_slug(slug):
        message = (
            f"Invalid '{param}': expected 1 to 128 letters, digits, dots, dashes and "
            "underscores, beginning with a letter or digit."
        )
        raise UseError(message, param)
    return slug


def _version(raw: Raw, param: str, *, text_too: bool = False) -> int | None:
    if raw == _NULL:
        return None
    digits = bytes(raw)
    if text_too and digits[:1] == b'"':
        digits = msgspec.json.decode(raw, type=str).encode()
    text = digits.decode("utf-8", "replace")
    if _DIGITS.fullmatch(text) is None or int(text) > MAX_VERSION:
        raise UseError(f"Invalid '{param}': expected an integer from 1 up.", param)
    return int(text)


def _given(raw: Raw, param: str) -> dict[str, Raw]:
    if raw == _NULL:
        return {}
    try:
        return _variables.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UseError(f"Invalid type for '{param}': expected an object.", param) from error


class _InputText(msgspec.Struct, tag_field="type", tag="input_text"):
    text: str


class _Typed(msgspec.Struct):
    type: str = ""


def _input_text(raw: Raw, param: str) -> Raw:
    """OpenAI's typed form of a text, as plain text; other values as they are."""
    if bytes(raw)[:1] != b"{":
        return raw
    try:
        kind = msgspec.json.decode(raw, type=_Typed).type
        if kind == "input_text":
            return Raw(msgspec.json.encode(msgspec.json.decode(raw, type=_InputText).text))
    except (msgspec.DecodeError, RecursionError):
        return raw
    if kind in ("input_image", "input_file"):
        message = f"Invalid '{param}': images and files can't be variables here, only text."
        raise UseError(message, param)
    return raw
