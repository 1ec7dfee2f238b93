"""A budget in one of its periods: what is spent of it, and which batches it holds for that.

    estimates of batches that have not begun:   3  5  5  8 │ 9  12      nothing left: all are held
                                                           └ what is left: these are held

What a batch spends moves that line; only what lies between its old place and its new one is looked
at, so a tenant may have as many batches as it likes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Collection
from operator import itemgetter

from schemas.records import BudgetHold
from streams.domain.billing.budgets.budget import Budget
from streams.domain.billing.budgets.spent import Change, SpentBatch, SpentTenant

BUDGET_REACHED = "budget_reached"
#: No line of the batch is in, and what it will cost is more than is left.
BUDGET_TOO_SMALL = "budget_too_small"


class Purse:
    """The budget of a tenant or of one of its keys, and the running batches that it is for."""

    def __init__(
        self,
        budget: Budget,
        currency: str,
        spent: SpentTenant,
        key_id: str | None,
        running: Collection[SpentBatch],
        now_ms: int,
    ) -> None:
        """key_id: None if it is the tenant's. running: the batches that it is for."""
        self._budget = budget
        self._currency = currency
        self._scope = "tenant" if key_id is None else "key"
        self._until_ms = budget.ends_at_ms(now_ms)
        self._days = budget.days(now_ms)
        self._spent = spent.within(self._days, key_id)
        self._batches = {batch.batch_id for batch in running}
        #: The smallest estimate first.
        self._not_begun = sorted(_not_begun(running))

    def change(self, change: Change) -> Collection[str]:
        """One of its batches has changed. Returns others that it holds and didn't, or did."""
        before, now = change.before, change.now
        if before is not None:
            self._batches.discard(before.batch_id)
            for entry in _not_begun([before]):
                del self._not_begun[bisect_left(self._not_begun, entry)]
        spent_before = 0 if before is None else before.within(self._days)
        moved = self._spend(now.within(self._days) - spent_before)
        if not now.ended:
            self._batches.add(now.batch_id)
            for entry in _not_begun([now]):
                insort(self._not_begun, entry)
        return moved

    def hold(self, batch: SpentBatch) -> BudgetHold | None:
        """Why it holds a batch of its; None if there is money."""
        if self._left <= 0:
            return self._hold(BUDGET_REACHED)
        if batch.estimate is not None and batch.estimate > self._left:
            return self._hold(BUDGET_TOO_SMALL, batch.estimate)
        return None

    @property
    def _left(self) -> int:
        return self._budget.micros - self._spent

    def _spend(self, micros: int) -> Collection[str]:
        left_before = self._left
        self._spent += micros
        if (left_before <= 0) != (self._left <= 0):
            return [*self._batches]
        low, high = sorted((left_before, self._left))
        first = bisect_right(self._not_begun, low, key=itemgetter(0))
        last = bisect_right(self._not_begun, high, first, key=itemgetter(0))
        return [batch_id for _, batch_id in self._not_begun[first:last]]

    def _hold(self, reason: str, estimate: int | None = None) -> BudgetHold:
        return BudgetHold(
            reason=reason,
            scope=self._scope,
            period=self._budget.period.value,
            budget_micros=self._budget.micros,
            spent_micros=self._spent,
            currency=self._currency,
            until_ms=self._until_ms,
            estimate_micros=estimate,
        )


def _not_begun(batches: Collection[SpentBatch]) -> list[tuple[int, str]]:
    return [(b.estimate, b.batch_id) for b in batches if b.estimate is not None]
