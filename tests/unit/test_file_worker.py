"""The file-worker answers every task, small files first, and acks only what is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from schemas.metrics import FILE_TASKS, Metrics
from schemas.records import (
    AssembleReason,
    AssembleTask,
    BatchAssembled,
    BatchError,
    BatchRejected,
    IntakeTask,
    ObjectRef,
    Record,
)
from schemas.topics import BATCH_EVENT, FILE_TASK, Topic
from streams.domain.clock import ManualClock
from streams.file_worker.queue import PATIENCE_S, SMALL_BYTES, Job, TaskQueue
from streams.file_worker.worker import ATTEMPTS, PAUSE_BEFORE_BACK_S, FileWorker
from tests.support.waiting import eventually

_LARGE = SMALL_BYTES + 1


def _intake(name: str, size: int = 10) -> IntakeTask:
    return IntakeTask(
        task_id=f"{name}:intake",
        batch_id=name,
        tenant="t",
        at_ms=0,
        endpoint="/v1/embeddings",
        input=ObjectRef(key=f"files/t/{name}", size_bytes=size),
        deadline_ms=0,
    )


def _assemble(name: str) -> AssembleTask:
    return AssembleTask(
        task_id=f"{name}:assemble",
        batch_id=name,
        tenant="t",
        at_ms=0,
        reason=AssembleReason.COMPLETED,
        total=0,
        accepted=b"",
        completed=0,
        failed=0,
    )


@dataclass(eq=False)
class _Delivery:
    record: Record
    partition: int = 0
    topic: Topic = FILE_TASK
    live: bool = True
    acks: int = 0

    def ack(self) -> None:
        self.acks += 1


@dataclass
class _Runner:
    """Answers when told to, or fails."""

    started: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    bugs: dict[str, int] = field(default_factory=dict)

    async def run(self, task: Any) -> Any:
        self.started.append(task.batch_id)
        try:
            if task.batch_id in self.gates:
                await self.gates[task.batch_id].wait()
            if self.bugs.get(task.batch_id, 0) > 0:
                self.bugs[task.batch_id] -= 1
                raise KeyError("a prompt")
        finally:
            self.ended.append(task.batch_id)
        about = {"task_id": task.task_id, "batch_id": task.batch_id, "tenant": "t", "at_ms": 0}
        if isinstance(task, AssembleTask):
            return BatchAssembled(**about)
        return BatchRejected(**about, errors=(BatchError(code="empty_file", message=""),))


class _Worker:
    def __init__(self) -> None:
        self.runner = _Runner()
        self.sent: list[tuple[Topic, str, Record]] = []
        self.failures: list[BaseException] = []
        self.on_send: Callable[[Record], None] = lambda _: None
        self.pauses: list[float] = []
        self.metrics = Metrics()
        self.inbox: asyncio.Queue[_Delivery] = asyncio.Queue()
        self.worker = FileWorker(
            self._send,
            self.runner,
            self.runner,
            ManualClock(),
            self.metrics,
            self.failures.append,
            self._sleep,
        )
        self.task = asyncio.create_task(self.worker.run(self._deliveries()))

    async def _send(self, topic: Topic, key: str, record: Record) -> None:
        await asyncio.sleep(0)
        self.on_send(record)
        self.sent.append((topic, key, record))

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)

    async def _deliveries(self) -> AsyncIterator[_Delivery]:
        while True:
            yield await self.inbox.get()

    def deliver(self, record: Record, partition: int = 0) -> _Delivery:
        delivery = _Delivery(record, partition)
        self.inbox.put_nowait(delivery)
        return delivery

    def gate(self, *names: str) -> None:
        self.runner.gates |= {name: asyncio.Event() for name in names}

    def open(self, name: str) -> None:
        self.runner.gates.pop(name).set()

    async def acked(self, *deliveries: _Delivery) -> None:
        await eventually(lambda: all(d.acks == 1 for d in deliveries))

    async def started(self, *names: str) -> None:
        await eventually(lambda: self.runner.started == list(names), what=str(names))


async def test_a_task_is_acked_only_when_its_answer_is_sent() -> None:
    worker = _Worker()
    delivery = worker.deliver(_assemble("a"))
    acks_at_send: list[int] = []
    worker.on_send = lambda _: acks_at_send.append(delivery.acks)
    await worker.acked(delivery)
    assert acks_at_send == [0]
    assert [(topic, key) for topic, key, _ in worker.sent] == [(BATCH_EVENT, "a")]


async def test_acks_keep_the_order_of_the_topic_whatever_ends_first() -> None:
    worker = _Worker()
    worker.gate("a")
    deliveries = [worker.deliver(_intake("a")), worker.deliver(_assemble("b"))]
    await eventually(lambda: len(worker.sent) == 1)
    assert [d.acks for d in deliveries] == [0, 0]
    worker.open("a")
    await worker.acked(*deliveries)
    assert [key for _, key, _ in worker.sent] == ["b", "a"]


async def test_a_large_file_does_not_keep_a_small_one_waiting() -> None:
    worker = _Worker()
    worker.gate("large", "larger")
    large = [
        worker.deliver(_intake("large", _LARGE)),
        worker.deliver(_intake("larger", _LARGE + 1)),
    ]
    await worker.started("large")
    small = worker.deliver(_intake("small"))
    await worker.started("large", "small")
    await eventually(lambda: len(worker.sent) == 1)
    assert worker.sent[0][1] == "small"
    worker.open("larger")
    worker.open("large")
    await worker.acked(*large, small)
    assert worker.runner.started == ["large", "small", "larger"]


async def test_a_task_delivered_again_while_it_runs_joins_it() -> None:
    worker = _Worker()
    worker.gate("a")
    first = worker.deliver(_intake("a"), partition=0)
    await worker.started("a")
    second = worker.deliver(_intake("a"), partition=1)
    await eventually(worker.inbox.empty)
    worker.open("a")
    await worker.acked(first, second)
    assert worker.runner.started == ["a"]
    assert len(worker.sent) == 1


async def test_a_task_delivered_again_after_its_answer_is_answered_again() -> None:
    worker = _Worker()
    await worker.acked(worker.deliver(_intake("a")))
    await worker.acked(worker.deliver(_intake("a")))
    assert len(worker.sent) == 2


async def test_an_intake_that_fails_by_a_bug_is_tried_again_and_then_rejected() -> None:
    worker = _Worker()
    worker.runner.bugs["a"] = 99
    other = worker.deliver(_intake("b"))
    delivery = worker.deliver(_intake("a"))
    await worker.acked(delivery, other)
    assert worker.runner.started.count("a") == ATTEMPTS
    event = worker.sent[-1][2]
    assert isinstance(event, BatchRejected)
    assert [e.code for e in event.errors] == ["internal_error"]
    assert worker.metrics.counter(FILE_TASKS).labels("intake", "bug")._value.get() == ATTEMPTS


async def test_an_intake_that_succeeds_after_a_bug_is_answered() -> None:
    worker = _Worker()
    worker.runner.bugs["a"] = 1
    await worker.acked(worker.deliver(_intake("a")))
    assert [e.code for e in worker.sent[0][2].errors] == ["empty_file"]  # type: ignore[union-attr]


async def test_an_assembly_that_fails_by_a_bug_goes_to_the_back_and_is_never_lost() -> None:
    worker = _Worker()
    worker.runner.bugs["a"] = ATTEMPTS + 1
    first = worker.deliver(_assemble("a"))

    def redeliver(record: Record) -> None:
        # The broker may deliver the copy before the send returns.
        if isinstance(record, AssembleTask):
            copies.append(worker.deliver(record))

    copies: list[_Delivery] = []
    worker.on_send = redeliver
    await worker.acked(first)
    await eventually(lambda: bool(copies))
    await worker.acked(*copies)
    assert worker.pauses.count(PAUSE_BEFORE_BACK_S) == 1
    assert [topic for topic, _, _ in worker.sent] == [FILE_TASK, BATCH_EVENT]


async def test_bugs_are_logged_without_what_callers_sent(caplog: Any) -> None:
    worker = _Worker()
    worker.runner.bugs["a"] = 1
    await worker.acked(worker.deliver(_intake("a")))
    assert "a prompt" not in caplog.text


async def test_an_answer_that_cannot_be_sent_ends_the_process_unacked() -> None:
    worker = _Worker()

    def refuse(record: Record) -> None:
        raise ConnectionError

    worker.on_send = refuse
    delivery = worker.deliver(_intake("a"))
    await eventually(lambda: bool(worker.failures))
    assert delivery.acks == 0


async def test_revoked_tasks_are_ended_and_others_go_on() -> None:
    worker = _Worker()
    worker.gate("a", "b", "c")
    a, b = worker.deliver(_intake("a"), 0), worker.deliver(_intake("b"), 1)
    worker.deliver(_intake("c"), 0)
    await worker.started("a", "b")
    await worker.worker.revoked({FILE_TASK.name: {0}})
    assert worker.runner.ended == ["a"]
    worker.open("b")
    await worker.acked(b)
    assert a.acks == 0
    assert worker.runner.started == ["a", "b"]
    assert [key for _, key, _ in worker.sent] == ["b"]


async def test_a_task_revoked_while_it_waited_for_room_is_dropped() -> None:
    worker = _Worker()
    delivery = _Delivery(_intake("a"), live=False)
    worker.inbox.put_nowait(delivery)
    after = worker.deliver(_intake("b"))
    await worker.acked(after)
    assert worker.runner.started == ["b"]


async def test_tasks_revoked_before_their_first_step_give_their_slots_back() -> None:
    worker = _Worker()
    other = _Delivery(_intake("other"), partition=1)

    async def deliveries() -> AsyncIterator[_Delivery]:
        for name in ("a", "b"):
            yield _Delivery(_intake(name))
        await worker.worker.revoked({FILE_TASK.name: {0}})
        yield other

    running = asyncio.create_task(worker.worker.run(deliveries()))
    await worker.acked(other)
    await running
    assert worker.runner.started == ["other"]


async def test_stopping_ends_what_runs_and_acks_nothing_of_it() -> None:
    worker = _Worker()
    worker.gate("a", "b")
    deliveries = [worker.deliver(_intake("a")), worker.deliver(_intake("b"))]
    await worker.started("a", "b")
    stopping = asyncio.create_task(worker.worker.stop())
    await asyncio.sleep(0)
    worker.open("a")
    await stopping
    assert [d.acks for d in deliveries] == [1, 0]
    assert sorted(worker.runner.ended) == ["a", "b"]
    assert not worker.failures


def test_the_smallest_waiting_task_is_next_until_a_large_one_waited_long_enough() -> None:
    clock = ManualClock()
    queue: TaskQueue[str] = TaskQueue(clock)
    for size in (_LARGE, 30, 10, 20):
        queue.add(Job(str(size), size))
    first, second = queue.next(), queue.next()
    assert first is not None
    assert second is not None
    assert [first.item, second.item] == ["10", "20"]
    assert queue.next() is None
    queue.done(first)
    clock.advance(PATIENCE_S + 1)
    queue.add(Job("5", 5))
    overdue = queue.next()
    assert overdue is not None
    assert overdue.large
    queue.done(second)
    third = queue.next()
    assert third is not None
    assert third.item == "30"


def test_only_one_large_task_runs_at_a_time() -> None:
    queue: TaskQueue[str] = TaskQueue(ManualClock())
    for name in "ab":
        queue.add(Job(name, _LARGE))
    assert queue.next() is not None
    assert queue.next() is None
    assert (queue.running, queue.waiting) == (1, 1)
