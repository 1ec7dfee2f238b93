"""A line.ready and its batch-workers, as the dispatcher sees them; moved by hand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from schemas.records import PartitionSeen, PoolLoad, WorkerLoad
from streams.domain.dispatch.dispatcher import Dispatcher
from streams.domain.dispatch.lane import OpenBatch
from streams.domain.dispatch.slice import LineAt, Slice

NOW = 1_700_000_000_000
HOUR_MS = 3_600_000


def opened(
    batch_id: str,
    total: int,
    *,
    tenant: str = "a",
    routes: tuple[tuple[str, ...], ...] = (("p",),),
    deadline_ms: int = NOW + HOUR_MS,
    created_at_ms: int = NOW,
    priority: int = 0,
    paused: bool = False,
    held: bool = False,
) -> OpenBatch:
    """A batch of fresh lines."""
    return OpenBatch(
        batch_id=batch_id,
        tenant=tenant,
        deadline_ms=deadline_ms,
        created_at_ms=created_at_ms,
        total=total,
        routes=routes,
        priority=priority,
        paused=paused,
        held=held,
    )


@dataclass
class FakeWorker:
    """A worker with some credits per pool; it reads its partitions and runs what it read."""

    name: str
    partitions: tuple[int, ...]
    credits: dict[str, int]
    held: list[Slice] = field(default_factory=list)
    done: list[Slice] = field(default_factory=list)
    next_offset: dict[int, int] = field(default_factory=dict)
    stopping: bool = False
    at_ms: int = NOW

    def load(self) -> WorkerLoad:
        """What it publishes."""
        return WorkerLoad(
            worker=self.name,
            at_ms=self.at_ms,
            partitions=tuple(
                PartitionSeen(
                    partition=p, next_offset=self.next_offset.get(p, 0), committed=self.committed(p)
                )
                for p in self.partitions
            ),
            pools=tuple(
                PoolLoad(pool=pool, credits=credits_, held=self.holds(pool))
                for pool, credits_ in self.credits.items()
            ),
            stopping=self.stopping,
        )

    def holds(self, pool: str) -> int:
        """How many lines of the pool it holds."""
        return sum(s.size for s in self.held if s.pool == pool)

    def committed(self, partition: int) -> int:
        """The offset below which it has finished everything."""
        running = [s.offset for s in self.held if s.partition == partition]
        return min(running, default=self.next_offset.get(partition, 0))

    def read(self, log: dict[int, list[Slice]], most: int = 1 << 30) -> None:
        """Reads up to so many slices of each of its partitions."""
        for partition in self.partitions:
            start = self.next_offset.get(partition, 0)
            found = [s for s in log[partition] if s.offset >= start][:most]
            self.held += found
            if found:
                self.next_offset[partition] = found[-1].offset + 1

    def finish(self, slice_: Slice) -> None:
        """Ends all lines of a slice."""
        self.held.remove(slice_)
        self.done.append(slice_)


class Bench:
    """A dispatcher with a line.ready of its own and plans that need no object store."""

    def __init__(self, dispatcher: Dispatcher | None = None, *, line_bytes: int = 100) -> None:
        self.dispatcher = dispatcher or Dispatcher("c0")
        self.log: dict[int, list[Slice]] = defaultdict(list)
        self.sent: list[Slice] = []
        self.line_bytes = line_bytes
        #: Batches whose lines have another length.
        self.bytes_of: dict[str, int] = {}
        #: The lane of each line, by batch; all lines are of lane 0 otherwise.
        self.lane_of: dict[str, Sequence[int]] = {}
        #: The stored prompt of each line, by batch; none otherwise.
        self.pin_of: dict[str, Sequence[int]] = {}
        self.now = NOW

    def load_plans(self) -> bool:
        """Answers the dispatcher's wants. Whether there were any."""
        wants = self.dispatcher.wants()
        for want in wants:
            batch = want.lane.batch
            cursor = min(batch.total, want.cursor + want.rows)
            lanes = self.lane_of.get(batch.batch_id)
            length = self.bytes_of.get(batch.batch_id, self.line_bytes)
            pins = self.pin_of.get(batch.batch_id)
            rows = [
                LineAt(n, n * length, length, pins[n] if pins else 0)
                for n in range(want.cursor, cursor)
                if lanes is None or lanes[n] == want.lane.number
            ]
            self.dispatcher.loaded(want, rows, cursor)
        return bool(wants)

    def choose(self) -> list[Slice]:
        """Releases until nothing more comes, without sending."""
        chosen: list[Slice] = []
        while True:
            released = self.dispatcher.release(self.now)
            chosen += released
            if not self.load_plans() and not released:
                return chosen

    def send(self, slice_: Slice) -> None:
        """Gives the slice its place."""
        log = self.log[slice_.partition]
        self.dispatcher.sent(slice_, log[-1].offset + 1 if log else 0)
        log.append(slice_)
        self.sent.append(slice_)

    def release(self) -> list[Slice]:
        """Chooses and sends."""
        chosen = self.choose()
        for slice_ in chosen:
            self.send(slice_)
        return chosen

    def hear(self, worker: FakeWorker) -> None:
        """The dispatcher gets the worker's load."""
        self.dispatcher.worker_load(worker.load(), self.now)

    def run(self, worker: FakeWorker) -> list[Slice]:
        """The worker reads everything, finishes it, and it is folded."""
        worker.read(self.log)
        finished = list(worker.held)
        for slice_ in finished:
            worker.finish(slice_)
            self.dispatcher.settle(slice_.batch_id, lines_of(slice_), (), self.now)
        self.hear(worker)
        return finished

    def run_to_the_end(self, worker: FakeWorker) -> list[Slice]:
        """Releases and runs until nothing is left."""
        everything: list[Slice] = []
        self.hear(worker)
        while self.release() or worker.held:
            everything += self.run(worker)
        return everything


def lines_of(slice_: Slice) -> list[int]:
    """The line numbers of a slice."""
    return [picked.at.line for picked in slice_.lines]


def numbers(slices: list[Slice]) -> list[int]:
    """The line numbers in these slices, in their order."""
    return [line for slice_ in slices for line in lines_of(slice_)]


def worker(credits_: int = 64, name: str = "w0", partitions: tuple[int, ...] = (0,)) -> FakeWorker:
    """A worker with credits for the pool `p`."""
    return FakeWorker(name, partitions, {"p": credits_})
