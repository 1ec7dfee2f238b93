"""Gathers outcomes by batch and has them packed, in order within each batch.

    take ──► the batch's open buffer ──due──► one pack at a time per batch ──► records finished

Order matters: a later outcome of a batch is never announced before an earlier one, so of two
copies of a line the one with the lower offset is both counted and assembled. Memory is bounded:
where too much waits, the oldest batches are packed first and nothing new is taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from schemas.records import DoneLines, OutcomeKind
from streams.background import Broken, Tasks
from streams.collector.pace import Pace, Waiting
from streams.collector.packer import Packer, Taken
from streams.domain.clock import Clock
from streams.kafka.failpoint import reach

#: Bytes of outcomes that may be held; half of it begins to press the oldest out.
MAX_HELD_BYTES = 64 * 1024 * 1024
#: Records read beyond the oldest unfinished one of a partition, from where that is pressed out:
#: acks are in order, so a slow batch would hold back everyone's.
MAX_SPAN = 1024
#: Batches packed at once.
_WRITERS = 8
#: Batches whose pace is remembered while nothing of them waits.
_MAX_PACES = 10_000
#: About what an outcome takes in memory beside its rendered line.
_OUTCOME_BYTES = 400


class _Batch:
    """One batch: what waits, and whether some of it is being packed."""

    __slots__ = ("batch_id", "pace", "packing", "partition", "records", "timer", "waiting")

    def __init__(self, batch_id: str, partition: int, pace: Pace) -> None:
        self.batch_id = batch_id
        self.partition = partition
        self.pace = pace
        self.records: list[Taken] = []
        self.waiting: Waiting | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.packing = False


class Collector:
    """Everything between reading a record of line.done and acking it."""

    def __init__(
        self,
        packer: Packer,
        clock: Clock,
        broken: Broken,
        *,
        max_held_bytes: int = MAX_HELD_BYTES,
    ) -> None:
        """broken: hears of a pack that ends with an exception, which is a bug."""
        self._packer = packer
        self._clock = clock
        self._max_held_bytes = max_held_bytes
        self._batches: dict[str, _Batch] = {}
        self._paces: dict[str, Pace] = {}
        #: By partition, the unfinished offsets in order, with their batch.
        self._unfinished: dict[int, dict[int, _Batch]] = {}
        self._held_bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._writers = asyncio.Semaphore(_WRITERS)
        self._packs = Tasks(broken)
        self._stopping = False

    @property
    def held_bytes(self) -> int:
        """Bytes of outcomes held now."""
        return self._held_bytes

    async def room(self) -> None:
        """Waits until another record may be taken."""
        await self._room.wait()

    def take(
        self, done: DoneLines, partition: int, offset: int, finished: Callable[[], None]
    ) -> None:
        """Takes a record. `finished` is called when its outcomes are stored and announced."""
        if self._stopping:
            return
        if not done.outcomes:
            finished()
            return
        batch = self._batches.get(done.batch_id)
        if batch is None:
            pace = self._paces.pop(done.batch_id, None) or Pace(self._clock.monotonic_s())
            batch = self._batches[done.batch_id] = _Batch(done.batch_id, partition, pace)
        taken = Taken(done, partition, offset, finished, _size(done))
        batch.records.append(taken)
        self._count(batch, taken)
        self._hold(taken.bytes)
        self._unfinished.setdefault(partition, {})[offset] = batch
        self._schedule(batch)
        self._press(partition, offset)

    def revoked(self, partitions: Iterable[int]) -> None:
        """These partitions are another's now; what waits of them will be delivered again."""
        gone = frozenset(partitions)
        for batch in [b for b in self._batches.values() if b.partition in gone]:
            self._hold(-sum(taken.bytes for taken in batch.records))
            batch.records, batch.waiting = [], None
            _cancel_timer(batch)
            # A pack that runs ends by itself: what it tells again changes nothing.
            del self._batches[batch.batch_id]
        for partition in gone:
            self._unfinished.pop(partition, None)

    async def stop(self, budget_s: float) -> None:
        """Packs what waits; what is not done in time will be delivered again."""
        self._stopping = True
        deadline = self._clock.monotonic_s() + budget_s
        while self._batches and (left := deadline - self._clock.monotonic_s()) > 0:
            for batch in list(self._batches.values()):
                self._pack_now(batch)
            if not self._packs:
                break
            await self._packs.one_done(left)
        await self._packs.stop(0.0)

    def _count(self, batch: _Batch, taken: Taken) -> None:
        waiting = batch.waiting
        if waiting is None:
            waiting = batch.waiting = Waiting(self._clock.monotonic_s())
        waiting.tail = waiting.tail or taken.done.tail
        waiting.bytes += taken.bytes
        waiting.lines += len(taken.done.outcomes)
        for outcome in taken.done.outcomes:
            if outcome.kind is not OutcomeKind.RETRY:
                waiting.finals += 1
                continue
            wait_s = (outcome.retry_at_ms - self._clock.now_ms()) / 1000
            retry_at_s = self._clock.monotonic_s() + wait_s
            if waiting.retry_at_s is None or retry_at_s < waiting.retry_at_s:
                waiting.retry_at_s = retry_at_s

    def _schedule(self, batch: _Batch) -> None:
        """Sets the timer for what waits, or packs it; not while the batch is being packed."""
        if batch.packing or batch.waiting is None:
            return
        _cancel_timer(batch)
        delay_s = batch.pace.due_s(batch.waiting) - self._clock.monotonic_s()
        if delay_s <= 0:
            self._pack_now(batch)
        else:
            loop = asyncio.get_running_loop()
            batch.timer = loop.call_later(delay_s, self._pack_now, batch)

    def _press(self, partition: int, offset: int) -> None:
        oldest, batch = next(iter(self._unfinished[partition].items()))
        if offset - oldest >= MAX_SPAN:
            self._pack_now(batch)
        if self._held_bytes > self._max_held_bytes // 2:
            for batch in list(self._batches.values()):
                self._pack_now(batch)

    def _pack_now(self, batch: _Batch) -> None:
        if batch.packing or batch.waiting is None:
            return
        _cancel_timer(batch)
        records, lines = batch.records, batch.waiting.lines
        batch.records, batch.waiting, batch.packing = [], None, True
        self._packs.start(self._pack(batch, records, lines))

    async def _pack(self, batch: _Batch, records: list[Taken], lines: int) -> None:
        async with self._writers:
            await self._packer.pack(records)
        for taken in records:
            self._unfinished.get(taken.partition, {}).pop(taken.offset, None)
            taken.finished()
        reach("collector.acked")
        batch.packing = False
        batch.pace.packed(lines, self._clock.monotonic_s())
        self._hold(-sum(taken.bytes for taken in records))
        self._after(batch)

    def _after(self, batch: _Batch) -> None:
        if batch.waiting is not None:
            self._schedule(batch)
        elif self._batches.get(batch.batch_id) is batch:
            del self._batches[batch.batch_id]
            self._paces[batch.batch_id] = batch.pace
            if len(self._paces) > _MAX_PACES:
                del self._paces[next(iter(self._paces))]

    def _hold(self, size: int) -> None:
        self._held_bytes += size
        if self._held_bytes > self._max_held_bytes:
            self._room.clear()
        else:
            self._room.set()


def _size(done: DoneLines) -> int:
    rendered = sum(len(o.rendered) for o in done.outcomes if o.rendered is not None)
    return rendered + _OUTCOME_BYTES * len(done.outcomes)


def _cancel_timer(batch: _Batch) -> None:
    if batch.timer is not None:
        batch.timer.cancel()
        batch.timer = None
