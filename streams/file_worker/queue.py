"""Which task runs next: small files first, and a large one never keeps them out.

    waiting ──next()──► running (at most SLOTS, large ones at most SLOTS - 1) ──done()──►

Among the waiting the smallest goes first; but a large one that has waited for PATIENCE_S goes
before all, so that a stream of small ones doesn't keep it out either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from streams.domain.clock import Clock

T = TypeVar("T")

#: Tasks at once. Intake is CPU-bound and shares one core; a second slot hides the store's waits.
SLOTS = 2
#: A file up to this size is small: checked within some tens of milliseconds.
SMALL_BYTES = 4 << 20
#: How long a large file gives way.
PATIENCE_S = 30.0


@dataclass(slots=True, eq=False)
class Job(Generic[T]):
    """A task in the queue. size_bytes: of its input file."""

    item: T
    size_bytes: int
    queued_s: float = field(default=0.0)

    @property
    def large(self) -> bool:
        """Whether it may not take the last slot."""
        return self.size_bytes > SMALL_BYTES


class TaskQueue(Generic[T]):
    """Waiting and running jobs. Some hundred at most, so it looks at all of them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: list[Job[T]] = []
        self._running: list[Job[T]] = []

    @property
    def waiting(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs that run."""
        return len(self._running)

    def add(self, job: Job[T]) -> None:
        """Queues a job."""
        job.queued_s = self._clock.monotonic_s()
        self._waiting.append(job)

    def next(self) -> Job[T] | None:
        """The job to start now, if there is a slot for one that waits."""
        if len(self._running) >= SLOTS:
            return None
        large_may = sum(job.large for job in self._running) < SLOTS - 1
        ready = [job for job in self._waiting if large_may or not job.large]
        if not ready:
            return None
        chosen = min(ready, key=self._rank)
        self._waiting.remove(chosen)
        self._running.append(chosen)
        return chosen

    def done(self, job: Job[T]) -> None:
        """Frees the job's slot."""
        self._running.remove(job)

    def keep(self, wanted: Callable[[T], bool]) -> None:
        """Takes the other waiting jobs out; running ones stay until done()."""
        self._waiting = [job for job in self._waiting if wanted(job.item)]

    def _rank(self, job: Job[T]) -> tuple[bool, int, float]:
        overdue = self._clock.monotonic_s() - job.queued_s > PATIENCE_S
        return not overdue, 0 if overdue else job.size_bytes, job.queued_s
