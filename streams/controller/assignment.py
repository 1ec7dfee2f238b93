"""What lives as long as an assignment of partitions, from table recovery to revoke.

tables recovered ─► learn what is out ─► fold what was told meanwhile ─► release
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from streams.background import Tasks
from streams.controller.books import Books
from streams.controller.enqueued import EnqueuedFollower
from streams.controller.loads import Loads
from streams.controller.log import Step
from streams.controller.outstanding import Outstanding
from streams.controller.release import Releaser
from streams.controller.windows import Windows
from streams.domain.clock import Clock

log = structlog.get_logger(__name__)

#: Folding what was told before the start takes less, unless the log's end can't be reached
#: (its last records were removed by retention): then lines are released and may run twice.
_CATCH_UP_S = 60.0
_LOOK_S = 0.01
#: Stubs and chunks of ended batches are removed this often.
_CLEAN_UP_S = 5.0
_CHUNKED_BATCHES_AT_ONCE = 100

FindOutstanding = Callable[[Callable[[str], bool]], Awaitable[Outstanding]]
#: How far a partition of batch.event is folded; None if that isn't known.
Folded = Callable[[int], int | None]
Flush = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What an assignment works with."""

    books: Books
    loads: Loads
    enqueued: EnqueuedFollower
    clock: Clock
    find_outstanding: FindOutstanding
    folded: Folded
    flush_tables: Flush
    new_releaser: Callable[[], Releaser]
    new_windows: Callable[[], Windows]


class Assignment:
    """The dispatcher, the clock and the cleaner of the partitions held."""

    def __init__(self, partitions: set[int], parts: Parts, broken: Callable[[BaseException], None]):
        self._partitions = partitions
        self._parts = parts
        self._tasks = Tasks(broken)
        self._windows = parts.new_windows()
        self._releaser: Releaser | None = None
        self._live = True

    def start(self) -> None:
        """Begins to work; the books are loaded."""
        self._windows.watch(self._parts.books.live.values())
        self._tasks.start(self._windows.work())
        self._tasks.start(self._release())
        self._tasks.start(self._clean_up())

    def stepped(self, step: Step) -> None:
        """A step was written."""
        self._windows.watch(step.windows)
        if self._releaser is not None:
            for effect in step.line_effects:
                self._releaser.apply(effect)

    async def stop(self) -> None:
        """The partitions are given up; nothing more is sent."""
        self._live = False
        self._parts.loads.listener = None
        self._parts.enqueued.listener = None
        if self._releaser is not None:
            await self._releaser.stop()
        await self._tasks.stop(0.0)

    async def _release(self) -> None:
        parts = self._parts
        began = time.monotonic()
        found = await parts.find_outstanding(self._is_mine)
        await self._catch_up(found.event_ends)
        releaser = parts.new_releaser()
        releaser.begin(found.slices)
        parts.loads.replay(releaser.hear)
        parts.enqueued.listener = releaser.make_room
        self._releaser = releaser
        log.info(
            "Releasing lines.",
            action="dispatcher_started",
            partitions=sorted(self._partitions),
            batches=len(parts.books.live),
            slices_out=len(found.slices),
            took_s=round(time.monotonic() - began, 3),
        )
        await releaser.work()

    def _is_mine(self, batch_id: str) -> bool:
        return self._parts.books.partition_of(batch_id) in self._partitions

    async def _catch_up(self, ends: dict[int, int]) -> None:
        give_up = time.monotonic() + _CATCH_UP_S
        while any((self._parts.folded(p) or 0) < ends.get(p, 0) for p in self._partitions):
            if time.monotonic() > give_up:
                log.warning("The log's end was not reached.", action="catch_up_given_up")
                return
            await asyncio.sleep(_LOOK_S)

    async def _clean_up(self) -> None:
        parts = self._parts
        while True:
            await asyncio.sleep(_CLEAN_UP_S)
            if parts.books.leftovers:
                waiting = len(parts.books.leftovers)
                # Only once the ended batches' own rows are durable: they replace the sums.
                await parts.flush_tables()
                if self._live:
                    parts.books.delete_leftovers(min(waiting, _CHUNKED_BATCHES_AT_ONCE))
            parts.books.delete_old_stubs(parts.clock.now_ms())
