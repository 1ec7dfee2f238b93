"""The dispatcher: which lines run next, where, and how many. Pure; the controller feeds it.

    open, steer, loaded, settle, close ──► batches and their lanes ─┐
                                                                    ├─► release() ─► slices
    worker_load, controller_load ─► credits ────────────────────────┘

Per pool, tenants take turns (deficit round robin), and within a tenant the highest priority goes
first, then the earliest deadline. A line is released only within a worker's credits. What happens
to a slice then:

    release ─► sent (has its offset) ─► read by the worker ─► committed by it ─► settled
                  └─ returned: not sent                          └─ lease over: released again,
                                                                    to the same partition
A lease runs only once the worker has committed past the slice: what waits in Kafka is not lost.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count

from schemas.records import ControllerLoad, OpenRetry, PoolBacklog, WorkerLoad
from streams.domain.dispatch.credits import Credits, Grant
from streams.domain.dispatch.due import DueWork
from streams.domain.dispatch.flow import Flow, Seen
from streams.domain.dispatch.lane import BatchLines, Lane, OpenBatch
from streams.domain.dispatch.lease import Leases
from streams.domain.dispatch.queue import PoolQueue
from streams.domain.dispatch.share import Claim
from streams.domain.dispatch.slice import LineAt, Slice

#: Most lines and bytes of a slice: it travels as one record and is acked as one.
MAX_SLICE_LINES = 64
MAX_SLICE_BYTES = 512 * 1024
#: A slice takes at most this part of a worker's credits, so that they aren't all acked at once.
CREDITS_PER_SLICE = 8
#: A committed line whose outcome has not arrived after this long is released again. Far above
#: the longest time that a collector keeps an outcome, because running twice costs more.
LEASE_MS = 15 * 60_000
#: A line that must go to a partition whose worker has no credits is tried again after this.
_PINNED_WAIT_MS = 200
#: Slices of one pool in one call, so that one pool's flood leaves the others their turn.
_MAX_SLICES = 256


@dataclass(frozen=True, slots=True)
class Want:
    """Plan rows that a lane needs: `rows` from `cursor` on."""

    lane: Lane
    cursor: int
    rows: int


class Dispatcher:
    """Everything that is to run and everything that is out, for one assignment of partitions."""

    def __init__(self, controller: str, *, lease_ms: int = LEASE_MS) -> None:
        self._controller = controller
        self._leases = Leases(lease_ms)
        self._credits = Credits(controller)
        self._flow = Flow()
        self._batches: dict[str, BatchLines] = {}
        self._queues: dict[str, PoolQueue] = {}
        self._backlogs: dict[str, int] = {}
        self._due = DueWork()
        self._wants: list[Want] = []
        self._order = count()
        self._timers: list[tuple[int, int, Lane]] = []
        self._now_ms = 0

    # Batches.

    def open(self, batch: OpenBatch) -> None:
        """The batch's lines may be released."""
        lines = self._batches[batch.batch_id] = BatchLines(batch, self._leases, self._flow)
        for lane in lines.lanes:
            self._enqueue(lane)

    def close(self, batch_id: str) -> None:
        """Nothing more of the batch is released, from this moment on."""
        batch = self._batches.pop(batch_id, None)
        if batch is not None:
            self._set_running(batch, False)
            batch.forget()

    def steer(self, batch_id: str, priority: int, deadline_ms: int, *, paused: bool) -> None:
        """Goes on under these terms, from this moment on; paused: nothing more is released."""
        batch = self._batches.get(batch_id)
        if batch is None:
            return
        for lane in batch.lanes:
            for pool in lane.pools:
                if pool in self._queues:
                    self._queues[pool].remove(lane)
        batch.priority, batch.deadline_ms, batch.paused = priority, deadline_ms, paused
        self._set_running(batch, not (paused or batch.held))

    def hold(self, batch_id: str, held: bool) -> None:
        """Releases nothing of the batch, as its tenant has no room for it; or goes on."""
        batch = self._batches.get(batch_id)
        if batch is not None and batch.held != held:
            batch.held = held
            self._set_running(batch, not (batch.paused or held))

    def is_open(self, batch_id: str) -> bool:
        """Whether slices of the batch may still be sent."""
        batch = self._batches.get(batch_id)
        return batch is not None and batch.running

    def settle(
        self, batch_id: str, accepted: Iterable[int], retries: Iterable[OpenRetry], now_ms: int
    ) -> None:
        """Outcomes were folded: these lines are in, those wait for another attempt."""
        batch = self._batches.get(batch_id)
        if batch is None:
            return
        batch.accept(accepted)
        for retry in retries:
            lane = batch.retry(retry)
            if lane is not None:
                self._wait(lane, max(now_ms, retry.not_before_ms))
                self._recount(lane)

    def found_out(
        self,
        batch_id: str,
        pool: str,
        place: tuple[int, int] | None,
        attempts: Sequence[tuple[int, int]],
        now_ms: int,
    ) -> None:
        """After a restart: these (line, attempt) are out, at this (partition, offset).

        Without a place their outcomes are written already and only not folded yet.
        """
        batch = self._batches.get(batch_id)
        partition, offset = place or (-1, -1)
        slice_ = Slice(batch_id, pool, partition, len(attempts), offset=offset)
        if place is not None:
            # Even lines of a batch that has ended take up credits until they are read.
            self._credits.take(slice_)
            self._credits.sent(slice_)
        if batch is not None:
            batch.find_out(slice_, attempts)
            if place is None:
                self._leases.start(slice_, now_ms)

    # Plan rows.

    def wants(self) -> list[Want]:
        """Plan rows to load; each is answered by loaded() or not_loaded()."""
        wants, self._wants = self._wants, []
        return wants

    def loaded(self, want: Want, rows: Iterable[LineAt], cursor: int) -> None:
        """The lane's rows up to the new cursor; rows of other lanes are left out."""
        want.lane.load(rows, cursor)
        self._enqueue(want.lane)

    def not_loaded(self, want: Want, retry_at_ms: int) -> None:
        """They can't be read now; the lane waits."""
        want.lane.loading = False
        self.block(want.lane, retry_at_ms)

    def block(self, lane: Lane, until_ms: int) -> None:
        """Nothing of the lane is released before then."""
        lane.blocked_until_ms = until_ms
        self._wait(lane, until_ms)

    # Workers and other controllers.

    def worker_load(self, load: WorkerLoad, now_ms: int) -> None:
        """A worker says what it can take and how far it has read."""
        for slice_ in self._credits.worker_load(load, now_ms):
            self._leases.start(slice_, now_ms)

    def controller_load(self, load: ControllerLoad, now_ms: int) -> None:
        """Another controller says what waits at it."""
        self._credits.controller_load(load, now_ms)

    def load(self, now_ms: int) -> ControllerLoad:
        """What waits here, for the other controllers, and is due, for the workers' gates."""
        due = self._due.at(self._batches.values(), self._credits.served(now_ms), now_ms)
        pools = tuple(
            PoolBacklog(pool=pool, lines=claim.lines, tenants=claim.tenants, due=due.get(pool, ()))
            for pool in sorted(self._queues)
            if (claim := self._claim(pool, self._credits.waiting(pool))).lines or due.get(pool)
        )
        return ControllerLoad(controller=self._controller, at_ms=now_ms, pools=pools)

    # What forecasts are made of.

    def batches(self) -> Iterable[BatchLines]:
        """Every open batch."""
        return self._batches.values()

    def workers(self, now_ms: int) -> list[WorkerLoad]:
        """The loads of the workers that live."""
        return self._credits.loads(now_ms)

    def claims(self, pool: str, now_ms: int) -> list[Claim]:
        """What waits to be released to the pool: here first, then at the other controllers."""
        return [self._claim(pool), *self._credits.others(pool, now_ms)]

    def seen(self, now_ms: int) -> dict[str, Seen]:
        """How things stand at each pool."""
        seen = {}
        for pool, queue in self._queues.items():
            mine, *others = self.claims(pool, now_ms)
            tenants = mine.tenants + sum(claim.tenants for claim in others)
            seen[pool] = Seen(
                finished=self._flow.finished[pool],
                out=self._flow.out[pool],
                waits=bool(queue) and mine.lines > 0,
                share=mine.tenants / tenants,
            )
        return seen

    # Releasing.

    def release(self, now_ms: int) -> list[Slice]:
        """Chooses what the credits allow; each slice is answered by sent() or returned()."""
        self._now_ms = now_ms
        self._wake(now_ms)
        released: list[Slice] = []
        for queue in self._queues.values():
            if queue:
                released += self._release_pool(queue, now_ms)
        return released

    def sent(self, slice_: Slice, offset: int) -> None:
        """The slice has its place in line.ready."""
        slice_.offset = offset
        self._credits.sent(slice_)

    def returned(self, slice_: Slice, retry_at_ms: int) -> None:
        """The slice was not sent; its lines wait until then."""
        self._credits.untake(slice_)
        batch = self._batches.get(slice_.batch_id)
        for lane in batch.take_back(slice_, retry_at_ms, None) if batch else ():
            self._wait(lane, retry_at_ms)
            self._recount(lane)

    def due_at(self) -> int | None:
        """When release() should be called even if nothing is heard until then."""
        heads = (self._timers[0][0] if self._timers else None, self._leases.next_end_ms())
        return min((head for head in heads if head is not None), default=None)

    def _release_pool(self, queue: PoolQueue, now_ms: int) -> list[Slice]:
        mine = self._claim(queue.pool)
        grants = [(-g.free, g.worker) for g in self._credits.grants(queue.pool, mine, now_ms)]
        heapq.heapify(grants)
        released: list[Slice] = []
        while grants and len(released) < _MAX_SLICES:
            lane = self._head(queue, now_ms)
            if lane is None:
                break
            budget = queue.budget()
            if lane.cost(now_ms) > budget:
                queue.pass_turn()
                continue
            pin = lane.pin(now_ms)
            grant = self._grant_for(queue.pool, mine, grants, pin, now_ms)
            if grant is None:
                # With a pin the lane's next line waits or may go anywhere; else credits are gone.
                self._put_off(lane, pin, now_ms)
                continue
            slice_, cost = self._cut(lane, queue.pool, grant, budget, pin, now_ms)
            queue.spend(cost)
            released.append(slice_)
        return released

    def _grant_for(
        self, pool: str, mine: Claim, grants: list[tuple[int, str]], pin: int | None, now_ms: int
    ) -> Grant | None:
        """The pinned partition's worker, or else the worker with the most free credits."""
        if pin is not None:
            owner = self._credits.owner(pin, now_ms)
            return self._credits.grant(owner, pool, mine, now_ms) if owner else None
        while grants:
            free, worker = grants[0]
            grant = self._credits.grant(worker, pool, mine, now_ms)
            if grant is None:
                heapq.heappop(grants)
            elif grant.free != -free:
                heapq.heapreplace(grants, (-grant.free, worker))
            else:
                return grant
        return None

    def _put_off(self, lane: Lane, pin: int | None, now_ms: int) -> None:
        if pin is None:
            return
        if self._credits.owner(pin, now_ms) is None:
            lane.repin(now_ms, None)
        else:
            lane.repin(now_ms + _PINNED_WAIT_MS, pin)
            self._wait(lane, now_ms + _PINNED_WAIT_MS)

    def _cut(
        self, lane: Lane, pool: str, grant: Grant, budget: int, pin: int | None, now_ms: int
    ) -> tuple[Slice, int]:
        limit = min(grant.free, MAX_SLICE_LINES, max(1, grant.credits // CREDITS_PER_SLICE))
        picked, cost = lane.pick(
            now_ms, limit=limit, max_bytes=MAX_SLICE_BYTES, budget=budget, pin=pin
        )
        batch = lane.batch
        partition = self._credits.next_partition(grant.worker) if pin is None else pin
        lines = tuple(sorted(picked))
        slice_ = Slice(batch.batch_id, pool, partition, len(lines), lane, lines)
        batch.release(slice_, lane, picked)
        batch.released_at_ms = now_ms
        slice_.tail = batch.is_tail()
        self._credits.take(slice_)
        self._feed(lane)
        self._recount(lane)
        return slice_, cost

    def _head(self, queue: PoolQueue, now_ms: int) -> Lane | None:
        """The lane whose turn it is, if it has something to release."""
        while (lane := queue.top()) is not None:
            if lane.ready(now_ms):
                return lane
            queue.pop()
            self._feed(lane)
            self._recount(lane)
            if lane.again and lane.batch.is_open(now_ms):
                self._wait(lane, max(lane.again[0].not_before_ms, lane.blocked_until_ms))
        return None

    # Keeping lanes fed, counted and awake.

    def _feed(self, lane: Lane) -> None:
        if lane.hungry():
            lane.loading = True
            self._wants.append(Want(lane, lane.cursor, lane.page()))

    def _enqueue(self, lane: Lane) -> None:
        """The lane may have something; if not, it is taken out again when its turn comes."""
        if not lane.batch.running:
            return
        self._recount(lane)
        for pool in lane.pools:
            queue = self._queues.get(pool)
            if queue is None:
                queue = self._queues[pool] = PoolQueue(pool)
            queue.push(lane)

    def _wait(self, lane: Lane, until_ms: int) -> None:
        heapq.heappush(self._timers, (until_ms, next(self._order), lane))

    def _wake(self, now_ms: int) -> None:
        while self._timers and self._timers[0][0] <= now_ms:
            self._enqueue(heapq.heappop(self._timers)[2])
        for slice_ in self._leases.over(now_ms):
            batch = self._batches.get(slice_.batch_id)
            partition = slice_.partition if slice_.partition >= 0 else None
            for lane in batch.take_back(slice_, now_ms, partition) if batch else ():
                self._enqueue(lane)

    def _set_running(self, batch: BatchLines, running: bool) -> None:
        batch.running = running
        for lane in batch.lanes:
            if running:
                self._enqueue(lane)
            else:
                self._recount(lane)

    def _recount(self, lane: Lane) -> None:
        backlog = lane.backlog(self._now_ms)
        change = backlog - lane.counted
        lane.counted = backlog
        for pool in lane.pools:
            self._backlogs[pool] = self._backlogs.get(pool, 0) + change

    def _claim(self, pool: str, sending: int = 0) -> Claim:
        tenants = max(1, len(self._queues[pool]))
        return Claim(self._controller, max(0, self._backlogs.get(pool, 0)) + sending, tenants)
