"""Cuts a stream of bytes into whole events (SSE), and finds the usage that one of them tells.

Only whole events are passed on, so that whatever breaks off, nobody is left with half of one.
"""

from __future__ import annotations

import re
from contextlib import suppress

import msgspec

from streams.domain.outcome.streamed import Used
from streams.domain.outcome.usage import read_answer

#: An event that is longer than this is passed on in pieces.
MAX_EVENT_BYTES = 1024 * 1024
#: What an event may end with.
_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_EVENT_END = re.compile(rb"\r?\n\r?\n|\r\r")
_LINE_END = re.compile(rb"\r?\n|\r")


class _Wrapped(msgspec.Struct):
    """An event of /v1/responses holds the whole response."""

    response: msgspec.Raw


class Events:
    """One stream's events."""

    def __init__(self) -> None:
        self._rest = b""
        self._told = b""

    def feed(self, chunk: bytes) -> bytes:
        """The events that are whole now, as they came; empty if none is."""
        data = self._rest + chunk
        cut = max(data.rfind(end) + len(end) if end in data else 0 for end in _ENDS)
        if len(data) - cut > MAX_EVENT_BYTES:
            cut = len(data)
        self._rest, whole = data[cut:], data[:cut]
        if _USAGE.search(whole):
            self._told = whole
        return whole

    def rest(self) -> bytes:
        """What came after the last whole event; nothing, from a server that ends well."""
        return self._rest

    def used(self, endpoint: str) -> Used:
        """The tokens that the stream's last word on them tells; none where it told none."""
        for event in reversed(_EVENT_END.split(self._told)):
            if _USAGE.search(event):
                return _used(_data(event), endpoint)
        return Used()


def _data(event: bytes) -> bytes:
    lines = (line for line in _LINE_END.split(event) if line.startswith(b"data:"))
    return b"\n".join(line[5:].strip() for line in lines)


def _used(data: bytes, endpoint: str) -> Used:
    # The events of the other endpoints hold it directly.
    with suppress(msgspec.DecodeError, RecursionError):
        data = bytes(msgspec.json.decode(data, type=_Wrapped).response)
    reading = read_answer(data, endpoint)
    return Used() if reading is None else Used(reading.usage, reading.flag)
