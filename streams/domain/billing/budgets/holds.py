"""Which batches are held because a budget is used up, theirs or their tenant's.

    snapshots ─► Spent: what was spent ─► Purses: whom that holds
        └► Unpriced: of tenants without a budget, priced if they get one

Every controller hears the same budgets and the same batches, and so comes to the same answer. A
hold is no pause: callers neither set nor lift it, and it ends when there is money again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from msgspec.structs import replace

from schemas.records import ApiKeyRecord, BatchSnapshot, BudgetHold, TenantRecord
from streams.domain.billing.budgets.budget import Budget, budget_of
from streams.domain.billing.budgets.purse import Purse
from streams.domain.billing.budgets.spent import ENDED, Change, Spent, SpentBatch
from streams.domain.billing.prices.book import PriceBook
from streams.domain.clock import day_of

#: A key's id; None stands for the tenant itself.
KeyId = str | None


class Unpriced:
    """The newest snapshots of running batches of which nobody has asked what they cost."""

    def __init__(self) -> None:
        self._tenants: dict[str, dict[str, BatchSnapshot]] = {}

    def keep(self, snapshot: BatchSnapshot) -> None:
        """Keeps what the cost follows from, if it is news."""
        known = self._tenants.setdefault(snapshot.tenant, {})
        if _is_newest(snapshot, known.get(snapshot.batch_id)):
            known[snapshot.batch_id] = replace(snapshot, metadata={}, commands=(), prompts=())

    def newest(self, snapshot: BatchSnapshot) -> BatchSnapshot:
        """This one or the one that was kept, which is no longer."""
        kept = self._tenants.get(snapshot.tenant, {}).pop(snapshot.batch_id, None)
        return snapshot if kept is None or _is_newest(snapshot, kept) else kept

    def take(self, tenant: str) -> Collection[BatchSnapshot]:
        """All of a tenant, which are no longer kept."""
        return self._tenants.pop(tenant, {}).values()


class BudgetHolds:
    """The budgets of tenants and keys, what was spent of them, and the batches that are held.

    Without a price book nothing is spent, and so nothing is held.
    """

    def __init__(self, prices: Callable[[], PriceBook | None] = lambda: None) -> None:
        self._prices = prices
        self._spent = Spent()
        self._unpriced = Unpriced()
        self._budgets: dict[str, dict[KeyId, Budget]] = {}
        self._purses: dict[str, dict[KeyId, Purse]] = {}
        #: Tenants that have other budgets than their purses are for.
        self._stale: set[str] = set()
        self._moved: dict[str, set[str]] = {}
        self._day = -1

    def hear_tenant(self, record: TenantRecord) -> None:
        """An operator has set what the tenant may spend, or something else of it."""
        self._set(record.tenant, None, budget_of(record.budget_micros, record.budget_period))

    def hear_key(self, record: ApiKeyRecord) -> None:
        """As of a key. The budget of a revoked key goes on for its batches."""
        budget = budget_of(record.budget_micros, record.budget_period)
        self._set(record.tenant, record.key_id, budget)

    def hear_batch(self, snapshot: BatchSnapshot) -> Collection[str]:
        """A batch has changed. Returns the batches that may go on now and couldn't, or could."""
        book = self._prices()
        if book is None or not self._spent.counts(snapshot):
            return ()
        if snapshot.status not in ENDED and not self.applies(snapshot.tenant):
            self._unpriced.keep(snapshot)
            return ()
        change = self._spent.hear(book, self._unpriced.newest(snapshot))
        moved = () if change is None else self._pay(snapshot.tenant, change)
        if moved:
            self._moved.setdefault(snapshot.tenant, set()).update(moved)
        return moved

    def applies(self, tenant: str) -> bool:
        """Whether what the tenant spends is limited at all, and known."""
        return tenant in self._budgets and self._prices() is not None

    @property
    def unpriced(self) -> bool:
        """Whether there are budgets that can't be enforced, as there is no price book."""
        return bool(self._budgets) and self._prices() is None

    def lets(self, tenant: str, batch_id: str) -> bool:
        """Whether lines of the batch may be released, as far as money goes."""
        if not self.applies(tenant):
            return True
        batch = self._spent.tenant(tenant).running.get(batch_id)
        return batch is not None and self._hold(tenant, batch) is None

    def hold(self, tenant: str, batch_id: str) -> BudgetHold | None:
        """Why a batch is held; None if it isn't, or isn't known."""
        if tenant not in self._purses:
            return None
        batch = self._spent.tenant(tenant).running.get(batch_id)
        return None if batch is None else self._hold(tenant, batch)

    def holds(self) -> Mapping[str, BudgetHold]:
        """Why each batch that is held is held, by id; goes through all of tenants with budgets."""
        found = {}
        for tenant in self._purses:
            for batch_id in self._spent.tenant(tenant).running:
                hold = self.hold(tenant, batch_id)
                if hold is not None:
                    found[batch_id] = hold
        return found

    def settle(self, now_ms: int) -> Mapping[str, Collection[str]]:
        """Begins the periods that begin by now, and new budgets.

        Returns, by tenant, the batches that may go on and couldn't at the last time, or could.
        """
        if day_of(now_ms) != self._day:
            self._day = day_of(now_ms)
            self._stale |= self._budgets.keys()
        for tenant in self._stale:
            self._fill(tenant, now_ms)
        self._stale = set()
        moved, self._moved = self._moved, {}
        return moved

    def _set(self, tenant: str, key_id: KeyId, budget: Budget | None) -> None:
        budgets = self._budgets.get(tenant, {})
        if budgets.get(key_id) == budget:
            return
        self._budgets[tenant] = budgets
        if budget is None:
            budgets.pop(key_id, None)
        else:
            budgets[key_id] = budget
        if not budgets:
            del self._budgets[tenant]
        self._stale.add(tenant)

    def _fill(self, tenant: str, now_ms: int) -> None:
        """Makes the purses of a tenant's budgets as they are in the present period."""
        spent, book = self._spent.tenant(tenant), self._prices()
        self._purses.pop(tenant, None)
        if book is not None and tenant in self._budgets:
            for snapshot in self._unpriced.take(tenant):
                self._spent.hear(book, snapshot)
            running: dict[KeyId, list[SpentBatch]] = {None: [*spent.running.values()]}
            for batch in running[None]:
                if batch.key_id:
                    running.setdefault(batch.key_id, []).append(batch)
            self._purses[tenant] = {
                key_id: Purse(budget, book.currency, spent, key_id, running.get(key_id, ()), now_ms)
                for key_id, budget in self._budgets[tenant].items()
            }
        self._moved.setdefault(tenant, set()).update(spent.running)

    def _pay(self, tenant: str, change: Change) -> Collection[str]:
        before, now = change.before, change.now
        waited = before is None or self._hold(tenant, before) is not None
        moved: set[str] = set()
        for purse in self._purses_of(tenant, now):
            moved.update(purse.change(change))
        if not now.ended and waited != (self._hold(tenant, now) is not None):
            moved.add(now.batch_id)
        return moved

    def _hold(self, tenant: str, batch: SpentBatch) -> BudgetHold | None:
        holds = (purse.hold(batch) for purse in self._purses_of(tenant, batch))
        return next((hold for hold in holds if hold is not None), None)

    def _purses_of(self, tenant: str, batch: SpentBatch) -> Iterator[Purse]:
        purses = self._purses.get(tenant, {})
        for key_id in (None, batch.key_id) if batch.key_id else (None,):
            if key_id in purses:
                yield purses[key_id]


def _is_newest(snapshot: BatchSnapshot, known: BatchSnapshot | None) -> bool:
    return known is None or snapshot.revision >= known.revision
