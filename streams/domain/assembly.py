"""Which bytes make up a batch's output and error file, in input order.

    segments' indexes ─► Winners ─► window after window of lines: reads ─► output and error lines

The ledger's bitmap says which lines count. Of the copies of a counted line the one with the lowest
line.done offset wins: it is also the copy that the controller counted. A line that is not
counted became `batch_cancelled` or `batch_expired`, whatever lies in segments about it (late
outcomes are ignored); a counted line that nobody can read became `output_lost`.

Memory: 25 bytes a line for the winners, and one window.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import msgspec
from msgspec import Raw

from schemas.errors import LineCode
from schemas.records import AssembleReason, AssembleTask, OutcomeKind
from streams.domain.outcome import render as outcome_render
from streams.domain.segment import SegmentEntry

#: What is read, held and written at once, unless one line alone is larger.
WINDOW_BYTES = 4 << 20
WINDOW_LINES = 2048
#: Two ranges this near each other are read as one; losing copies may lie between them.
_GAP_BYTES = 4096
_NO_OFFSET = (1 << 64) - 1

_UNFINISHED = {
    AssembleReason.CANCELLED: LineCode.BATCH_CANCELLED,
    AssembleReason.EXPIRED: LineCode.BATCH_EXPIRED,
}


class AssemblyError(Exception):
    """The files would not hold every line exactly once: a bug, and nothing may be published."""


@dataclass(frozen=True, slots=True)
class Span:
    """Where one line's bytes lie: in which source, and the range within it."""

    line: int
    source: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Read:
    """One ranged read that brings the bytes of one or more lines of a source."""

    source: int
    offset: int
    length: int
    spans: tuple[Span, ...]

    def cut(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Each line's number and bytes, from what the read brought."""
        for span in self.spans:
            start = span.offset - self.offset
            yield span.line, data[start : start + span.length]


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive lines [first, end) that are handled together; spans only of counted lines."""

    first: int
    end: int
    spans: tuple[Span, ...]


@dataclass(slots=True)
class Tally:
    """What became of the lines written so far. The error file holds all but `completed`."""

    completed: int = 0
    failed: int = 0
    unfinished: int = 0
    lost: int = 0

    @property
    def errors(self) -> int:
        """Lines of the error file."""
        return self.failed + self.unfinished + self.lost


class Accepted:
    """The ledger's bitmap of counted lines."""

    def __init__(self, task: AssembleTask) -> None:
        """Raises AssemblyError if the task's bitmap can't be read."""
        try:
            # The bound keeps a damaged task from unpacking into all memory.
            unpack = zlib.decompressobj()
            self._bits = unpack.decompress(task.accepted, max(1, (task.total + 7) // 8))
        except zlib.error as error:
            raise AssemblyError("the task's bitmap is damaged") from error
        self._total = task.total

    def __contains__(self, line: int, /) -> bool:
        byte = line >> 3
        return (
            line < self._total
            and byte < len(self._bits)
            and bool(self._bits[byte] >> (line & 7) & 1)
        )


class Lines(Protocol):
    """A set of line numbers."""

    def __contains__(self, line: int, /) -> bool: ...


class Winners:
    """For each counted line the copy that wins, among the segments added so far, in any order."""

    def __init__(self, total: int, accepted: Lines) -> None:
        self.total = total
        self.accepted = accepted
        self._done_offset = array("Q", [_NO_OFFSET]) * total
        self._segment = array("I", [0]) * total
        self._start = array("Q", [0]) * total
        self._length = array("I", [0]) * total
        self._completed = bytearray(total)

    def add(self, segment: int, entries: Iterable[SegmentEntry]) -> None:
        """Takes a segment's index. `segment` is any number below 2^32 that names it."""
        best = self._done_offset
        for entry in entries:
            line = entry.line
            if line < self.total and entry.done_offset < best[line] and line in self.accepted:
                best[line] = entry.done_offset
                self._segment[line] = segment
                self._start[line] = entry.offset
                self._length[line] = entry.length
                self._completed[line] = entry.kind is OutcomeKind.COMPLETED

    def completed(self, line: int) -> bool:
        """Whether the winning copy goes to the output file; False also where there is none."""
        return bool(self._completed[line])

    def span(self, line: int) -> Span | None:
        """Where the winning copy lies; None where there is none."""
        if self._done_offset[line] == _NO_OFFSET:
            return None
        # With its newline, which a whole line in a whole segment has.
        return Span(line, self._segment[line], self._start[line], self._length[line] + 1)

    def windows(self) -> Iterator[Window]:
        """All lines, in order, in pieces of bounded size."""
        first = 0
        while first < self.total:
            window = self._window(first)
            yield window
            first = window.end

    def _window(self, first: int) -> Window:
        spans: list[Span] = []
        size = 0
        line = first
        while line < min(self.total, first + WINDOW_LINES) and size < WINDOW_BYTES:
            span = self.span(line)
            if span is not None:
                if spans and size + span.length > WINDOW_BYTES:
                    break
                spans.append(span)
                size += span.length
            line += 1
        return Window(first, line, tuple(spans))


def reads(spans: Iterable[Span]) -> list[Read]:
    """The fewest ranged reads that bring all spans without much else."""
    made: list[Read] = []
    group: list[Span] = []
    end = 0
    for span in sorted(spans, key=lambda s: (s.source, s.offset)):
        near = group and span.source == group[0].source and span.offset - end <= _GAP_BYTES
        if not near or end - group[0].offset >= WINDOW_BYTES:
            made += _read(group)
            group, end = [], 0
        group.append(span)
        end = max(end, span.offset + span.length)
    return made + _read(group)


def _read(group: list[Span]) -> list[Read]:
    if not group:
        return []
    first = group[0]
    end = max(span.offset + span.length for span in group)
    return [Read(first.source, first.offset, end - first.offset, tuple(group))]


def groups(spans: Iterable[Span]) -> Iterator[list[Span]]:
    """The spans in lists of bounded bytes."""
    group: list[Span] = []
    size = 0
    for span in spans:
        if group and size + span.length > WINDOW_BYTES:
            yield group
            group, size = [], 0
        group.append(span)
        size += span.length
    if group:
        yield group


def is_whole(text: bytes, span: Span) -> bool:
    """Whether these bytes are a rendered line: one JSON object and its newline, nothing cut."""
    return len(text) == span.length and text.startswith(b"{") and text.endswith(b"}\n")


class _InputLine(msgspec.Struct):
    custom_id: Raw


def custom_id_of(raw: bytes) -> bytes:
    """The custom id in a line of the input file, as JSON; null where it can't be read."""
    try:
        return bytes(msgspec.json.decode(raw, type=_InputLine).custom_id)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return outcome_render.NO_CUSTOM_ID


def unanswered_line(task: AssembleTask, line: int, counted: bool, custom_id: bytes) -> bytes:
    """The error file's line, with its newline, for a line that has no outcome to show."""
    code = LineCode.OUTPUT_LOST if counted else unfinished_code(task)
    return outcome_render.unanswered(task.batch_id, line, custom_id, code) + b"\n"


def unfinished_code(task: AssembleTask) -> LineCode:
    """What a line that was not counted became. A complete batch has none, so there it is a loss."""
    return _UNFINISHED.get(task.reason, LineCode.OUTPUT_LOST)


def check(task: AssembleTask, tally: Tally) -> bool:
    """Whether the files agree with the ledger's counts as far as lost lines let one tell.

    Raises AssemblyError if a line is missing or double.
    """
    if tally.completed + tally.errors != task.total:
        raise AssemblyError(
            f"{tally.completed} + {tally.errors} lines written for a batch of {task.total}"
        )
    missing_completed = task.completed - tally.completed
    missing_failed = task.failed - tally.failed
    return (
        missing_completed >= 0
        and missing_failed >= 0
        and missing_completed + missing_failed == tally.lost
    )
