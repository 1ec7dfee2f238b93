"""What a line of an input file must look like, and what is wrong with one that doesn't.

A good line is read by one decoder call that checks everything at C speed. A line which that call
refuses is read again, slowly, to name the first thing wrong with it.

JSON is strict: no NaN, no trailing comma, no unpaired surrogate (a lone `\\ud83d`, which no model
server could encode), no bytes that are not UTF-8, at most some hundred levels of nesting.
Of a repeated key the last one counts, as in most JSON libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Raw

from schemas.errors import ValidationCode

#: Longest custom_id, in characters. It is repeated in the output, so it must have an end.
MAX_CUSTOM_ID_CHARS = 512
#: Longest model name, in characters. All names of a file travel in one record.
MAX_MODEL_CHARS = 256
#: What a line may have around its object.
BLANK = b" \t\r"
#: Values of the caller's in messages are cut to this many characters.
_SHOWN_CHARS = 80
#: An input list with more commas is estimated, because reading it costs 60 bytes an item.
_MAX_COMMAS = 200_000
_NULL = Raw(b"null")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What is special about the lines of one endpoint: its name, the field that holds the input."""

    path: str
    name: str
    needed: str


ENDPOINTS: dict[str, Endpoint] = {
    e.path: e
    for e in (
        Endpoint("/v1/chat/completions", "Chat Completions", "messages"),
        Endpoint("/v1/embeddings", "Embeddings", "input"),
        Endpoint("/v1/completions", "Completions", "prompt"),
        Endpoint("/v1/responses", "Responses", "input"),
    )
}


class LineError(Exception):
    """This line is wrong; carries its entry in errors.data[], never to be logged."""

    def __init__(self, code: ValidationCode, message: str, param: str | None = None) -> None:
        super().__init__(code.value)
        self.code = code
        self.message = message
        self.param = param


class ParsedBody(Protocol):
    """The parts of a body that intake looks at; `needed` is messages, input or prompt."""

    model: str
    needed: Raw
    stream: bool | None


class ParsedLine(Protocol):
    """A line whose JSON, types, method and url are right."""

    custom_id: str
    body: ParsedBody


@lru_cache
def decoder(path: str) -> Callable[[bytes], ParsedLine]:
    """Reads a line of this endpoint, and raises for nearly everything that can be wrong with it.

    Left to the caller, who does them once a block or with a look-up: UTF-8 of what is not read,
    `stream`, a `needed` of null, the model, the repeated custom_id.
    """
    text = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_CUSTOM_ID_CHARS)]
    model = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_MODEL_CHARS)]
    needed = msgspec.field(name=ENDPOINTS[path].needed)
    body = msgspec.defstruct(
        "Body",
        [("model", model), ("needed", Raw, needed), ("stream", bool | None, None)],
        gc=False,
    )
    line = msgspec.defstruct(
        "Line",
        [
            ("custom_id", text),
            ("method", Literal["POST"]),
            ("url", Literal[path]),
            ("body", body),
        ],
        gc=False,
    )
    decode: Callable[[bytes], Any] = msgspec.json.Decoder(line).decode
    return decode


def is_null(raw: Raw) -> bool:
    """Whether it is a plain null."""
    return raw == _NULL


def shown(value: str) -> str:
    """A caller's value, cut for a message."""
    return value if len(value) <= _SHOWN_CHARS else value[: _SHOWN_CHARS - 1] + "…"


def judge(line: bytes, path: str) -> None:
    """Raises LineError with the first thing wrong with the line; a good one passes."""
    fields = _object(line)
    for name in ("custom_id", "method", "url", "body"):
        if is_null(getattr(fields, name)):
            raise LineError(
                ValidationCode.MISSING_REQUIRED_PARAMETER,
                f"Missing required parameter: '{name}'.",
                name,
            )
    _judge_custom_id(_text(fields.custom_id, "custom_id"))
    method = _text(fields.method, "method")
    if method != "POST":
        message = f"Invalid method '{shown(method)}': only 'POST' is supported."
        raise LineError(ValidationCode.INVALID_METHOD, message, "method")
    if _text(fields.url, "url") != path:
        message = "The URL provided for this request does not match the batch endpoint."
        raise LineError(ValidationCode.INVALID_URL, message, "url")
    _judge_body(fields.body, ENDPOINTS[path])


def model_not_found(model: str) -> LineError:
    """No upstream serves the model."""
    message = f"The provided model '{shown(model)}' is not supported by the Batch API."
    return LineError(ValidationCode.MODEL_NOT_FOUND, message, "body.model")


def unparseable() -> LineError:
    """The line is not JSON."""
    message = "This line is not parseable as valid JSON."
    return LineError(ValidationCode.INVALID_JSON_LINE, message)


def count_inputs(needed: Raw) -> int:
    """How many texts (or token lists) an embeddings request wants embedded."""
    data = bytes(needed)
    inner = data[1:].lstrip()
    if data[:1] != b"[" or inner[:1].isdigit():
        return 1
    if data.count(b",") > _MAX_COMMAS:
        return data.count(b'",') + data.count(b"],") + 1
    return len(msgspec.json.decode(data, type=list[Raw]))


class _Fields(msgspec.Struct):
    custom_id: Raw = _NULL
    method: Raw = _NULL
    url: Raw = _NULL
    body: Raw = _NULL


class _BodyFields(msgspec.Struct):
    model: Raw = _NULL
    messages: Raw = _NULL
    input: Raw = _NULL
    prompt: Raw = _NULL
    stream: Raw = _NULL


def _object(line: bytes) -> _Fields:
    try:
        line.decode()
        return msgspec.json.decode(line, type=_Fields)
    except msgspec.ValidationError as error:
        message = "This line is valid JSON, but not a JSON object."
        raise LineError(ValidationCode.INVALID_JSON_LINE, message) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise unparseable() from error


def _text(raw: Raw, param: str) -> str:
    try:
        return msgspec.json.decode(raw, type=str)
    except msgspec.ValidationError as error:
        message = f"Invalid type for '{param}': expected a string."
        raise LineError(ValidationCode.INVALID_REQUEST, message, param) from error


def _judge_custom_id(custom_id: str) -> None:
    if not 1 <= len(custom_id) <= MAX_CUSTOM_ID_CHARS:
        message = f"custom_id must have 1 to {MAX_CUSTOM_ID_CHARS} characters."
        raise LineError(ValidationCode.INVALID_REQUEST, message, "custom_id")


def _judge_body(raw: Raw, endpoint: Endpoint) -> None:
    try:
        body = msgspec.json.decode(raw, type=_BodyFields)
    except msgspec.ValidationError as error:
        message = "Invalid type for 'body': expected an object."
        raise LineError(ValidationCode.INVALID_REQUEST, message, "body") from error
    if is_null(body.model) or not (name := _text(body.model, "body.model")):
        raise _required("model")
    if len(name) > MAX_MODEL_CHARS:
        raise model_not_found(name)
    if is_null(getattr(body, endpoint.needed)):
        raise _required(endpoint.needed)
    # Anything but a plain false is refused, because some upstreams take "true" or 1 for true.
    if bytes(body.stream) not in (b"null", b"false"):
        message = f"{endpoint.name}: Streaming is not supported in the Batch API."
        raise LineError(ValidationCode.STREAMING_UNSUPPORTED, message, "body.stream")


def _required(field: str) -> LineError:
    message = f"{field.capitalize()} parameter is required."
    return LineError(ValidationCode.INVALID_REQUEST, message, f"body.{field}")
