"""Budgets: what may be spent in a period, and what was spent by then.

Money is spent on the UTC day on which lines come in. A batch's snapshot tells its usage of later
days than that of its creation apart; each day's part costs what the batch cost with it less what
it cost before, so that the days add up to the batch's cost to the micro-unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from schemas.records import BatchSnapshot, BatchStatus, Usage
from streams.domain.billing.batches import used_by_model
from streams.domain.billing.cost import NoPriceError, cost
from streams.domain.billing.prices import PriceBook
from streams.domain.billing.tokens import subtract
from streams.domain.clock import DAY_MS, day_of

#: Ended batches remembered, so that a snapshot that comes again is not counted again.
_MOST_ENDED = 100_000
_BEFORE = (BatchStatus.UNKNOWN, BatchStatus.VALIDATING)
#: What a batch is once it has spent all that it will.
ENDED = frozenset(
    {BatchStatus.COMPLETED, BatchStatus.FAILED, BatchStatus.EXPIRED, BatchStatus.CANCELLED}
)


class BudgetPeriod(StrEnum):
    """After what time a budget begins anew."""

    #: At midnight UTC.
    DAY = "day"
    #: At midnight UTC before the first of a month.
    MONTH = "month"
    #: Never.
    TOTAL = "total"


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent in each period, in micro-units of the price book's currency."""

    micros: int
    period: BudgetPeriod

    def first_day(self, now_ms: int) -> int:
        """The first UTC day of the period, counted from 1970."""
        match self.period:
            case BudgetPeriod.DAY:
                return day_of(now_ms)
            case BudgetPeriod.MONTH:
                return day_of(now_ms) - datetime.fromtimestamp(now_ms / 1000, UTC).day + 1
            case BudgetPeriod.TOTAL:
                return 0

    def ends_at_ms(self, now_ms: int) -> int | None:
        """When the next period begins, Unix milliseconds; None if never."""
        match self.period:
            case BudgetPeriod.DAY:
                return (day_of(now_ms) + 1) * DAY_MS
            case BudgetPeriod.MONTH:
                first = datetime.fromtimestamp(self.first_day(now_ms) * DAY_MS / 1000, UTC)
                month = (first.year * 12 + first.month) % 12 + 1
                after = first.replace(year=first.year + (month == 1), month=month)
                return int(after.timestamp()) * 1000
            case BudgetPeriod.TOTAL:
                return None


def budget_of(micros: int | None, period: str) -> Budget | None:
    """The budget in a record; None if it has none. A period that nobody knows counts as total."""
    if micros is None:
        return None
    known = period in [one.value for one in BudgetPeriod]
    return Budget(micros, BudgetPeriod(period) if known else BudgetPeriod.TOTAL)


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


@dataclass(slots=True)
class SpentBatch:
    """A running batch. estimate: of its cost, as long as no line of it is in; None if unknown."""

    batch_id: str
    revision: int
    key_id: str | None
    by_day: Mapping[int, int]
    estimate: int | None


@dataclass(slots=True)
class SpentTenant:
    """What a tenant has spent by day, and each of its keys; and its running batches."""

    by_day: dict[int, int] = field(default_factory=dict)
    by_key: dict[str, dict[int, int]] = field(default_factory=dict)
    running: dict[str, SpentBatch] = field(default_factory=dict)

    def since(self, day: int, key_id: str | None = None) -> int:
        """What was spent on that UTC day and later, with this key or by all of the tenant."""
        days = self.by_day if key_id is None else self.by_key.get(key_id, {})
        return sum(micros for on, micros in days.items() if on >= day)

    def change(self, key_id: str | None, before: Mapping[int, int], now: Mapping[int, int]) -> None:
        """A batch that had spent this has spent that."""
        for days in (self.by_day, *([] if key_id is None else [self._key(key_id)])):
            for day, micros in before.items():
                days[day] -= micros
            for day, micros in now.items():
                days[day] = days.get(day, 0) + micros

    def _key(self, key_id: str) -> dict[int, int]:
        return self.by_key.setdefault(key_id, {})


class Spent:
    """All that was spent: a fold of batches' snapshots, in whatever order and how often they come.

    A batch counts with its newest snapshot; ended ones are only sums.
    """

    def __init__(self) -> None:
        self._tenants: dict[str, SpentTenant] = {}
        self._ended: dict[str, None] = {}

    def tenant(self, name: str) -> SpentTenant:
        """What this tenant has spent."""
        return self._tenants.setdefault(name, SpentTenant())

    def counts(self, snapshot: BatchSnapshot) -> bool:
        """Whether the batch has begun and isn't known to have ended."""
        return snapshot.batch_id not in self._ended and snapshot.status not in _BEFORE

    def hear(self, book: PriceBook, snapshot: BatchSnapshot) -> bool:
        """A batch has changed; False if that is no news."""
        batch_id = snapshot.batch_id
        if not self.counts(snapshot):
            return False
        tenant = self.tenant(snapshot.tenant)
        known = tenant.running.get(batch_id)
        if known is not None and snapshot.revision < known.revision:
            return False
        by_day = spent_by_day(book, snapshot)
        tenant.change(snapshot.key_id, known.by_day if known else {}, by_day)
        if snapshot.status in ENDED:
            tenant.running.pop(batch_id, None)
            self._end(batch_id)
            return True
        began = snapshot.completed + snapshot.failed > 0
        estimate = None if began else snapshot.estimated_cost_micros
        tenant.running[batch_id] = SpentBatch(
            batch_id, snapshot.revision, snapshot.key_id, by_day, estimate
        )
        return True

    def _end(self, batch_id: str) -> None:
        self._ended[batch_id] = None
        if len(self._ended) > _MOST_ENDED:
            del self._ended[next(iter(self._ended))]
