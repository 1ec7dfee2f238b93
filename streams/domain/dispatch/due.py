"""Work by deadline, as the workers' gates need it: how many lines must be in by when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise

from schemas.records import DueLines
from streams.domain.dispatch.lane import BatchLines

#: Entries of one pool; a load is published each second.
MAX_ENTRIES = 16
#: Counting goes through all batches, so it is done no more often than a load is published; and
#: with many of them less often, at a few microseconds each.
PERIOD_MS = 1000
_BATCHES_A_PERIOD = 2000


class DueWork:
    """What is due at each pool, counted at most once a period: a second, or more with thousands."""

    def __init__(self) -> None:
        self._counted_at_ms: int | None = None
        self._period_ms = PERIOD_MS
        self._due: Mapping[str, tuple[DueLines, ...]] = {}

    def at(
        self, batches: Collection[BatchLines], served: set[str], now_ms: int
    ) -> Mapping[str, tuple[DueLines, ...]]:
        """By pool. served: pools that workers serve now; a lane's lines are divided over those."""
        last = self._counted_at_ms
        if last is None or not last <= now_ms < last + self._period_ms:
            self._counted_at_ms, self._due = now_ms, _count(batches, served, now_ms)
            self._period_ms = max(PERIOD_MS, PERIOD_MS * len(batches) // _BATCHES_A_PERIOD)
        return self._due


def by_deadline(lines: Mapping[int, int], now_ms: int) -> tuple[DueLines, ...]:
    """At most MAX_ENTRIES entries for lines by deadline.

    Deadlines whose times left differ the least, in proportion, share an entry: the later one's.
    """
    deadlines = sorted(deadline for deadline, count in lines.items() if count > 0)
    steps = [(b - now_ms) / max(1, a - now_ms) for a, b in pairwise(deadlines)]
    widest = sorted(range(len(steps)), key=lambda n: -steps[n])[: MAX_ENTRIES - 1]
    ends = sorted({*widest, len(deadlines) - 1}) if deadlines else []
    entries, start = [], 0
    for end in ends:
        count = sum(lines[deadline] for deadline in deadlines[start : end + 1])
        entries.append(DueLines(deadline_ms=deadlines[end], lines=count))
        start = end + 1
    return tuple(entries)


def _count(
    batches: Iterable[BatchLines], served: set[str], now_ms: int
) -> dict[str, tuple[DueLines, ...]]:
    lines: dict[str, Counter[int]] = {}
    for batch in batches:
        if not batch.is_open(now_ms):
            continue
        for lane, left in zip(batch.lanes, batch.left(), strict=True):
            # With several upstreams each does its part; one that no worker serves does none.
            pools = [pool for pool in lane.pools if pool in served] or lane.pools
            for number, pool in enumerate(pools):
                part = left // len(pools) + (number < left % len(pools))
                lines.setdefault(pool, Counter())[batch.deadline_ms] += part
    return {pool: by_deadline(counts, now_ms) for pool, counts in lines.items()}
