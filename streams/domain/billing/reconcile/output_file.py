"""Reads a batch's output file as a bill: what each line's own `usage` says.

A line's answer is the upstream's, byte for byte, so it is judged here as it was when it came, and
what is found is what was counted then. Lines of the error file are not billed, whatever usage they
report: an attempt that failed is counted with nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
from msgspec import Raw

from schemas.records import Usage
from streams.domain.ids import line_request_id
from streams.domain.outcome.usage import read_answer

#: What of a longer line follows is another line, and neither can be read: answers are far smaller.
MAX_LINE_BYTES = 256 << 20


class UnreadableLine(ValueError):  # noqa: N818 - it is what is wrong
    """A line of an output file is not as we write them; nobody can say what it used."""


class _Response(msgspec.Struct):
    body: Raw


class _Line(msgspec.Struct):
    id: str
    response: _Response


_decoder = msgspec.json.Decoder(_Line)


class Cutter:
    """Cuts a stream of bytes into lines."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that end in `data`, without their newlines."""
        *whole, rest = data.split(b"\n")
        for part in whole:
            yield self.rest() + part
        self._rest += rest
        if len(self._rest) > MAX_LINE_BYTES:
            yield self.rest()

    def rest(self) -> bytes:
        """What follows the last newline; it is begun anew."""
        rest = bytes(self._rest)
        self._rest.clear()
        return rest


def usage_of_line(text: bytes, endpoint: str) -> tuple[str, Usage]:
    """The line's request id, and what its answer used. Raises UnreadableLine."""
    try:
        line = _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableLine("It is no answered line.") from error
    answer = read_answer(bytes(line.response.body), endpoint)
    if answer is None:
        raise UnreadableLine("Its answer is no JSON object.")
    return line.id, answer.usage


def numbers_of(batch_id: str, total: int) -> Mapping[str, int]:
    """The number of each line of a batch, from 0, by its request id."""
    return {line_request_id(batch_id, line): line for line in range(total)}
