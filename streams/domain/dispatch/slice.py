"""A slice: lines of one batch that are released together, to one pool of one worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from streams.domain.dispatch.lane import Lane


class LineAt(NamedTuple):
    """Where a line lies in the input file: byte offset and length.

    pin: number of the prompt version that it uses, counted from 1; 0 for none.
    """

    line: int
    offset: int
    length: int
    pin: int = 0


class Picked(NamedTuple):
    """A line to run and the number of this attempt, counted from 1."""

    at: LineAt
    attempt: int


@dataclass(slots=True, eq=False)
class Slice:
    """Lines chosen for a worker.

    lane: where they came from; None for slices found in line.ready after a restart.
    size: number of lines; left: those of them still out.
    partition, offset: its place in line.ready; offset -1 until sent.
    tail: these are among the batch's last lines.
    """

    batch_id: str
    pool: str
    partition: int
    size: int
    lane: Lane | None = None
    lines: tuple[Picked, ...] = ()
    left: int = 0
    tail: bool = False
    offset: int = -1
