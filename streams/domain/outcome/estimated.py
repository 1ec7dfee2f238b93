"""What a stream used whose upstream didn't tell: its client left before, or it never does.

    input   as `backhaul submit --estimate` counts a prompt
    output  of the text that was passed on: events that have any, each of which is at least one
            token, or its characters by CHARACTERS_PER_TOKEN, whichever is more; one whose shape
            is not known is one token

Nothing is estimated before the first event came, since nobody knows then what the upstream had
done, nor where the stream told an error. Reasoning that is hidden counts nothing.
"""

from __future__ import annotations

import re

import msgspec

from schemas.records import Usage
from streams.domain.billing.prices.input_tokens import prompt_tokens
from streams.domain.billing.tokens import CHARACTERS_PER_TOKEN
from streams.domain.not_json import NOT_JSON
from streams.domain.outcome.usage import MAX_TOKENS

#: The flag of usage that is an estimate; it is billed like any other.
ESTIMATED = "estimated"
EVENT_END = re.compile(rb"\r?\n\r?\n|\r\r")
_LINE_END = re.compile(rb"\r?\n|\r")
_NULL = msgspec.Raw(b"null")


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct, gc=False):
    function: _Function | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    text: str | None = None


class _Event(msgspec.Struct, gc=False):
    # Chat completions and completions have choices, responses a type and a delta.
    choices: list[_Choice] = []
    type: str = ""
    delta: str | None = None
    error: msgspec.Raw = _NULL


_event = msgspec.json.Decoder(_Event)


def data_of(event: bytes) -> bytes:
    """The data of one event (SSE)."""
    if event.startswith(b"data:") and b"\n" not in event and b"\r" not in event:
        return event[5:].strip()
    lines = (line for line in _LINE_END.split(event) if line.startswith(b"data:"))
    return b"\n".join(line[5:].strip() for line in lines)


class Heard:
    """What was passed on of one stream, in numbers."""

    def __init__(self) -> None:
        self._any = False
        self._failed = False
        self._events = 0
        self._characters = 0

    def feed(self, events: bytes) -> None:
        """Whole events that are passed on."""
        self._any = True
        for event in EVENT_END.split(events):
            data = data_of(event)
            try:
                read = _event.decode(data)
            except (msgspec.ValidationError, UnicodeDecodeError):
                # Of a shape that is not known here, but it was passed on. The last one is [DONE].
                self._events += data.startswith(b"{")
                continue
            except NOT_JSON:
                continue
            self._failed |= read.error != _NULL or read.type in ("error", "response.failed")
            characters = _characters(read)
            self._events += characters > 0
            self._characters += characters

    def estimate(self, body: bytes, endpoint: str) -> Usage | None:
        """The tokens of a request that was answered so far; None where they can't be guessed."""
        if self._failed or not self._any:
            return None
        return Usage(
            input_tokens=min(prompt_tokens(body, endpoint), MAX_TOKENS),
            output_tokens=min(
                max(self._events, self._characters // CHARACTERS_PER_TOKEN), MAX_TOKENS
            ),
        )


def _characters(event: _Event) -> int:
    # Audio is base64. A summary is not what was generated.
    found = 0 if "audio" in event.type or "summary" in event.type else len(event.delta or "")
    for choice in event.choices:
        found += len(choice.text or "")
        if choice.delta is not None:
            found += _delta_characters(choice.delta)
    return found


def _delta_characters(delta: _Delta) -> int:
    texts = [delta.content, delta.reasoning_content or delta.reasoning, delta.refusal]
    for call in delta.tool_calls or ():
        if call.function is not None:
            texts += call.function.name, call.function.arguments
    return sum(len(text) for text in texts if text)
