"""What was spent: a fold of batches' snapshots, in whatever order and how often they come.

Money is spent on the UTC day on which lines come in. A batch's snapshot tells its usage of later
days than that of its creation apart; each day's part costs what the batch cost with it less what
it cost before, so that the days add up to the batch's cost to the micro-unit.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

from schemas.records import BatchSnapshot, BatchStatus, Usage
from streams.domain.billing.prices.batch_cost import used_by_model
from streams.domain.billing.prices.book import PriceBook
from streams.domain.billing.prices.cost import NoPriceError, cost
from streams.domain.billing.tokens import subtract
from streams.domain.clock import day_of

#: Ended batches remembered, so that a snapshot that comes again is not counted again.
_MOST_ENDED = 100_000
_BEFORE = (BatchStatus.UNKNOWN, BatchStatus.VALIDATING)
#: What a batch is once it has spent all that it will.
ENDED = frozenset(
    {BatchStatus.COMPLETED, BatchStatus.FAILED, BatchStatus.EXPIRED, BatchStatus.CANCELLED}
)


def spent_by_day(book: PriceBook, batch: BatchSnapshot) -> Mapping[int, int]:
    """What the batch's lines have cost on each UTC day, in micro-units; empty if not known."""
    used = used_by_model(batch)
    if not used:
        return {}
    only = batch.model or ""
    later: dict[int, dict[str, Usage]] = {}
    for part in batch.usage_of_later_days:
        later.setdefault(part.day, {})[part.model or only] = part.usage
    left, found = dict(used), {}
    try:
        now = _billed(book, batch, left)
        for day in sorted(later, reverse=True):
            for model, usage in later[day].items():
                left[model] = subtract(left.get(model, Usage()), usage)
            before = _billed(book, batch, left)
            found[day], now = now - before, before
    except NoPriceError:
        return {}
    first = day_of(batch.created_at_ms)
    found[first] = found.get(first, 0) + now
    return found


def _billed(book: PriceBook, batch: BatchSnapshot, used: Mapping[str, Usage]) -> int:
    return cost(
        book,
        used,
        endpoint=batch.endpoint,
        window=batch.completion_window,
        created_at_ms=batch.created_at_ms,
    ).billed_micros


@dataclass(frozen=True, slots=True)
class SpentBatch:
    """A batch. estimate: of its cost, as long as no line of it is in; None if unknown."""

    batch_id: str
    revision: int
    key_id: str | None
    by_day: Mapping[int, int]
    estimate: int | None
    ended: bool

    def within(self, days: Container[int]) -> int:
        """What it has spent on these UTC days."""
        return _within(self.by_day, days)


@dataclass(frozen=True, slots=True)
class Change:
    """A batch has come from this to that; None: it wasn't known."""

    before: SpentBatch | None
    now: SpentBatch


@dataclass(slots=True)
class SpentTenant:
    """What a tenant has spent by day, and each of its keys; and its running batches."""

    by_day: dict[int, int] = field(default_factory=dict)
    by_key: dict[str, dict[int, int]] = field(default_factory=dict)
    running: dict[str, SpentBatch] = field(default_factory=dict)

    def within(self, days: Container[int], key_id: str | None = None) -> int:
        """What was spent on these UTC days, with this key or by all of the tenant."""
        return _within(self.by_day if key_id is None else self.by_key.get(key_id, {}), days)

    def change(self, change: Change) -> None:
        """A batch has changed."""
        now, before = change.now, change.before
        self._count(now.key_id, now.by_day, 1)
        if before is not None:
            self._count(before.key_id, before.by_day, -1)
        if now.ended:
            self.running.pop(now.batch_id, None)
        else:
            self.running[now.batch_id] = now

    def _count(self, key_id: str | None, by_day: Mapping[int, int], sign: int) -> None:
        for sums in (
            self.by_day,
            *([] if key_id is None else [self.by_key.setdefault(key_id, {})]),
        ):
            for day, micros in by_day.items():
                sums[day] = sums.get(day, 0) + sign * micros


class Spent:
    """All that was spent. A batch counts with its newest snapshot; ended ones are only sums."""

    def __init__(self) -> None:
        self._tenants: dict[str, SpentTenant] = {}
        self._ended: dict[str, None] = {}

    def tenant(self, name: str) -> SpentTenant:
        """What this tenant has spent."""
        return self._tenants.setdefault(name, SpentTenant())

    def counts(self, snapshot: BatchSnapshot) -> bool:
        """Whether the batch has begun and isn't known to have ended."""
        return snapshot.batch_id not in self._ended and snapshot.status not in _BEFORE

    def hear(self, book: PriceBook, snapshot: BatchSnapshot) -> Change | None:
        """A batch has changed; None if that is no news."""
        if not self.counts(snapshot):
            return None
        tenant = self.tenant(snapshot.tenant)
        known = tenant.running.get(snapshot.batch_id)
        if known is not None and snapshot.revision < known.revision:
            return None
        change = Change(known, _spent_batch(book, snapshot))
        tenant.change(change)
        if change.now.ended:
            self._end(snapshot.batch_id)
        return change

    def _end(self, batch_id: str) -> None:
        self._ended[batch_id] = None
        if len(self._ended) > _MOST_ENDED:
            del self._ended[next(iter(self._ended))]


def _spent_batch(book: PriceBook, snapshot: BatchSnapshot) -> SpentBatch:
    began = snapshot.completed + snapshot.failed > 0
    return SpentBatch(
        batch_id=snapshot.batch_id,
        revision=snapshot.revision,
        key_id=snapshot.key_id,
        by_day=spent_by_day(book, snapshot),
        estimate=None if began else snapshot.estimated_cost_micros,
        ended=snapshot.status in ENDED,
    )


def _within(by_day: Mapping[int, int], days: Container[int]) -> int:
    return sum(micros for day, micros in by_day.items() if day in days)
