"""How many lines are out at each pool, and how many have come in: what a pace is measured by."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Flow:
    """Lines by pool, of all batches: those out now, and those that came in so far."""

    out: Counter[str] = field(default_factory=Counter)
    finished: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Seen:
    """One pool at one moment, as one controller sees it.

    finished: its lines that are in, since it began. out: those released and not in. waits:
    whether lines are to be released. share: its part of what the pool does, above 0 up to 1.
    """

    finished: int
    out: int
    waits: bool
    share: float = 1.0
