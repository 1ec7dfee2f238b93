"""A streaming parser of multipart/form-data (RFC 7578), without I/O.

    PartBegin (PartData)* PartEnd   for each part, in the body's order

It holds back no more than a delimiter's length of a part's data, so memory is flat, and it knows
a body that was cut off from one that ended.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

_MAX_HEADERS = 16 * 1024
_MAX_BOUNDARY = 70
#: Blanks that may stand between a delimiter and its line's end.
_MAX_PADDING = 128
_BOUNDARY = re.compile(r';\s*boundary\s*=\s*(?:"([^"]*)"|([^;\s]+))', re.IGNORECASE)
_PARAMETER = re.compile(r';\s*([a-z*]+)\s*=\s*(?:"((?:\\["\\]|[^"])*)"|([^;\s]*))', re.IGNORECASE)


class MultipartError(ValueError):
    """The body is not multipart/form-data, or it was cut off; the message says where."""


@dataclass(frozen=True, slots=True)
class PartBegin:
    """A part's headers ended. filename: None for a plain field."""

    name: str
    filename: str | None


@dataclass(frozen=True, slots=True)
class PartData:
    """Some of a part's bytes."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PartEnd:
    """The part is complete."""


PartEvent = PartBegin | PartData | PartEnd


class _State(Enum):
    PREAMBLE = auto()
    AFTER_DELIMITER = auto()
    HEADERS = auto()
    BODY = auto()
    ENDED = auto()


def boundary_of(content_type: str) -> bytes:
    """The boundary in a Content-Type header. Raises MultipartError."""
    kind, _, _ = content_type.partition(";")
    if kind.strip().lower() != "multipart/form-data":
        raise MultipartError("The request's Content-Type must be multipart/form-data.")
    found = _BOUNDARY.search(content_type)
    boundary = (found.group(1) or found.group(2) or "") if found else ""
    if not (boundary.isascii() and 1 <= len(boundary) <= _MAX_BOUNDARY):
        raise MultipartError("The multipart boundary is missing or too long.")
    return boundary.encode()


class MultipartParser:
    """Feed it the body's bytes in any pieces, then call close()."""

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        # A delimiter begins with the line's end before it, which the first one need not have.
        self._buffer = b"\r\n"
        self._state = _State.PREAMBLE

    def feed(self, data: bytes) -> Iterator[PartEvent]:
        """The events in these bytes and what was held back. Raises MultipartError."""
        self._buffer = self._buffer + data if self._buffer else data
        more = True
        while more:
            match self._state:
                case _State.PREAMBLE:
                    more = self._preamble()
                case _State.AFTER_DELIMITER:
                    more = self._after_delimiter()
                case _State.HEADERS:
                    begin = self._headers()
                    more = begin is not None
                    if begin is not None:
                        yield begin
                case _State.BODY:
                    at = self._buffer.find(self._delimiter)
                    yield from self._body(at)
                    more = at >= 0
                case _State.ENDED:
                    self._buffer = b""
                    more = False

    def close(self) -> None:
        """The body has ended. Raises MultipartError if it was cut off."""
        if self._state is not _State.ENDED:
            raise MultipartError("The multipart body was cut off before its final boundary.")

    def _preamble(self) -> bool:
        at = self._buffer.find(self._delimiter)
        if at < 0:
            self._buffer = self._buffer[1 - len(self._delimiter) :]
            return False
        self._buffer = self._buffer[at + len(self._delimiter) :]
        self._state = _State.AFTER_DELIMITER
        return True

    def _after_delimiter(self) -> bool:
        if self._buffer.startswith(b"--"):
            self._state = _State.ENDED
            return True
        at = self._buffer.find(b"\r\n")
        padding = self._buffer if at < 0 else self._buffer[:at]
        # One '-' or '\r' may be the first half of what ends the delimiter.
        if padding.strip(b" \t") not in (b"", b"-", b"\r") or len(padding) > _MAX_PADDING:
            raise MultipartError("A multipart boundary is followed by something else.")
        if at < 0:
            return False
        # The headers are looked for with a line's end before them, as a part may have none.
        self._buffer = self._buffer[at:]
        self._state = _State.HEADERS
        return True

    def _headers(self) -> PartBegin | None:
        at = self._buffer.find(b"\r\n\r\n")
        if at > _MAX_HEADERS or (at < 0 and len(self._buffer) > _MAX_HEADERS):
            raise MultipartError("A part's headers are too long.")
        if at < 0:
            return None
        begin = _part_begin(self._buffer[:at])
        self._buffer = self._buffer[at + 4 :]
        self._state = _State.BODY
        return begin

    def _body(self, at: int) -> Iterator[PartEvent]:
        if at < 0:
            keep = len(self._delimiter) - 1
            if len(self._buffer) > keep:
                data, self._buffer = self._buffer[:-keep], self._buffer[-keep:]
                yield PartData(data)
            return
        if at > 0:
            yield PartData(self._buffer[:at])
        self._buffer = self._buffer[at + len(self._delimiter) :]
        self._state = _State.AFTER_DELIMITER
        yield PartEnd()


def _part_begin(headers: bytes) -> PartBegin:
    for line in headers.decode("utf-8", "replace").split("\r\n"):
        header, _, value = line.partition(":")
        if header.strip().lower() == "content-disposition":
            found = {
                match[1].lower(): _unquoted(match[2]) if match[2] is not None else match[3]
                for match in _PARAMETER.finditer(value)
            }
            if "name" in found:
                return PartBegin(found["name"], found.get("filename"))
    raise MultipartError("A part has no name in its Content-Disposition header.")


def _unquoted(text: str) -> str:
    # Browsers and httpx escape three characters by percent, older clients two by backslash.
    text = re.sub(r'\\(["\\])', r"\1", text)
    return text.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")
