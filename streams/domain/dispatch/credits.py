"""Who may be given how many lines of which pool, right now.

    free = my share of (credits - held) - lines of mine in line.ready that the worker hasn't read

`credits` and `held` are what the worker says of itself; what it has read is in `held`, or done.
A released slice goes through its partition in three steps: sending (no offset yet), unread, read.
It leaves when the worker has committed past it: from then on its outcome is under way.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from schemas.records import ControllerLoad, PartitionSeen, WorkerLoad
from streams.domain.dispatch.share import Claim, divide
from streams.domain.dispatch.slice import Slice

#: A load that is older tells nothing: its process publishes each second.
STALE_AFTER_MS = 3000
#: A process that is silent for so long is forgotten; its name will not come back.
_GONE_AFTER_MS = 10 * 60_000


@dataclass(slots=True)
class _Worker:
    load: WorkerLoad
    heard_at_ms: int
    credits: dict[str, int]
    held: dict[str, int]
    partitions: tuple[int, ...]
    turn: int = 0


@dataclass(slots=True)
class _Partition:
    owner: str | None = None
    next_offset: int = 0
    unread: deque[Slice] = field(default_factory=deque)
    read: deque[Slice] = field(default_factory=deque)
    #: Lines by pool that are being sent or not read yet.
    waiting: dict[str, int] = field(default_factory=dict)

    def count(self, slice_: Slice, sign: int) -> None:
        self.waiting[slice_.pool] = self.waiting.get(slice_.pool, 0) + sign * slice_.size


@dataclass(frozen=True, slots=True)
class Grant:
    """A worker that may be given `free` lines of a pool, of `credits` in all."""

    worker: str
    free: int
    credits: int


class Credits:
    """The workers' credits as this controller may use them."""

    def __init__(self, controller: str) -> None:
        self._me = controller
        self._workers: dict[str, _Worker] = {}
        self._partitions: dict[int, _Partition] = {}
        self._others: dict[str, tuple[ControllerLoad, int]] = {}

    def worker_load(self, load: WorkerLoad, now_ms: int) -> list[Slice]:
        """Takes in a worker's load; the slices that it has committed past."""
        known = self._workers.get(load.worker)
        if known is None:
            self._forget_gone(now_ms)
        self._workers[load.worker] = _Worker(
            load=load,
            heard_at_ms=now_ms,
            credits={p.pool: p.credits for p in load.pools},
            held={p.pool: p.held for p in load.pools},
            partitions=tuple(p.partition for p in load.partitions),
            turn=known.turn if known else 0,
        )
        for number in known.partitions if known else ():
            partition = self._partition(number)
            if partition.owner == load.worker:
                partition.owner = None
        committed: list[Slice] = []
        for seen in load.partitions:
            committed += self._advance(load.worker, seen)
        return committed

    def controller_load(self, load: ControllerLoad, now_ms: int) -> None:
        """Takes in another controller's backlog; its own is ignored."""
        if load.controller != self._me:
            self._others[load.controller] = (load, now_ms)

    def grants(self, pool: str, mine: Claim, now_ms: int) -> list[Grant]:
        """Every worker that may be given lines of the pool, `mine` being what waits here."""
        found = (self.grant(worker, pool, mine, now_ms) for worker in self._workers)
        return [grant for grant in found if grant is not None]

    def grant(self, worker: str, pool: str, mine: Claim, now_ms: int) -> Grant | None:
        """What the worker may be given; None if nothing."""
        known = self._workers[worker]
        if known.load.stopping or not known.partitions or self._stale(known.heard_at_ms, now_ms):
            return None
        credits_ = known.credits.get(pool, 0)
        open_ = credits_ - known.held.get(pool, 0)
        if open_ <= 0:
            return None
        waiting = sum(self._partition(p).waiting.get(pool, 0) for p in known.partitions)
        free = self._share(pool, mine, waiting, open_, known.load.at_ms, now_ms) - waiting
        return Grant(worker, free, credits_) if free > 0 else None

    def loads(self, now_ms: int) -> list[WorkerLoad]:
        """The workers that live and don't leave, as they said last."""
        return [
            worker.load
            for worker in self._workers.values()
            if not worker.load.stopping and not self._stale(worker.heard_at_ms, now_ms)
        ]

    def served(self, now_ms: int) -> set[str]:
        """Pools that some worker serves, whether or not it takes anything just now."""
        return {pool.pool for load in self.loads(now_ms) for pool in load.pools}

    def others(self, pool: str, now_ms: int) -> list[Claim]:
        """What waits for the pool at other controllers."""
        return [
            Claim(load.controller, backlog.lines, max(1, backlog.tenants))
            for load, heard_at_ms in self._others.values()
            if not self._stale(heard_at_ms, now_ms)
            for backlog in load.pools
            if backlog.pool == pool and backlog.lines > 0
        ]

    def owner(self, partition: int, now_ms: int) -> str | None:
        """The worker that reads the partition, if one is known to."""
        owner = self._partition(partition).owner
        known = self._workers.get(owner) if owner else None
        return None if known is None or self._stale(known.heard_at_ms, now_ms) else owner

    def next_partition(self, worker: str) -> int:
        """A partition of the worker; they take turns."""
        known = self._workers[worker]
        known.turn += 1
        return known.partitions[known.turn % len(known.partitions)]

    def take(self, slice_: Slice) -> None:
        """The slice is on its way to its partition."""
        self._partition(slice_.partition).count(slice_, +1)

    def untake(self, slice_: Slice) -> None:
        """The slice was not sent after all."""
        self._partition(slice_.partition).count(slice_, -1)

    def sent(self, slice_: Slice) -> None:
        """The slice has its offset."""
        partition = self._partition(slice_.partition)
        if slice_.offset < partition.next_offset:
            partition.count(slice_, -1)
            _insert(partition.read, slice_)
        else:
            _insert(partition.unread, slice_)

    def waiting(self, pool: str) -> int:
        """Lines of the pool that are released and not read by any worker yet."""
        return sum(p.waiting.get(pool, 0) for p in self._partitions.values())

    def _advance(self, worker: str, seen: PartitionSeen) -> list[Slice]:
        partition = self._partition(seen.partition)
        partition.owner = worker
        partition.next_offset = seen.next_offset
        while partition.unread and partition.unread[0].offset < seen.next_offset:
            partition.count(partition.unread[0], -1)
            partition.read.append(partition.unread.popleft())
        # A worker that takes a partition over starts at the commit and reads some slices again.
        while partition.read and partition.read[-1].offset >= seen.next_offset:
            partition.count(partition.read[-1], +1)
            partition.unread.appendleft(partition.read.pop())
        committed: list[Slice] = []
        while partition.read and partition.read[0].offset < seen.committed:
            committed.append(partition.read.popleft())
        return committed

    def _share(
        self, pool: str, mine: Claim, waiting: int, open_: int, taken_at_ms: int, now_ms: int
    ) -> int:
        others = self.others(pool, now_ms)
        if not others:
            return open_
        claims = [Claim(mine.controller, mine.lines + waiting, mine.tenants), *others]
        # The turn follows from the worker's own record, which every controller sees alike.
        return divide(claims, open_, taken_at_ms // 1000)[mine.controller]

    def _forget_gone(self, now_ms: int) -> None:
        for name in [
            name
            for name, worker in self._workers.items()
            if now_ms - worker.heard_at_ms > _GONE_AFTER_MS
        ]:
            del self._workers[name]

    def _partition(self, number: int) -> _Partition:
        found = self._partitions.get(number)
        if found is None:
            found = self._partitions[number] = _Partition()
        return found

    @staticmethod
    def _stale(heard_at_ms: int, now_ms: int) -> bool:
        return now_ms - heard_at_ms > STALE_AFTER_MS


def _insert(slices: deque[Slice], slice_: Slice) -> None:
    """Keeps them in offset order; sends are acknowledged nearly in that order."""
    place = len(slices)
    while place and slices[place - 1].offset > slice_.offset:
        place -= 1
    slices.insert(place, slice_)
