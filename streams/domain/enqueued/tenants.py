"""All running batches of the fleet by tenant, as batch.status tells them, and which of them wait.

Each controller follows the same two topics and keeps the same picture, its own batches included.
While it is not complete nothing of a tenant with limits is released: waiting is always safe. What
has no money (domain.billing.budgets.holds) takes up no room, as if it were paused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from schemas.records import ApiKeyRecord, BatchSnapshot, BatchStatus, TenantRecord
from streams.domain.billing.budgets.holds import BudgetHolds
from streams.domain.enqueued.room import Enqueued, Limits, Place, with_room

#: Ended batches remembered, so that a snapshot that a paused process wrote too late finds them.
_MOST_ENDED = 100_000
_NO_LIMITS = Limits()
#: Statuses before that of running lines; anything else but those is over for good.
_BEFORE = (BatchStatus.UNKNOWN, BatchStatus.VALIDATING)


@dataclass(frozen=True, slots=True)
class _Batch:
    revision: int
    paused: bool
    enqueued: Enqueued

    def goes(self, now_ms: int) -> bool:
        # Where the window is over nothing more is released, even if nobody has said so yet.
        return not self.paused and now_ms < self.enqueued.place.deadline_ms


@dataclass(slots=True)
class _Tenant:
    limits: Limits = _NO_LIMITS
    batches: dict[str, _Batch] = field(default_factory=dict)
    room: set[str] = field(default_factory=set)


class Tenants:
    """What every tenant has enqueued, and has room for.

    limits_known, batches_known: whether the topics were read to their ends once. budgets: which
    batches have no money.
    """

    def __init__(self, budgets: BudgetHolds | None = None) -> None:
        self.budgets = budgets or BudgetHolds()
        self.limits_known = False
        self.batches_known = False
        self._tenants: dict[str, _Tenant] = {}
        self._ended: dict[str, None] = {}
        self._changed: set[str] = set()
        self._moved: set[str] = set()

    def hear_limits(self, record: TenantRecord) -> None:
        """An operator has set a tenant's limits."""
        tenant = self._tenant(record.tenant)
        tenant.limits = Limits(record.max_enqueued_lines, record.max_enqueued_tokens)
        self._changed.add(record.tenant)
        self._moved.update(tenant.batches)
        self.budgets.hear_tenant(record)

    def hear_key(self, record: ApiKeyRecord) -> None:
        """A key was made or revoked, or an operator has set its budget."""
        if record.tenant in self._tenants:
            self._moved.update(self._tenants[record.tenant].batches)
        self.budgets.hear_key(record)

    def hear_batch(self, snapshot: BatchSnapshot) -> None:
        """A batch has changed; an older snapshot than the last one changes nothing."""
        self.budgets.hear_batch(snapshot)
        if snapshot.batch_id in self._ended or snapshot.status in _BEFORE:
            return
        batches = self._tenant(snapshot.tenant).batches
        known = batches.get(snapshot.batch_id)
        if known is not None and snapshot.revision < known.revision:
            return
        if snapshot.status is BatchStatus.IN_PROGRESS:
            if known is None:
                # Its controller may have asked before, and a limit that it waited for be gone.
                self._moved.add(snapshot.batch_id)
            batches[snapshot.batch_id] = _batch_of(snapshot)
        else:
            batches.pop(snapshot.batch_id, None)
            self._end(snapshot.batch_id)
        self._changed.add(snapshot.tenant)

    def settle(self, now_ms: int) -> Collection[str]:
        """Decides anew where something changed, or windows end by now.

        Returns the batches of which `waits` may say something else than at the last time.
        """
        for name, batches in self.budgets.settle(now_ms).items():
            self._changed.add(name)
            self._moved.update(batches)
        for name in [n for n in self._tenants if n in self._changed or self._has_waiting(n)]:
            tenant = self._tenants[name]
            if tenant.limits.any:
                before = tenant.room
                tenant.room = with_room(self._going(name, now_ms), tenant.limits)
                self._moved |= before ^ tenant.room
            elif not tenant.batches:
                del self._tenants[name]
        self._changed.clear()
        moved, self._moved = self._moved, set()
        return moved

    def waits(self, tenant: str, batch_id: str) -> bool:
        """Whether nothing of the batch may be released for now."""
        known = self._tenants.get(tenant)
        if not self.limits_known or not self._has_money(tenant, batch_id):
            return True
        if known is None or not known.limits.any:
            return False
        return not self.batches_known or batch_id not in known.room

    def positions(self, now_ms: int) -> Mapping[str, int]:
        """How many of its tenant's running batches go before each; who can't go on has no place."""
        return dict(self._positions(now_ms)) if self.batches_known else {}

    def _positions(self, now_ms: int) -> Iterator[tuple[str, int]]:
        for name in self._tenants:
            places = [batch.place for batch in self._going(name, now_ms)]
            for number, place in enumerate(sorted(places)):
                yield place.batch_id, number

    def _going(self, name: str, now_ms: int) -> Iterator[Enqueued]:
        for batch_id, batch in self._tenants[name].batches.items():
            if batch.goes(now_ms) and self.budgets.hold(name, batch_id) is None:
                yield batch.enqueued

    def _has_money(self, tenant: str, batch_id: str) -> bool:
        if not self.batches_known:
            return not self.budgets.applies(tenant)
        return self.budgets.lets(tenant, batch_id)

    def _has_waiting(self, name: str) -> bool:
        tenant = self._tenants[name]
        return tenant.limits.any and len(tenant.room) < len(tenant.batches)

    def _tenant(self, name: str) -> _Tenant:
        return self._tenants.setdefault(name, _Tenant())

    def _end(self, batch_id: str) -> None:
        self._ended[batch_id] = None
        if len(self._ended) > _MOST_ENDED:
            del self._ended[next(iter(self._ended))]


def _batch_of(snapshot: BatchSnapshot) -> _Batch:
    left = max(0, snapshot.total - snapshot.completed - snapshot.failed)
    # Rounded up: a batch with lines left has tokens left.
    tokens = -(-snapshot.estimated_input_tokens * left // max(1, snapshot.total))
    place = Place(
        -snapshot.priority, snapshot.expires_at_ms, snapshot.created_at_ms, snapshot.batch_id
    )
    paused = snapshot.paused_at_ms is not None
    return _Batch(snapshot.revision, paused, Enqueued(place, left, tokens))
