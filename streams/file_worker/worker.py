"""What the file-worker does with its tasks: queue, run, tell the controller, ack.

    file.task ─► admitted ─► queue ─► running ─► event on batch.event, awaited ─► acked
                   │           ▲         │
     same again ───┘joins it   └─────────┴── a bug: tried again, then rejected or sent to the back

Everything may happen twice: plans and files have new names each time, and of several events for
one task the first that the controller folds wins. So there is no fence before a write.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

import structlog

from schemas.metrics import FILE_TASK_SECONDS, FILE_TASKS, FILE_TASKS_HELD, Metrics
from schemas.records import (
    AssembleTask,
    BatchAssembled,
    BatchRejected,
    BatchValidated,
    IntakeTask,
    Record,
)
from schemas.topics import BATCH_EVENT, FILE_TASK, Topic
from streams.domain.clock import Clock
from streams.file_worker.intake import internal_error, rejected
from streams.file_worker.patience import Sleep
from streams.file_worker.queue import Job, TaskQueue
from streams.kafka.ack_window import AckWindow, Slot
from streams.kafka.failpoint import reach

log = structlog.get_logger(__name__)

#: Tasks read and not acked. One that takes long holds back the acks of those behind it.
WINDOW = 512
#: How often a task may fail by a bug before it is rejected, or sent to the back of the topic.
ATTEMPTS = 3
#: Before the next attempt at such a task, and before it goes to the back; others run meanwhile.
PAUSE_AFTER_BUG_S = 5.0
PAUSE_BEFORE_BACK_S = 60.0
#: Part of the role's stop budget for tasks that are about to end by themselves.
_FINISH_S = 5.0

Task = IntakeTask | AssembleTask
Answer = BatchValidated | BatchRejected | BatchAssembled


class Delivery(Protocol):
    """A task as the consumer group gave it to us."""

    @property
    def record(self) -> Record: ...
    @property
    def topic(self) -> Topic: ...
    @property
    def partition(self) -> int: ...
    @property
    def live(self) -> bool: ...
    def ack(self) -> None: ...


class IntakeTasks(Protocol):
    """Who answers intake tasks."""

    async def run(self, task: IntakeTask) -> BatchValidated | BatchRejected: ...


class AssemblyTasks(Protocol):
    """Who answers assembly tasks."""

    async def run(self, task: AssembleTask) -> BatchAssembled: ...


class _Held:
    """A task that is held, with every delivery of it."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.slots: list[Slot[Delivery]] = []
        self.bugs = 0
        self.running: asyncio.Task[None] | None = None

    @property
    def kind(self) -> str:
        """Its metric label."""
        return "intake" if isinstance(self.task, IntakeTask) else "assembly"

    @property
    def live(self) -> bool:
        """Whether a delivery of it is still ours to ack."""
        return any(slot.live for slot in self.slots)


class FileWorker:
    """Runs file tasks, some at once. `send` returns when the broker has the record.

    `failed` is told of an error that this process can't survive, such as a send that failed.
    """

    def __init__(
        self,
        send: Callable[[Topic, str, Record], Awaitable[object]],
        intake: IntakeTasks,
        assembly: AssemblyTasks,
        clock: Clock,
        metrics: Metrics,
        failed: Callable[[BaseException], None],
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._send = send
        self._intake = intake
        self._assembly = assembly
        self._clock = clock
        self._failed = failed
        self._sleep = sleep
        self._window: AckWindow[Delivery] = AckWindow(WINDOW)
        self._queue: TaskQueue[_Held] = TaskQueue(clock)
        self._held: dict[Task, _Held] = {}
        self._pauses: set[asyncio.Task[None]] = set()
        self._answers = metrics.counter(FILE_TASKS)
        self._seconds = metrics.histogram(FILE_TASK_SECONDS)
        self._gauge = metrics.gauge(FILE_TASKS_HELD)

    async def run(self, deliveries: AsyncIterator[Delivery]) -> None:
        """Takes tasks as long as there are any."""
        async for delivery in deliveries:
            slot = await self._window.admit(delivery)
            if not delivery.live:
                self._window.finish(slot)
                continue
            task = delivery.record
            assert isinstance(task, IntakeTask | AssembleTask)  # noqa: S101 - the topic's records
            held = self._held.get(task)
            if held is None:
                held = self._held[task] = _Held(task)
                self._queue.add(Job(held, _size(task)))
            held.slots.append(slot)
            self._start()

    async def revoked(self, given_up: Mapping[str, set[int]]) -> None:
        """Drops what only revoked partitions wait for: another process gets it."""
        self._window.drop(given_up)
        await self._end([held for held in self._held.values() if not held.live])

    async def stop(self) -> None:
        """Lets what is about to end do so, and ends the rest, leaving nothing half-written."""
        for pause in tuple(self._pauses):
            pause.cancel()
        running = [held.running for held in self._held.values() if held.running is not None]
        if running:
            await asyncio.wait(running, timeout=_FINISH_S)
        await self._end(list(self._held.values()))

    async def _end(self, ended: list[_Held]) -> None:
        running = [held.running for held in ended if held.running is not None]
        for held in ended:
            self._held.pop(held.task, None)
        self._queue.keep(lambda held: held.task in self._held)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        self._start()

    def _start(self) -> None:
        while (job := self._queue.next()) is not None:
            job.item.running = asyncio.create_task(self._run(job.item))
            # Not in the task: one that is cancelled before its first step does nothing at all.
            job.item.running.add_done_callback(partial(self._ran, job))
        self._gauge.labels("waiting").set(self._queue.waiting)
        self._gauge.labels("running").set(self._queue.running)

    async def _run(self, held: _Held) -> None:
        try:
            await self._answer(held)
        except Exception as error:  # noqa: BLE001 - a bug or a lost broker: the role decides
            self._failed(error)

    def _ran(self, job: Job[_Held], _task: asyncio.Task[None]) -> None:
        self._queue.done(job)
        self._start()

    async def _answer(self, held: _Held) -> None:
        began_s = self._clock.monotonic_s()
        event = await self._event(held)
        if event is None:
            return
        await self._send(BATCH_EVENT, event.batch_id, event)
        self._held.pop(held.task, None)
        reach("file_worker.event_sent")
        took_s = self._clock.monotonic_s() - began_s
        self._seconds.labels(held.kind).observe(took_s)
        self._answers.labels(held.kind, _RESULTS[type(event)]).inc()
        log.info(
            "File task answered.",
            action="file_task_answered",
            batch_id=event.batch_id,
            task=held.kind,
            result=_RESULTS[type(event)],
            seconds=round(took_s, 3),
        )
        self._finish(held)

    async def _event(self, held: _Held) -> Answer | None:
        try:
            return await self._execute(held.task)
        except Exception as error:  # noqa: BLE001 - one task's bug must not stop the others
            return self._after_bug(held, error)

    async def _execute(self, task: Task) -> Answer:
        if isinstance(task, IntakeTask):
            return await self._intake.run(task)
        return await self._assembly.run(task)

    def _finish(self, held: _Held) -> None:
        for slot in held.slots:
            self._window.finish(slot)

    def _after_bug(self, held: _Held, error: Exception) -> Answer | None:
        """The answer to a task that fails for no known reason; None while it is tried again."""
        held.bugs += 1
        self._answers.labels(held.kind, "bug").inc()
        log.error(
            "A file task failed by a bug.",
            action="file_task_bug",
            batch_id=held.task.batch_id,
            task=held.kind,
            attempt=held.bugs,
            # Not its message or traceback: they may repeat what callers sent.
            error=type(error).__name__,
            at=_place(error),
        )
        if held.bugs >= ATTEMPTS and isinstance(held.task, IntakeTask):
            return rejected(held.task, self._clock.now_ms(), internal_error())
        pause = asyncio.create_task(self._try_again(held))
        self._pauses.add(pause)
        pause.add_done_callback(self._pauses.discard)
        return None

    async def _try_again(self, held: _Held) -> None:
        last = held.bugs >= ATTEMPTS
        await self._sleep(PAUSE_BEFORE_BACK_S if last else PAUSE_AFTER_BUG_S)
        if self._held.get(held.task) is not held:
            return
        if not last:
            self._queue.add(Job(held, _size(held.task)))
            self._start()
            return
        # An assembly is never given up, because the results are there: it goes to the back of
        # the topic, so that it doesn't hold back the acks of others until the bug is fixed.
        # No longer held when it is sent, so that its own copy can't join it and be acked with it.
        del self._held[held.task]
        try:
            await self._send(FILE_TASK, held.task.batch_id, held.task)
        except Exception as error:  # noqa: BLE001 - a lost broker: the role decides
            self._failed(error)
            return
        self._finish(held)


_RESULTS: dict[type[Answer], str] = {
    BatchValidated: "validated",
    BatchRejected: "rejected",
    BatchAssembled: "assembled",
}


def _size(task: Task) -> int:
    return task.input.size_bytes if task.input is not None else 0


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown"
