"""Budgets: what may be spent in a period of UTC days."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from streams.domain.clock import DAY_MS, day_of

#: More days than there will be.
_FOR_EVER = 1 << 32


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

    def days(self, now_ms: int) -> range:
        """The UTC days of the period, counted from 1970."""
        ends_at_ms = self.ends_at_ms(now_ms)
        end = _FOR_EVER if ends_at_ms is None else day_of(ends_at_ms)
        return range(self._first_day(now_ms), end)

    def ends_at_ms(self, now_ms: int) -> int | None:
        """When the next period begins, Unix milliseconds; None if never."""
        match self.period:
            case BudgetPeriod.DAY:
                return (day_of(now_ms) + 1) * DAY_MS
            case BudgetPeriod.MONTH:
                first = datetime.fromtimestamp(self._first_day(now_ms) * DAY_MS / 1000, UTC)
                month = (first.year * 12 + first.month) % 12 + 1
                after = first.replace(year=first.year + (month == 1), month=month)
                return int(after.timestamp()) * 1000
            case BudgetPeriod.TOTAL:
                return None

    def _first_day(self, now_ms: int) -> int:
        match self.period:
            case BudgetPeriod.DAY:
                return day_of(now_ms)
            case BudgetPeriod.MONTH:
                return day_of(now_ms) - datetime.fromtimestamp(now_ms / 1000, UTC).day + 1
            case BudgetPeriod.TOTAL:
                return 0


def budget_of(micros: int | None, period: str) -> Budget | None:
    """The budget in a record; None if it has none. A period that nobody knows counts as total."""
    if micros is None:
        return None
    known = period in [one.value for one in BudgetPeriod]
    return Budget(micros, BudgetPeriod(period) if known else BudgetPeriod.TOTAL)
