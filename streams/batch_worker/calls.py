"""The calls of one pool that are at the upstream now: how many, how long, and cutting some."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from streams.batch_worker.line import Line
from streams.domain.clock import Clock

#: A line is cut at most so often, then it runs to its end.
MAX_CUTS = 3
#: How much the latest call counts in the average.
_WEIGHT = 0.1


class Calls:
    """Those of one pool, whichever pool's lines they are."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        #: In the order in which they began.
        self._running: dict[Line, asyncio.Task[None] | None] = {}
        self._most = 0
        #: How long a call takes, averaged over the latest; 0 before the first.
        self.call_s = 0.0

    def __len__(self) -> int:
        return len(self._running)

    @contextmanager
    def one(self, line: Line) -> Iterator[None]:
        """The line's call is at the upstream while the block runs."""
        began_s = self._clock.monotonic_s()
        self._running[line] = asyncio.current_task()
        self._most = max(self._most, len(self._running))
        try:
            yield
        finally:
            del self._running[line]
            if not line.cut:
                took_s = self._clock.monotonic_s() - began_s
                weight = _WEIGHT if self.call_s else 1.0
                self.call_s += weight * (took_s - self.call_s)

    def most(self) -> int:
        """The highest number since the last time it was asked for."""
        most, self._most = self._most, len(self._running)
        return most

    def cut(self, above: int) -> int:
        """Cuts the youngest calls beyond so many; how many were.

        Each line's own pool takes it back. Lines that were cut too often are passed over.
        """
        cut = 0
        left = sum(not line.cut for line in self._running) - above
        for line, task in reversed(list(self._running.items())):
            if cut >= left:
                break
            if task is not None and not line.cut and line.cuts < MAX_CUTS:
                line.cut = True
                line.cuts += 1
                cut += 1
                task.cancel()
        return cut
