"""What a worker holds: slices as they were read, and the lines in them, each running once.

    slice ──has──► lines ──run in──► a pool ──► outcome ──► broker ──► line finished
      ▲                                                                     │
      └──────────── finished (and acked) when all its lines are ◄───────────┘

A line that is delivered again while it is held joins the one that is there: after a rebalance or
a second release the same call answers both slices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from schemas.records import ReadyLine, ReadyLines


class Slice:
    """A record of line.ready that was taken: how many of its lines are not finished yet."""

    __slots__ = ("_finished", "_left", "live", "partition")

    def __init__(self, lines: int, partition: int, finished: Callable[[], None]) -> None:
        self._left = lines
        self._finished = finished
        self.partition = partition
        #: False once its partition was revoked: it will be delivered again, perhaps to another.
        self.live = True

    def one_finished(self) -> None:
        """One of its lines is finished; after the last one the slice is."""
        self._left -= 1
        if self._left == 0:
            self._finished()


class Line:
    """One line that is held, from taking its slice until the broker has its outcome."""

    __slots__ = ("answered", "batch", "cut", "cuts", "dropped", "item", "ready", "slices")

    def __init__(self, batch: HeldBatch, ready: ReadyLines, item: ReadyLine, part: Slice) -> None:
        self.batch = batch
        self.ready = ready
        self.item = item
        self.slices = [part]
        #: It has an outcome, which is on its way to the broker.
        self.answered = False
        #: Its batch has ended: whatever comes of it is ignored.
        self.dropped = False
        #: Its call is being cut to make room for real-time calls; it waits again afterwards.
        self.cut = False
        #: How often that happened.
        self.cuts = 0

    @property
    def live(self) -> bool:
        """Whether a slice that is still ours waits for it."""
        return any(s.live for s in self.slices)


class HeldBatch:
    """The lines of one batch that are held."""

    __slots__ = ("batch_id", "lines", "tenant", "unanswered")

    def __init__(self, batch_id: str, tenant: str) -> None:
        self.batch_id = batch_id
        self.tenant = tenant
        #: By (line, attempt): a later attempt is another call.
        self.lines: dict[tuple[int, int], Line] = {}
        #: Lines without an outcome: while there are others, an outcome may wait for company.
        self.unanswered = 0


class Held:
    """Everything a worker holds, by batch. Bounded by the credits that it publishes."""

    def __init__(self) -> None:
        self._batches: dict[str, HeldBatch] = {}

    def __len__(self) -> int:
        return sum(len(b.lines) for b in self._batches.values())

    def take(self, ready: ReadyLines, partition: int, finished: Callable[[], None]) -> list[Line]:
        """The lines of a slice that are new here. `finished` is called when all its lines are."""
        if not ready.lines:
            finished()
            return []
        batch = self._batches.get(ready.batch_id)
        if batch is None:
            batch = self._batches[ready.batch_id] = HeldBatch(ready.batch_id, ready.tenant)
        part = Slice(len(ready.lines), partition, finished)
        new = []
        for item in ready.lines:
            key = (item.line, item.attempt)
            running = batch.lines.get(key)
            if running is None:
                line = batch.lines[key] = Line(batch, ready, item, part)
                new.append(line)
            else:
                running.slices.append(part)
        batch.unanswered += len(new)
        return new

    def answered(self, line: Line) -> None:
        """The line has an outcome; it stays held until the broker has that."""
        line.answered = True
        line.batch.unanswered -= 1

    def finish(self, line: Line) -> None:
        """The line is done with: its slices no longer wait for it."""
        self.forget(line)
        for part in line.slices:
            part.one_finished()

    def forget(self, line: Line) -> None:
        """The line is no longer held, and its slices stay unfinished, to be delivered again."""
        batch = line.batch
        del batch.lines[line.item.line, line.item.attempt]
        if not line.answered:
            batch.unanswered -= 1
        if not batch.lines:
            del self._batches[batch.batch_id]

    def of(self, batch_id: str) -> tuple[Line, ...]:
        """The held lines of a batch."""
        batch = self._batches.get(batch_id)
        return tuple(batch.lines.values()) if batch else ()

    def revoke(self, partitions: Iterable[int]) -> None:
        """Slices of these partitions will be delivered again, perhaps to another worker."""
        gone = frozenset(partitions)
        for line in self._lines():
            for part in line.slices:
                if part.partition in gone:
                    part.live = False

    def _lines(self) -> Iterator[Line]:
        for batch in self._batches.values():
            yield from batch.lines.values()
