"""Cuts a stream of bytes into whole events (SSE), and finds the usage that one of them tells.

Only whole events are passed on, so that whatever breaks off, nobody is left with half of one. An
event that is too long to be held is passed on in pieces, and its usage is read all the same.
"""

from __future__ import annotations

import re
from contextlib import suppress

import msgspec

from schemas.records import Usage
from streams.domain.not_json import NOT_JSON
from streams.domain.outcome.estimated import ESTIMATED, EVENT_END, Heard, data_of
from streams.domain.outcome.long_event import LongEvent
from streams.domain.outcome.streamed import Used
from streams.domain.outcome.usage import MISSING, read_answer

#: An event that is longer than this is passed on in pieces.
MAX_EVENT_BYTES = 1024 * 1024
#: What an event may end with.
_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_LONGEST_END = max(map(len, _ENDS))
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_NONE = Usage()


class _Wrapped(msgspec.Struct):
    """An event of /v1/responses holds the whole response."""

    response: msgspec.Raw


class _WithUsage(msgspec.Struct):
    usage: dict[str, msgspec.Raw] | None = None


class _Telling(_WithUsage):
    # The name alone doesn't do: a tool that is repeated may have a parameter called `usage`.
    response: _WithUsage | None = None


class Events:
    """One stream's events."""

    def __init__(self) -> None:
        self._rest = bytearray()
        #: The data of the last event that says what was used.
        self._told = b""
        self._heard = Heard()
        #: The event of which a piece was passed on already.
        self._long: LongEvent | None = None

    def feed(self, chunk: bytes) -> bytes:
        """The events that are whole now, as they came; empty if none is."""
        rest = self._rest
        seen = max(0, len(rest) - _LONGEST_END + 1)
        rest += chunk
        ends = ((rest.rfind(end, seen), len(end)) for end in _ENDS)
        whole = cut = max((at + size for at, size in ends if at >= 0), default=0)
        if len(rest) - cut > MAX_EVENT_BYTES:
            # These may be the first half of its end.
            cut = len(rest.rstrip(b"\r\n"))
        if not cut:
            return b""
        passed = bytes(rest[:cut])
        del rest[:cut]
        self._read(passed[:whole], passed[whole:])
        return passed

    def rest(self) -> bytes:
        """What came after the last whole event; nothing, from a server that ends well."""
        return bytes(self._rest)

    def used(self, body: bytes, endpoint: str) -> Used:
        """The tokens that the stream's last word on them tells, of all that was fed.

        Where it told none, an estimate, flagged as such; body: what was asked.
        """
        told = self._said(endpoint)
        if told.flag != MISSING or told.usage != _NONE:
            return told
        estimate = self._heard.estimate(body, endpoint)
        return told if estimate is None else Used(estimate, ESTIMATED)

    def _read(self, whole: bytes, piece: bytes) -> None:
        """whole: what ends with an event. piece: of one that goes on."""
        if self._long is not None and whole:
            end = _first_end(whole)
            self._long.feed(whole[:end])
            usage, self._long = self._long.end(), None
            if usage is not None:
                self._told = b'{"usage":' + usage + b"}"
            whole = whole[end:]
        for event in reversed(EVENT_END.split(whole)) if _USAGE.search(whole) else ():
            if _tells(data := data_of(event)):
                self._told = data
                break
        self._heard.feed(whole)
        if piece:
            self._long = self._long or LongEvent()
            self._long.feed(piece)

    def _said(self, endpoint: str) -> Used:
        return _used(self._told, endpoint) if self._told else Used()


def _first_end(events: bytes) -> int:
    found = EVENT_END.search(events)
    return len(events) if found is None else found.end()


def _tells(data: bytes) -> bool:
    """Whether an event says what was used."""
    with suppress(*NOT_JSON):
        event = msgspec.json.decode(data, type=_Telling)
        inner = event.response.usage if event.response else None
        return event.usage is not None or inner is not None
    return False


def _used(data: bytes, endpoint: str) -> Used:
    # The events of the other endpoints hold it directly.
    with suppress(*NOT_JSON):
        data = bytes(msgspec.json.decode(data, type=_Wrapped).response)
    reading = read_answer(data, endpoint)
    return Used() if reading is None else Used(reading.usage, reading.flag)
