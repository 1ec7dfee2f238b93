"""Which batches are held because a budget is used up, theirs or their tenant's.

Every controller hears the same budgets and the same batches, and so comes to the same answer. A
hold is no pause: callers neither set nor lift it, and it ends when there is money again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec.structs import replace

from schemas.records import ApiKeyRecord, BatchSnapshot, BudgetHold, TenantRecord
from streams.domain.billing.budget import ENDED, Budget, Spent, SpentTenant, budget_of
from streams.domain.billing.prices import PriceBook
from streams.domain.clock import day_of

BUDGET_REACHED = "budget_reached"
#: No line of the batch is in, and what it will cost is more than is left.
BUDGET_TOO_SMALL = "budget_too_small"


class Budgets:
    """The budgets of tenants and keys, what was spent of them, and the batches that are held.

    holds: why each of these is held, by id. Without a price book nothing is spent, and so nothing
    is held.
    """

    def __init__(self, prices: Callable[[], PriceBook | None] = lambda: None) -> None:
        self.holds: Mapping[str, BudgetHold] = {}
        self._prices = prices
        self._spent = Spent()
        # Most tenants have no budget: what their running batches cost is asked if they get one.
        self._unpriced: dict[str, dict[str, BatchSnapshot]] = {}
        self._of_tenants: dict[str, Budget] = {}
        self._of_keys: dict[str, dict[str, Budget]] = {}
        self._held: dict[str, dict[str, BudgetHold]] = {}
        #: The running batches that were there when last decided, of tenants with budgets.
        self._decided: dict[str, frozenset[str]] = {}
        self._changed: set[str] = set()
        self._day = -1

    def hear_tenant(self, record: TenantRecord) -> None:
        """An operator has set what the tenant may spend, or something else of it."""
        _set(self._of_tenants, record.tenant, record.budget_micros, record.budget_period)
        self._changed.add(record.tenant)

    def hear_key(self, record: ApiKeyRecord) -> None:
        """As of a key. The budget of a revoked key goes on for its batches."""
        keys = self._of_keys.setdefault(record.tenant, {})
        _set(keys, record.key_id, record.budget_micros, record.budget_period)
        if not keys:
            del self._of_keys[record.tenant]
        self._changed.add(record.tenant)

    def hear_batch(self, snapshot: BatchSnapshot) -> None:
        """A batch has changed."""
        book, name = self._prices(), snapshot.tenant
        if book is None or not self._spent.counts(snapshot):
            return
        unpriced = self._unpriced.setdefault(name, {})
        known = unpriced.get(snapshot.batch_id)
        if known is None or snapshot.revision >= known.revision:
            unpriced[snapshot.batch_id] = replace(snapshot, metadata={}, commands=(), prompts=())
        if snapshot.status not in ENDED and not self.applies(name):
            return
        self._spent.hear(book, unpriced.pop(snapshot.batch_id))
        self._changed.add(name)
        if not unpriced:
            del self._unpriced[name]

    def applies(self, tenant: str) -> bool:
        """Whether what the tenant spends is limited at all, and known."""
        limited = tenant in self._of_tenants or tenant in self._of_keys
        return limited and self._prices() is not None

    @property
    def unpriced(self) -> bool:
        """Whether there are budgets that can't be enforced, as there is no price book."""
        return bool(self._of_tenants or self._of_keys) and self._prices() is None

    def lets(self, tenant: str, batch_id: str) -> bool:
        """Whether lines of the batch may be released, as far as money goes."""
        if not self.applies(tenant):
            return True
        return batch_id in self._spent.tenant(tenant).running and batch_id not in self.holds

    def settle(self, now_ms: int) -> set[str]:
        """Decides anew where something changed or a day began; whose batches that concerns."""
        day = day_of(now_ms)
        names = self._changed
        if day != self._day:
            self._day = day
            names = {*names, *self._of_tenants, *self._of_keys}
        self._changed = set()
        moved = {name for name in names if self._decide(name, now_ms)}
        if names:
            self.holds = {b: hold for held in self._held.values() for b, hold in held.items()}
        return moved

    def _decide(self, name: str, now_ms: int) -> bool:
        """Whether other batches of the tenant may go on than before."""
        before, decided = self._held.pop(name, {}), self._decided.pop(name, frozenset())
        book = self._prices()
        if book is None or not self.applies(name):
            return bool(before)
        for snapshot in self._unpriced.pop(name, {}).values():
            self._spent.hear(book, snapshot)
        held = _held(
            self._spent.tenant(name),
            self._of_tenants.get(name),
            self._of_keys.get(name, {}),
            book.currency,
            now_ms,
        )
        if held:
            self._held[name] = held
        # A batch that was not known waited, too.
        running = self._decided[name] = frozenset(self._spent.tenant(name).running)
        return held.keys() != before.keys() or not running <= decided


def _set(budgets: dict[str, Budget], name: str, micros: int | None, period: str) -> None:
    budget = budget_of(micros, period)
    if budget is None:
        budgets.pop(name, None)
    else:
        budgets[name] = budget


def _held(
    spent: SpentTenant,
    of_tenant: Budget | None,
    of_keys: Mapping[str, Budget],
    currency: str,
    now_ms: int,
) -> dict[str, BudgetHold]:
    """Why each of the tenant's running batches that are held is held."""

    def used(scope: str, budget: Budget, key_id: str | None) -> BudgetHold:
        return BudgetHold(
            reason=BUDGET_REACHED,
            scope=scope,
            period=budget.period.value,
            budget_micros=budget.micros,
            spent_micros=spent.since(budget.first_day(now_ms), key_id),
            currency=currency,
            until_ms=budget.ends_at_ms(now_ms),
        )

    whole = None if of_tenant is None else used("tenant", of_tenant, None)
    keys = {key_id: used("key", budget, key_id) for key_id, budget in of_keys.items()}
    found: dict[str, BudgetHold] = {}
    for batch in spent.running.values():
        own = keys.get(batch.key_id) if batch.key_id else None
        holds = [_judged(hold, batch.estimate) for hold in (whole, own) if hold is not None]
        hold = next((hold for hold in holds if hold is not None), None)
        if hold is not None:
            found[batch.batch_id] = hold
    return found


def _judged(used: BudgetHold, estimate: int | None) -> BudgetHold | None:
    """The hold that follows from what was used of a budget; None if there is money."""
    if used.spent_micros >= used.budget_micros:
        return used
    if estimate is None or used.spent_micros + estimate <= used.budget_micros:
        return None
    return replace(used, reason=BUDGET_TOO_SMALL, estimate_micros=estimate)
