"""Which bytes of a running batch's output and error file are certain, and where they lie.

    accepted lines     0 1 2 3 4 . 6 7        the prefix is 5: lines 0 to 4
    of these, output   0 1   3                 its bytes begin the output file that there will be
               error       2   4               and these the error file

Final files are in input order, and of the copies of a line the one with the lowest line.done
offset wins. Collectors announce a batch's outcomes in the order of these offsets, so once a line
is accepted its winner is stored, and no later segment has a better copy: what is certain stays so.

Memory: 25 bytes a line of the batch, and 16 more a line of the prefix.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from streams.domain.assembly import Span, Winners
from streams.domain.segment import SegmentEntry

#: Of lines that are read and sent at once, unless one alone is larger.
PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """Lines whose bytes follow each other in a file; of them those from `start` to `end` count."""

    spans: tuple[Span, ...]
    start: int
    end: int


class PartialFiles:
    """Both files of one batch. Every segment that there is must be added before extend()."""

    def __init__(self, total: int) -> None:
        self.total = total
        #: Lines that are certain.
        self.lines = 0
        self._winners = Winners(total, range(total))
        #: By line, where the output file (True) and the error file (False) end after it.
        self._ends = {True: array("Q"), False: array("Q")}

    def add(self, segment: int, entries: Iterable[SegmentEntry]) -> None:
        """Takes a segment's index. `segment` is any number below 2^32 that names it."""
        self._winners.add(segment, entries)

    def extend(self, prefix: int) -> None:
        """So many lines are accepted before the first that is not. One without copy ends them."""
        for line in range(self.lines, min(prefix, self.total)):
            span = self._winners.span(line)
            if span is None:
                return
            completed = self._winners.completed(line)
            for output, ends in self._ends.items():
                own = span.length if output is completed else 0
                ends.append((ends[-1] if ends else 0) + own)
            self.lines = line + 1

    def size(self, *, output: bool) -> int:
        """Bytes of the output or error file that are certain."""
        ends = self._ends[output]
        return ends[-1] if ends else 0

    def pieces(self, start: int, end: int, *, output: bool) -> Iterator[Piece]:
        """The bytes [start, end) of the output or error file, in pieces of bounded size."""
        ends = self._ends[output]
        spans: list[Span] = []
        size = 0
        # The first line that ends behind `start` has the byte there.
        line = bisect_right(ends, start)
        begin = ends[line - 1] if line else 0
        at = begin
        while at < end:
            span = self._winners.span(line)
            if span is not None:
                if spans and size + span.length > PIECE_BYTES:
                    yield Piece(tuple(spans), max(start - begin, 0), min(end - begin, size))
                    spans, size, begin = [], 0, at
                spans.append(span)
                size += span.length
            at = ends[line]
            # Past the lines that are in the other file.
            line = bisect_right(ends, at, line)
        if spans:
            yield Piece(tuple(spans), max(start - begin, 0), min(end - begin, size))
