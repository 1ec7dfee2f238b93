"""Which of a tenant's batches have room within its limits: the first ones, in the tenant's order.

    order:  priority (highest first), deadline, creation      room:  ■ ■ ■ │ ▢ ▢
                                                                the limit ┘   └ wait

A pure function of what every controller reads, so that all come to the same answer without a word
between them. The first batch has room whatever its size, so something can always go on; and none
overtakes one that waits, so a large batch isn't kept waiting by small ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Limits:
    """Most lines and estimated input tokens of batches that have room; None: no limit."""

    lines: int | None = None
    tokens: int | None = None

    @property
    def any(self) -> bool:
        """Whether there is a limit at all."""
        return self.lines is not None or self.tokens is not None


class Place(NamedTuple):
    """Where a batch stands among its tenant's; sorts as it goes."""

    before: int
    deadline_ms: int
    created_at_ms: int
    batch_id: str


@dataclass(frozen=True, slots=True)
class Enqueued:
    """A batch whose lines run or wait to: those that are not in, and their tokens."""

    place: Place
    lines: int
    tokens: int


def with_room(batches: Iterable[Enqueued], limits: Limits) -> set[str]:
    """The ids of those that have room."""
    found: set[str] = set()
    lines = tokens = 0
    for batch in sorted(batches, key=lambda b: b.place):
        lines += batch.lines
        tokens += batch.tokens
        if found and (_over(lines, limits.lines) or _over(tokens, limits.tokens)):
            break
        found.add(batch.place.batch_id)
    return found


def _over(value: int, limit: int | None) -> bool:
    return limit is not None and value > limit
