"""A stored prompt's version, compiled: fills its texts from variables and builds request bodies.

    compile_prompt(messages, model_config)  ->  Prompt
    Prompt.body(endpoint, line's fields, variables)  ->  {model_config ← fields, messages | input}

Texts of plain templates are never decoded: a variable that is a string goes in between the
quotes as it stands in the caller's JSON. Batch lines, previews and real-time requests all end up
here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Raw

from streams.domain.prompts.request import PROMPT_ENDPOINTS, SLUG_FIELDS
from streams.domain.prompts.template import (
    MAX_RENDERED_BYTES,
    MAX_SOURCE_BYTES,
    RenderFailed,
    RenderTooLarge,
    Template,
    TemplateError,
    Variable,
    parse_template,
    text_of,
)

#: Messages of one version, and parts of one message.
MAX_MESSAGES = 1000
MAX_PARTS = 1000
MAX_MODEL_CHARS = 256
#: Different texts of one version that need the sandbox: all of them must stay compiled there.
MAX_SANDBOXED = 64
#: Fields that a version can't preset: they are the prompt's own, or the batch's business.
_NOT_IN_CONFIG = ("messages", "input", "prompt", "stream", "stream_options", *SLUG_FIELDS)
#: Longest integer that goes in as it stands; Python refuses to write longer ones, too.
_MAX_DIGITS = 4300
_INTEGER = re.compile(rb"-?[1-9][0-9]*|0", re.ASCII)
_NULL = Raw(b"null")
_RESPONSES = "/v1/responses"
#: Text parts, and what each endpoint calls them; on /v1/responses what a model said is output.
_TEXT_PARTS = ("text", "input_text", "output_text")
_fields = msgspec.json.Decoder(dict[str, Raw])
_list = msgspec.json.Decoder(list[Raw])
_encode = msgspec.json.encode


class PromptError(ValueError):
    """The version can't be used; `param` is a path such as `messages[0].content`."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(param)
        self.message = message
        self.param = param


class VariableRefusal(NamedTuple):
    """A variable that keeps the prompt from being rendered."""

    name: str
    why: Literal["missing", "null"]


class _Rendered(NamedTuple):
    """A text that the sandbox renders; its place among them."""

    number: int


_Part = bytes | Variable | _Rendered


class Prompt:
    """One version, ready to render. Made by compile_prompt().

    variables: all that its texts read; required: those that must be given; not_null: those that
    must not be null. model: that of its model_config. sandboxed: the texts that only the sandbox
    can render, in order. size_bytes: of messages and model_config.
    """

    def __init__(
        self, messages: list[dict[str, Raw]], config: dict[str, Raw], size_bytes: int
    ) -> None:
        self._messages = messages
        self._config = config
        self._templates = _Templates()
        self.size_bytes = size_bytes
        self._parts = {path: self._compiled(path) for path in PROMPT_ENDPOINTS}
        texts = self._templates
        self.sandboxed: tuple[str, ...] = tuple(texts.sandboxed)
        self.variables = frozenset[str]().union(*(t.variables for t in texts.all()))
        self.required = frozenset[str]().union(*(t.required for t in texts.all()))
        self.not_null = frozenset[str]().union(*(t.not_null for t in texts.all()))
        model = config.get("model", _NULL)
        self.model: str | None = None if model == _NULL else msgspec.json.decode(model, type=str)

    def refusal(self, variables: Mapping[str, Raw]) -> VariableRefusal | None:
        """The first variable, by name, that is missing or null and must not be."""
        if not self.required <= variables.keys():
            return VariableRefusal(min(self.required - variables.keys()), "missing")
        nulls = [name for name in self.not_null if variables.get(name) == _NULL]
        return VariableRefusal(min(nulls), "null") if nulls else None

    def body(
        self,
        endpoint: str,
        fields: Mapping[str, Raw],
        variables: Mapping[str, Raw],
        rendered: Sequence[bytes] = (),
    ) -> bytes:
        """The body of the request, as JSON.

        fields: the line's own, which override model_config; those that name the prompt are left
        out. rendered: the texts of `sandboxed`, as JSON strings. Raises RenderFailed,
        RenderTooLarge.
        """
        needed = PROMPT_ENDPOINTS[endpoint]
        out = {**self._config, **fields}
        if self.model is not None and out["model"] == _NULL:
            out["model"] = self._config["model"]
        for name in SLUG_FIELDS:
            out.pop(name, None)
        if endpoint == _RESPONSES:
            out.pop("prompt", None)
        out[needed] = Raw(self.messages(endpoint, variables, rendered))
        return _encode(out)

    def messages(
        self, endpoint: str, variables: Mapping[str, Raw], rendered: Sequence[bytes] = ()
    ) -> bytes:
        """The messages (or input items) alone, as a JSON array."""
        texts: dict[str, bytes] = {}
        pieces: list[bytes] = []
        for part in self._parts[endpoint]:
            if isinstance(part, bytes):
                pieces.append(part)
            elif isinstance(part, Variable):
                text = texts.get(part.name)
                if text is None:
                    text = texts[part.name] = _spliced(variables, part.name)
                pieces.append(text)
            else:
                pieces.append(rendered[part.number][1:-1])
        if sum(map(len, pieces)) > MAX_RENDERED_BYTES:
            raise RenderTooLarge
        return b"".join(pieces)

    def _compiled(self, endpoint: str) -> tuple[_Part, ...]:
        pieces: list[_Part] = [b"["]
        for number, message in enumerate(self._messages):
            pieces.append(b"," if number else b"")
            pieces += self._message(message, f"messages[{number}]", endpoint)
        pieces.append(b"]")
        return tuple(_merged(pieces))

    def _message(self, message: dict[str, Raw], where: str, endpoint: str) -> Iterator[_Part]:
        separator = b"{"
        for name, raw in message.items():
            yield separator + _encode(name) + b":"
            separator = b","
            if name != "content":
                yield bytes(raw)
            elif bytes(raw)[:1] == b"[":
                yield from self._content(raw, f"{where}.content", endpoint, message)
            elif raw == _NULL:
                yield b"null"
            else:
                yield from self._templates.text(raw, f"{where}.content")
        yield b"}"

    def _content(
        self, raw: Raw, where: str, endpoint: str, message: dict[str, Raw]
    ) -> Iterator[_Part]:
        yield b"["
        for number, part in enumerate(_list.decode(raw)):
            at = f"{where}[{number}]"
            fields = _fields.decode(part)
            yield b"," if number else b""
            kind = _text_kind(fields)
            if kind is None:
                yield bytes(part)
                continue
            fields["type"] = Raw(_encode(_part_type(kind, endpoint, message)))
            separator = b"{"
            for name, value in fields.items():
                yield separator + _encode(name) + b":"
                separator = b","
                if name == "text":
                    yield from self._templates.text(value, f"{at}.text")
                else:
                    yield bytes(value)
            yield b"}"
        yield b"]"


class _Templates:
    """The templates of one version, each parsed once."""

    def __init__(self) -> None:
        self._parsed: dict[str, Template] = {}
        self._numbers: dict[str, int] = {}
        self.sandboxed: list[str] = []

    def all(self) -> list[Template]:
        return list(self._parsed.values())

    def text(self, raw: Raw, where: str) -> Iterator[_Part]:
        """The parts of a JSON string whose text is this template."""
        source = msgspec.json.decode(raw, type=str)
        template = self._parsed.get(source)
        if template is None:
            template = self._parsed[source] = _parsed(source, where)
        yield b'"'
        if template.parts is None:
            number = self._numbers.get(source)
            if number is None:
                number = self._numbers[source] = len(self.sandboxed)
                if number >= MAX_SANDBOXED:
                    message = (
                        f"A version may have {MAX_SANDBOXED} different texts with more than "
                        "plain placeholders."
                    )
                    raise PromptError(message, where)
                self.sandboxed.append(template.source)
            yield _Rendered(number)
        else:
            for part in template.parts:
                yield part if isinstance(part, Variable) else _encode(part)[1:-1]
        yield b'"'


def compile_prompt(messages: bytes, model_config: bytes) -> Prompt:
    """The version with these messages (a JSON array) and this model_config (a JSON object).

    Raises PromptError, whose message is for the version's author.
    """
    size = len(messages) + len(model_config)
    if size > MAX_SOURCE_BYTES:
        message = f"A prompt's version may have at most {MAX_SOURCE_BYTES} bytes, but has {size}."
        raise PromptError(message, "messages")
    for raw, where in ((messages, "messages"), (model_config, "model_config")):
        _decoded(raw, Any, "JSON in UTF-8", where)
    return Prompt(_messages(messages), _config(model_config), size)


def _messages(raw: bytes) -> list[dict[str, Raw]]:
    messages = _array(raw, "messages")
    if not 1 <= len(messages) <= MAX_MESSAGES:
        message = f"Invalid 'messages': expected 1 to {MAX_MESSAGES} messages."
        raise PromptError(message, "messages")
    return [_checked(item, f"messages[{n}]") for n, item in enumerate(messages)]


def _checked(raw: Raw, where: str) -> dict[str, Raw]:
    message = _object(raw, where)
    _text(message.get("role", _NULL), f"{where}.role")
    content = message.get("content", _NULL)
    kind = bytes(content)[:1]
    if kind == b"[":
        parts = _array(content, f"{where}.content")
        if len(parts) > MAX_PARTS:
            text = f"Invalid '{where}.content': expected at most {MAX_PARTS} parts."
            raise PromptError(text, f"{where}.content")
        for number, part in enumerate(parts):
            _checked_part(part, f"{where}.content[{number}]")
    elif kind == b'"':
        _text(content, f"{where}.content")
    elif content != _NULL or not ({"tool_calls", "function_call"} & message.keys()):
        text = f"Invalid type for '{where}.content': expected a string or an array of parts."
        raise PromptError(text, f"{where}.content")
    return message


def _checked_part(raw: Raw, where: str) -> None:
    fields = _object(raw, where)
    if _text(fields.get("type", _NULL), f"{where}.type") in _TEXT_PARTS:
        _text(fields.get("text", _NULL), f"{where}.text")


def _config(raw: bytes) -> dict[str, Raw]:
    config = _object(raw, "model_config")
    for name in _NOT_IN_CONFIG:
        if name in config:
            message = f"'{name}' can't be preset in 'model_config'."
            raise PromptError(message, f"model_config.{name}")
    if (model := config.get("model", _NULL)) != _NULL:
        name = _text(model, "model_config.model")
        if not 1 <= len(name) <= MAX_MODEL_CHARS:
            message = f"Invalid 'model_config.model': expected 1 to {MAX_MODEL_CHARS} characters."
            raise PromptError(message, "model_config.model")
    return config


def _parsed(source: str, where: str) -> Template:
    try:
        return parse_template(source)
    except TemplateError as error:
        raise PromptError(error.message, where) from error


def _text(raw: Raw, where: str) -> str:
    return str(_decoded(raw, str, "a string", where))


def _object(raw: bytes | Raw, where: str) -> dict[str, Raw]:
    found: dict[str, Raw] = _decoded(raw, dict[str, Raw], "an object", where)
    return found


def _array(raw: bytes | Raw, where: str) -> list[Raw]:
    found: list[Raw] = _decoded(raw, list[Raw], "an array", where)
    return found


def _decoded(raw: bytes | Raw, kind: Any, name: str, where: str) -> Any:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"Invalid type for '{where}': expected {name}."
        raise PromptError(message, where) from error


def _text_kind(fields: Mapping[str, Raw]) -> str | None:
    kind = msgspec.json.decode(fields["type"], type=str)
    return kind if kind in _TEXT_PARTS else None


def _part_type(kind: str, endpoint: str, message: Mapping[str, Raw]) -> str:
    """What the endpoint calls this text part."""
    if endpoint != _RESPONSES:
        return "text"
    if kind != "text":
        return kind
    return "output_text" if message["role"] == Raw(b'"assistant"') else "input_text"


def _merged(pieces: list[_Part]) -> Iterator[_Part]:
    run: list[bytes] = []
    for piece in pieces:
        if isinstance(piece, bytes):
            run.append(piece)
            continue
        if run:
            yield b"".join(run)
            run = []
        yield piece
    if run:
        yield b"".join(run)


def _spliced(variables: Mapping[str, Raw], name: str) -> bytes:
    """A variable's text as the inside of a JSON string."""
    try:
        value = bytes(variables[name])
    except KeyError as error:
        raise RenderFailed from error
    if value[:1] == b'"':
        return value[1:-1]
    if len(value) <= _MAX_DIGITS and _INTEGER.fullmatch(value):
        return value
    try:
        return _encode(text_of(json.loads(value)))[1:-1]
    except (ValueError, RecursionError) as error:
        raise RenderFailed from error
