"""Finds the usage in one long event of a stream, of which only pieces are held.

    feed(piece) ... feed(piece) ─► end(): the object's bytes, or None

The last event of /v1/responses repeats the whole request, so that it may have megabytes. The name
alone doesn't do, since a tool that is repeated may have a parameter called `usage`: nesting is
followed, and what counts is `usage` at the top, or right inside `response` there.

A real-time worker has other calls to serve meanwhile, so that regular expressions do the work:
17 ms for a megabyte of text, up to 200 for one of nothing but empty strings.
"""

from __future__ import annotations

import json
import re
from array import array
from contextlib import suppress
from itertools import accumulate

#: Real ones have some 300 bytes; what is longer is not read.
MAX_USAGE_BYTES = 64 * 1024
#: A name and the brace that follows it are looked for in this many bytes.
_NAME_BYTES = 64
#: An event with the names in more places than this was made to cost time; its usage is not read.
MAX_NAMES = 1000

#: In JSON this is never a part of a text: there its quotes would be escaped.
_NAME = re.compile(rb'(?<!\\)"(usage|response)"\s*:\s*(?=\{)')
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_WHOLE_STRINGS = re.compile(rb'(?:[^"]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+', re.DOTALL)
_STRING_REST = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NEXT_LINE = re.compile(r"[\r\n]+data:")
#: Braces and brackets become steps down and up, as signed bytes.
_STEPS = bytes.maketrans(b"{[}]", b"\x01\x01\xff\xff")
_NO_STEPS = bytes(set(range(256)) - set(b"{[}]"))


class LongEvent:
    """One event that is being fed. Memory: MAX_USAGE_BYTES and a few more."""

    def __init__(self) -> None:
        self._held = b""
        self._in_string = False
        self._depth = 0
        self._names = 0
        #: Whether what is open at depth 2 is the value of `response`.
        self._in_response = False
        #: What follows the name; None before it came.
        self._usage: bytes | None = None

    def feed(self, piece: bytes) -> None:
        """The next bytes, of any number."""
        if self._names > MAX_NAMES:
            return
        data = self._held + piece
        # A name that is cut begins within the last bytes.
        cut = max(0, len(data) - _NAME_BYTES)
        at = kept = 0
        for name in _NAME.finditer(data):
            if name.start() >= cut:
                break
            self._names += 1
            if self._names > MAX_NAMES:
                self._usage = None
                return
            self._pass(data[at : name.start()])
            at = name.end()
            cut = max(cut, at)
            if self._is_usage(name[1]):
                self._usage, kept = b"", at
        cut -= _open_escapes(data[at:cut])
        self._pass(data[at:cut])
        if self._usage is not None:
            self._usage += data[kept:cut][: MAX_USAGE_BYTES - len(self._usage)]
        self._held = data[cut:]

    def end(self) -> bytes | None:
        """The usage object, when all was fed; None if there is none that can be read."""
        self.feed(b" " * _NAME_BYTES)
        with suppress(ValueError, RecursionError):
            text = _NEXT_LINE.sub(" ", (self._usage or b"").decode())
            _, size = json.JSONDecoder().raw_decode(text)
            return text[:size].encode()
        return None

    def _is_usage(self, name: bytes) -> bool:
        if name == b"response":
            self._in_response |= self._depth == 1
            return False
        return self._depth == 1 or (self._depth == 2 and self._in_response)

    def _pass(self, part: bytes) -> None:
        """Follows the nesting through these bytes."""
        if self._in_string:
            rest = _STRING_REST.match(part)
            if rest is None:
                return
            part = part[rest.end() :]
        whole = _WHOLE_STRINGS.match(part)
        size = 0 if whole is None else whole.end()
        self._in_string = size < len(part)
        bare = _STRING.sub(b"", part[:size])
        depths = list(
            accumulate(array("b", bare.translate(_STEPS, _NO_STEPS)), initial=self._depth)
        )
        self._in_response &= min(depths[1:], default=2) > 1
        self._depth = depths[-1]


def _open_escapes(data: bytes) -> int:
    """1 if a backslash at the end belongs to what follows it, else 0."""
    return (len(data) - len(data.rstrip(b"\\"))) % 2
