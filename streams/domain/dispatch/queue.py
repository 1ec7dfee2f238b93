"""Whose turn it is at a pool: deficit round robin over tenants; in each, by priority and deadline.

    ring:    tenant A (deficit 5) -> tenant B (0) -> tenant C (12) -> ...
    tenant:  heap of lanes by (priority, highest first; deadline; creation)

A priority decides within its tenant only: what the tenant may spend in a round, and when its turn
comes, is the same whatever its batches' priorities are.

A lane stands in the queue while it may have something to release. One that turns out to have
nothing is taken out, and whoever gives it something puts it back.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

from streams.domain.dispatch.lane import QUANTUM, Lane

_Entry = tuple[int, int, int, str, int, Lane]


@dataclass(slots=True)
class _Tenant:
    name: str
    lanes: list[_Entry] = field(default_factory=list)
    deficit: int = 0
    in_turn: bool = False


class PoolQueue:
    """The lanes that want credits of one pool, in the order in which they get them."""

    def __init__(self, pool: str) -> None:
        self.pool = pool
        self._tenants: dict[str, _Tenant] = {}
        self._ring: deque[_Tenant] = deque()

    def __len__(self) -> int:
        return len(self._ring)

    def push(self, lane: Lane) -> None:
        """Lets the lane stand in the queue, if it doesn't already."""
        if self.pool in lane.queued_at:
            return
        lane.queued_at.add(self.pool)
        batch = lane.batch
        tenant = self._tenants.get(batch.tenant)
        if tenant is None:
            tenant = self._tenants[batch.tenant] = _Tenant(batch.tenant)
            self._ring.append(tenant)
        order = (-batch.priority, batch.deadline_ms, batch.created_at_ms, batch.batch_id)
        heapq.heappush(tenant.lanes, (*order, lane.number, lane))

    def remove(self, lane: Lane) -> None:
        """Takes the lane out of the queue, as before its place in the order changes."""
        if self.pool not in lane.queued_at:
            return
        lane.queued_at.discard(self.pool)
        # The tenant stays in the ring, with what it may still spend; top() drops it if it is empty.
        tenant = self._tenants[lane.batch.tenant]
        tenant.lanes = [entry for entry in tenant.lanes if entry[-1] is not lane]
        heapq.heapify(tenant.lanes)

    def top(self) -> Lane | None:
        """The lane whose turn it is."""
        while self._ring:
            tenant = self._ring[0]
            if tenant.lanes:
                return tenant.lanes[0][-1]
            self._ring.popleft()
            del self._tenants[tenant.name]
        return None

    def pop(self) -> None:
        """Takes the lane whose turn it is out of the queue."""
        lane = heapq.heappop(self._ring[0].lanes)[-1]
        lane.queued_at.discard(self.pool)

    def budget(self) -> int:
        """What the tenant whose turn it is may still spend; at least QUANTUM if it is alone."""
        tenant = self._ring[0]
        if len(self._ring) == 1:
            tenant.deficit = 0
            return 1 << 30
        if not tenant.in_turn:
            tenant.in_turn = True
            tenant.deficit += QUANTUM
        return tenant.deficit

    def spend(self, cost: int) -> None:
        """The tenant whose turn it is has used this much."""
        if len(self._ring) > 1:
            self._ring[0].deficit -= cost

    def pass_turn(self) -> None:
        """The next tenant's turn."""
        self._ring[0].in_turn = False
        self._ring.rotate(-1)
