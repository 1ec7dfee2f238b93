"""How many tokens the lines of an input file will use, estimated before anything runs.

    Estimator(endpoint, …).feed(chunk) ... feed(chunk).finish()  ->  a Tally for each Asked

Input tokens are the characters of all texts of a line's prompt divided by CHARACTERS_PER_TOKEN, at
least one for a line; images and other parts without a text count nothing. Output tokens are what
the line allows (max_tokens and its other names, for each choice), or ASSUMED_OUTPUT_TOKENS where
it allows anything; embeddings have none. docs/billing.md says what that is good for.

This is not intake: a line that can't be read is counted and skipped, and what validation would
refuse besides is estimated. Memory: a line and a chunk, and a tally for each model and prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Raw

from streams.domain.billing.tokens import CHARACTERS_PER_TOKEN
from streams.domain.intake.intake import MAX_BLANK_LINES, MAX_MODELS
from streams.domain.intake.lines import BLANK, ENDPOINTS, MAX_MODEL_CHARS
from streams.domain.outcome.usage import MAX_TOKENS
from streams.domain.prompts.request import PromptUse, UseError, prompt_use

#: The answer of a line that sets no limit: a few paragraphs.
ASSUMED_OUTPUT_TOKENS = 256
#: Texts with more parts than this are estimated by their bytes, since reading takes 60 each.
_MAX_PARTS = 100_000
_MAX_CHOICES = 1000
_BOM = b"\xef\xbb\xbf"
_NULL = Raw(b"null")
_ODD = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_EMBEDDINGS = "/v1/embeddings"
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


class TooMuchError(ValueError):
    """The file has more than a batch may have; the message says of what."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What lines ask for: a model, a stored prompt, or the model that a stored prompt has."""

    model: str | None
    slug: str | None = None
    version: int | None = None


@dataclass(slots=True)
class Tally:
    """Sums over lines that ask for the same.

    input_characters: of the variables, where lines name a stored prompt. input_tokens: of the
    others. limited_tokens: of output, of lines that set a limit. unlimited: choices of the others,
    and unlimited_lines how many these are.
    """

    lines: int = 0
    input_characters: int = 0
    input_tokens: int = 0
    limited_tokens: int = 0
    unlimited: int = 0
    unlimited_lines: int = 0


class _Body(msgspec.Struct, gc=False):
    model: str | None = None
    messages: Raw = _NULL
    input: Raw = _NULL
    prompt: Raw = _NULL
    instructions: Raw = _NULL
    tools: Raw = _NULL
    n: Raw = _NULL
    max_completion_tokens: Raw = _NULL
    max_tokens: Raw = _NULL
    max_output_tokens: Raw = _NULL
    prompt_slug: Raw = _NULL
    prompt_version: Raw = _NULL
    variables: Raw = _NULL


class _Line(msgspec.Struct, gc=False):
    url: str
    body: _Body


class _Part(msgspec.Struct, gc=False):
    text: str | None = None


class _Message(msgspec.Struct, gc=False):
    content: str | list[_Part] | None = None


_line = msgspec.json.Decoder(_Line)
_request = msgspec.json.Decoder(_Body)
_text = msgspec.json.Decoder(str)
_texts = msgspec.json.Decoder(list[str])
_messages = msgspec.json.Decoder(list[_Message])
_config = msgspec.json.Decoder(dict[str, Raw])


class Estimator:
    """One file being estimated."""

    def __init__(self, endpoint: str, max_lines: int, max_line_bytes: int) -> None:
        """Raises KeyError for an endpoint that isn't in intake_lines.ENDPOINTS."""
        self._endpoint = endpoint
        self._needed = ENDPOINTS[endpoint].needed
        self._most = max_lines
        self._longest = max_line_bytes
        self._tail: list[bytes] = []
        self._tail_bytes = 0
        self._begun = False
        self._blank = 0
        self.tallies: dict[Asked, Tally] = {}
        #: Lines, those that can't be read included; blank ones are none.
        self.lines = 0
        #: Lines that can't be read, or are not of this endpoint.
        self.unreadable = 0

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes of the file. Raises TooMuchError."""
        if not self._begun and chunk:
            self._begun = True
            chunk = chunk.removeprefix(_BOM)
        first, *others = chunk.split(b"\n")
        self._hold(first)
        for line in others:
            self._end_line()
            self._hold(line)

    def finish(self) -> Mapping[Asked, Tally]:
        """The sums, when all bytes were fed. Raises TooMuchError."""
        self._end_line()
        return self.tallies

    def _hold(self, part: bytes) -> None:
        if not part:
            return
        self._tail_bytes += len(part)
        if self._tail_bytes > self._longest:
            # Too long a line: only its length is kept.
            self._tail = []
        else:
            self._tail.append(part)

    def _end_line(self) -> None:
        held, size = self._tail, self._tail_bytes
        self._tail, self._tail_bytes = [], 0
        line = b"".join(held)
        if not size or (size <= self._longest and not line.strip(BLANK)):
            self._blank += 1
            if self._blank <= MAX_BLANK_LINES:
                return
        self.lines += 1
        if self.lines > self._most:
            raise TooMuchError(f"A batch may have at most {self._most} requests.")
        try:
            self._add(line)
        except (*_ODD, UseError):
            self.unreadable += 1

    def _add(self, line: bytes) -> None:
        parsed = _line.decode(line)
        body = parsed.body
        if parsed.url != self._endpoint or len(body.model or "") > MAX_MODEL_CHARS:
            raise msgspec.DecodeError
        use = self._use(body)
        if use is None and (not body.model or getattr(body, self._needed) == _NULL):
            raise msgspec.DecodeError
        if use is not None:
            characters, prompts = sum(_size(raw) for raw in use.variables.values()), 1
            tally = self._tally(Asked(body.model, use.slug, use.version))
            tally.input_characters += characters
        else:
            characters, prompts = _read(body, self._endpoint)
            tally = self._tally(Asked(body.model))
            tally.input_tokens += max(1, characters // CHARACTERS_PER_TOKEN)
        tally.lines += 1
        if self._endpoint != _EMBEDDINGS:
            self._add_output(tally, body, prompts)

    def _use(self, body: _Body) -> PromptUse | None:
        # What most lines lack is asked for first.
        if body.prompt_slug == _NULL and body.prompt == _NULL:
            return None
        fields = {name: getattr(body, name) for name in body.__struct_fields__}
        return prompt_use(fields, self._endpoint)

    def _tally(self, asked: Asked) -> Tally:
        tally = self.tallies.get(asked)
        if tally is None:
            if len(self.tallies) >= MAX_MODELS:
                message = f"A batch may name at most {MAX_MODELS} different models and prompts."
                raise TooMuchError(message)
            tally = self.tallies[asked] = Tally()
        return tally

    def _add_output(self, tally: Tally, body: _Body, prompts: int) -> None:
        choices = prompts * min(_number(body.n) or 1, _MAX_CHOICES)
        limit = next((found for name in _LIMITS if (found := _number(getattr(body, name)))), None)
        if limit is None:
            tally.unlimited += choices
            tally.unlimited_lines += 1
        else:
            tally.limited_tokens += min(choices * limit, MAX_TOKENS)


def prompt_tokens(body: bytes, endpoint: str) -> int:
    """Input tokens of one request at an endpoint of ENDPOINTS: at least one, if of an odd form."""
    try:
        characters, _ = _read(_request.decode(body), endpoint)
    except _ODD:
        return 1
    return max(1, characters // CHARACTERS_PER_TOKEN)


def message_characters(raw: bytes | Raw) -> int:
    """The characters of all texts of an array of messages."""
    data = bytes(raw)
    if data.count(b"{") > _MAX_PARTS:
        return len(data)
    try:
        messages = _messages.decode(data)
    except _ODD:
        return len(data)
    return sum(_content_characters(message.content) for message in messages)


def _read(body: _Body, endpoint: str) -> tuple[int, int]:
    """The characters of a request's prompt, and how many prompts these are."""
    needed = ENDPOINTS[endpoint].needed
    given: Raw = getattr(body, needed)
    extra = _size(body.tools)
    if needed == "messages":
        return extra + message_characters(given), 1
    if endpoint == "/v1/responses":
        text = _size(given) if bytes(given)[:1] == b'"' else message_characters(given)
        return extra + text + _size(body.instructions), 1
    return _list_characters(given)


def limit_and_model(model_config: bytes) -> tuple[int | None, str | None]:
    """What a stored prompt's settings allow as output, and their model."""
    try:
        config = _config.decode(model_config)
        model = msgspec.json.decode(config.get("model", _NULL), type=str | None)
    except _ODD:
        return None, None
    limits = (_number(config.get(name, _NULL)) for name in _LIMITS)
    return next((found for found in limits if found), None), model


def _content_characters(content: str | list[_Part] | None) -> int:
    if content is None:
        return 0
    if isinstance(content, str):
        return len(content)
    return sum(len(part.text or "") for part in content)


def _list_characters(raw: Raw) -> tuple[int, int]:
    """Characters and number of texts: one, a list, or lists of tokens, four characters each."""
    data = bytes(raw)
    if data[:1] == b'"':
        return _size(raw), 1
    commas = data.count(b",")
    if b'"' in data:
        if commas > _MAX_PARTS:
            return len(data), data.count(b'",') + 1
        texts = _texts.decode(data)
        return sum(map(len, texts)), max(1, len(texts))
    return (commas + 1) * CHARACTERS_PER_TOKEN, data.count(b"],") + 1


def _size(raw: Raw) -> int:
    """The characters of a text; of anything else those of its JSON, of null none."""
    data: Any = bytes(raw)
    if data == b"null":
        return 0
    return len(_text.decode(data)) if data[:1] == b'"' else len(data)


def _number(raw: Raw) -> int | None:
    digits = bytes(raw)
    return min(int(digits), MAX_TOKENS) if digits.isdigit() and len(digits) <= 18 else None
