"""What a line of an input file must look like, and what is wrong with one that doesn't.

A good line is read by one decoder call that checks everything at C speed; there is one decoder for
lines with messages, and one for lines with a stored prompt. A line which both refuse is read again,
slowly, to name the first thing wrong with it.

JSON is strict: no NaN, no trailing comma, no unpaired surrogate (a lone `\\ud83d`, which no model
server could encode), no bytes that are not UTF-8, at most some hundred levels of nesting.
Of a repeated key the last one counts, as in most JSON libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import msgspec
from msgspec import Raw

from schemas.errors import ValidationCode
from streams.domain.prompts.request import (
    PromptUse,
    UseError,
    prompt_use,
)

#: Longest custom_id, in characters. It is repeated in the output, so it must have an end.
MAX_CUSTOM_ID_CHARS = 512
#: Longest model name, in characters. All names of a file travel in one record.
MAX_MODEL_CHARS = 256
#: What a line may have around its object.
BLANK = b" \t\r"
#: Values of the caller's in messages are cut to this many characters.
_SHOWN_CHARS = 80
#: Messages made elsewhere are cut to this many.
MAX_MESSAGE_CHARS = 300
#: Where a body's `prompt` may name a stored prompt.
_FORM_ENDPOINT = "/v1/responses"
_MODEL = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_MODEL_CHARS)]
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


class ParsedForm(Protocol):
    """The `prompt` of a /v1/responses body, which names a stored prompt."""

    id: str
    version: int | str | None
    variables: dict[str, Raw] | None


class PromptedBody(Protocol):
    """A body that names a stored prompt: by `slug`, or on /v1/responses also by `form`."""

    model: str | None
    stream: bool | None
    slug: str | None
    version: int | None
    variables: dict[str, Raw] | None
    form: ParsedForm | None


class PromptedLine(Protocol):
    """Such a line whose JSON, types, method and url are right."""

    custom_id: str
    body: PromptedBody


@lru_cache
def decoder(path: str) -> Callable[[bytes], ParsedLine]:
    """Reads a line of this endpoint, and raises for nearly everything that can be wrong with it.

    Also for a line that names a stored prompt. Left to the caller, who does them once a block or
    with a look-up: UTF-8 of what is not read, `stream`, a `needed` of null, the model, the
    repeated custom_id.
    """
    fields: list[Any] = [
        ("model", _MODEL),
        ("needed", Raw, msgspec.field(name=ENDPOINTS[path].needed)),
        ("stream", bool | None, None),
        ("slug", None, msgspec.field(name="prompt_slug", default=None)),
    ]
    if path == _FORM_ENDPOINT:
        fields.append(("form", None, msgspec.field(name="prompt", default=None)))
    return _decoder(path, msgspec.defstruct("Body", fields, gc=False))


@lru_cache
def prompted_decoder(path: str) -> Callable[[bytes], PromptedLine]:
    """The same for lines that name a stored prompt; raises for others.

    Left to the caller besides: the prompt, its variables, a slug beside a form.
    """
    fields: list[Any] = [
        ("model", _MODEL | None, None),
        ("slug", str | None, msgspec.field(name="prompt_slug", default=None)),
        ("variables", dict[str, Raw] | None, None),
        ("version", int | None, msgspec.field(name="prompt_version", default=None)),
        ("stream", bool | None, None),
        ("needed", None, msgspec.field(name=ENDPOINTS[path].needed, default=None)),
    ]
    others: dict[str, Any] = {}
    if path == _FORM_ENDPOINT:
        fields.append(("form", _Form | None, msgspec.field(name="prompt", default=None)))
    else:
        others["form"] = None
    return _decoder(path, msgspec.defstruct("PromptedBody", fields, namespace=others, gc=False))


def _decoder(path: str, body: type[msgspec.Struct]) -> Callable[[bytes], Any]:
    text = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_CUSTOM_ID_CHARS)]
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


class _Form(msgspec.Struct, gc=False):
    id: str
    version: int | str | None = None
    variables: dict[str, Raw] | None = None


def is_null(raw: Raw) -> bool:
    """Whether it is a plain null."""
    return raw == _NULL


def shown(value: str, chars: int = _SHOWN_CHARS) -> str:
    """A caller's value, cut for a message."""
    return value if len(value) <= chars else value[: chars - 1] + "…"


class Judged(NamedTuple):
    """A line in which nothing is wrong by itself; `use`: the stored prompt that it names."""

    custom_id: str
    model: str | None
    needed: Raw
    use: PromptUse | None


def judge(line: bytes, path: str) -> Judged:
    """Raises LineError with the first thing wrong with the line.

    Left to the caller: whether model and prompt exist, and the repeated custom_id.
    """
    fields = _object(line)
    for name in ("custom_id", "method", "url", "body"):
        if is_null(getattr(fields, name)):
            raise LineError(
                ValidationCode.MISSING_REQUIRED_PARAMETER,
                f"Missing required parameter: '{name}'.",
                name,
            )
    custom_id = _text(fields.custom_id, "custom_id")
    _judge_custom_id(custom_id)
    method = _text(fields.method, "method")
    if method != "POST":
        message = f"Invalid method '{shown(method)}': only 'POST' is supported."
        raise LineError(ValidationCode.INVALID_METHOD, message, "method")
    if _text(fields.url, "url") != path:
        message = "The URL provided for this request does not match the batch endpoint."
        raise LineError(ValidationCode.INVALID_URL, message, "url")
    return Judged(custom_id, *_judge_body(fields.body, ENDPOINTS[path]))


def model_not_found(model: str) -> LineError:
    """No upstream serves the model."""
    message = f"The provided model '{shown(model)}' is not supported by the Batch API."
    return LineError(ValidationCode.MODEL_NOT_FOUND, message, "body.model")


def model_without_price(model: str) -> LineError:
    """The price book has no price for the model, and nothing runs for free by accident."""
    message = f"The model '{shown(model)}' has no price on this server, so it can't be used yet."
    return LineError(ValidationCode.MODEL_NOT_FOUND, message, "body.model")


def model_required() -> LineError:
    """Neither the line nor its prompt names a model."""
    return _required("model")


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
    prompt_slug: Raw = _NULL
    prompt_version: Raw = _NULL
    variables: Raw = _NULL


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


def _judge_body(raw: Raw, endpoint: Endpoint) -> tuple[str | None, Raw, PromptUse | None]:
    try:
        body = msgspec.json.decode(raw, type=_BodyFields)
    except msgspec.ValidationError as error:
        message = "Invalid type for 'body': expected an object."
        raise LineError(ValidationCode.INVALID_REQUEST, message, "body") from error
    model = None if is_null(body.model) else _text(body.model, "body.model")
    if model is not None and len(model) > MAX_MODEL_CHARS:
        raise model_not_found(model)
    use = _prompt_use(body, endpoint)
    if model == "" or (model is None and use is None):
        raise model_required()
    needed: Raw = getattr(body, endpoint.needed)
    if use is None and is_null(needed):
        raise _required(endpoint.needed)
    # Anything but a plain false is refused, because some upstreams take "true" or 1 for true.
    if bytes(body.stream) not in (b"null", b"false"):
        message = f"{endpoint.name}: Streaming is not supported in the Batch API."
        raise LineError(ValidationCode.STREAMING_UNSUPPORTED, message, "body.stream")
    return model, needed, use


def _prompt_use(body: _BodyFields, endpoint: Endpoint) -> PromptUse | None:
    fields = {name: getattr(body, name) for name in body.__struct_fields__}
    try:
        return prompt_use(fields, endpoint.path)
    except UseError as error:
        # Both may hold the name of a variable, which has no end.
        message, param = shown(error.message, MAX_MESSAGE_CHARS), f"body.{shown(error.param)}"
        raise LineError(ValidationCode.INVALID_REQUEST, message, param) from error


def _required(field: str) -> LineError:
    message = f"{field.capitalize()} parameter is required."
    return LineError(ValidationCode.INVALID_REQUEST, message, f"body.{field}")
