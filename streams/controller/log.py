"""Folds batch.event, and keeps the order of a step (ADR 1):

    1. fold up to 100 queued events, in memory
    2. send the effects and wait for the broker: tasks, usage and files; then snapshots;
       then ends, so that who is told of one finds the batch ended and its files there
    3. write the changed chunk rows, then the changed batch rows
    4. ack the events
    5. commit: the Kafka base does, after the rows are on the broker

A crash before 3 repeats the effects, which are idempotent by key. A crash after it replays events
that the rows' watermarks ignore. From 3 to 4 nothing is awaited, so a revoke can't come between.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import assert_never, cast

import structlog
from msgspec.structs import replace

from schemas.records import BatchEnded, BatchSnapshot, UsageRecorded
from schemas.topics import FILE, FILE_TASK, USAGE_RECORDED, WEBHOOK_EVENT
from streams.controller.books import Books
from streams.controller.ports import Cause, Guard, Sender
from streams.controller.snapshots import Snapshots
from streams.domain.batch.effects import (
    CloseLines,
    Effect,
    OpenLines,
    PublishSnapshot,
    RecordFile,
    RecordUsage,
    SendTask,
    SettleLines,
    SteerLines,
)
from streams.domain.batch.machine import Entry, Event, fold
from streams.domain.batch.state import Batch, Ended
from streams.domain.ledger import Ledger
from streams.kafka.failpoint import reach
from streams.kafka.queued import Queued
from streams.kafka.role import Consumed

log = structlog.get_logger(__name__)

#: Events folded in one step: enough to share the wait for the broker, few enough to be quick.
STEP_EVENTS = 100
_QUEUED = 200
#: Lines of one usage record: far below the largest record that may travel.
_USAGE_LINES = 2000

LineEffect = OpenLines | SteerLines | SettleLines | CloseLines
OnStep = Callable[["Step"], None]
Reject = Callable[[Consumed, str], Awaitable[None]]


@dataclass
class Step:
    """What one step changes, before it is written."""

    batches: dict[str, Batch] = field(default_factory=dict)
    chunks: dict[str, dict[int, Ledger]] = field(default_factory=dict)
    causes: dict[str, Cause] = field(default_factory=dict)
    effects: list[Effect] = field(default_factory=list)
    events: list[Consumed] = field(default_factory=list)
    timed: set[str] = field(default_factory=set)

    @property
    def line_effects(self) -> Iterable[LineEffect]:
        """What the dispatcher is to know, in order."""
        for effect in self.effects:
            if isinstance(effect, LineEffect):
                yield effect

    @property
    def windows(self) -> list[Batch]:
        """Batches that began with this step or got another end of their window."""
        return [batch for batch_id, batch in self.batches.items() if batch_id in self.timed]

    @property
    def bills(self) -> list[UsageRecorded]:
        """What the newly accepted lines cost, in as few records as there are batches.

        Which of a batch's events share a record is no matter: usage counts by (batch, line).
        """
        merged: list[UsageRecorded] = []
        growing: dict[tuple[str, tuple[str, ...]], int] = {}
        for effect in self.effects:
            if not isinstance(effect, RecordUsage):
                continue
            usage = effect.usage
            at = growing.get((usage.batch_id, usage.models))
            if at is not None and len(merged[at].lines) < _USAGE_LINES:
                merged[at] = replace(merged[at], lines=merged[at].lines + usage.lines)
            else:
                growing[usage.batch_id, usage.models] = len(merged)
                merged.append(usage)
        return merged

    @property
    def snapshots(self) -> list[BatchSnapshot]:
        """The last snapshot of each batch whose status changed."""
        latest = {
            effect.snapshot.batch_id: effect.snapshot
            for effect in self.effects
            if isinstance(effect, PublishSnapshot)
        }
        return list(latest.values())

    @property
    def ends(self) -> list[BatchEnded]:
        """The batches that ended with this step, for webhooks."""
        return [
            BatchEnded(
                batch_id=batch_id,
                tenant=batch.request.tenant,
                status=batch.status,
                at_ms=batch.ended_at_ms,
            )
            for batch_id, batch in self.batches.items()
            if isinstance(batch, Ended)
        ]


class BatchLog:
    """Work on batch.event. on_step is called when a step is written, before it is acked."""

    def __init__(
        self,
        books: Books,
        snapshots: Snapshots,
        sender: Sender,
        guard: Guard,
        reject: Reject,
        on_step: OnStep,
    ) -> None:
        self._books = books
        self._snapshots = snapshots
        self._sender = sender
        self._guard = guard
        self._reject = reject
        self._on_step = on_step
        self._queued = Queued(_QUEUED)

    async def consume(self, records: AsyncIterator[Consumed]) -> None:
        """Takes events as they come."""
        await self._queued.fill(records)

    async def work(self) -> None:
        """Folds what was taken, for ever."""
        while True:
            await self.step(await self._queued.take(STEP_EVENTS))

    async def step(self, events: Sequence[Consumed]) -> None:
        """One step. Does nothing for events whose partition was revoked meanwhile."""
        step = self._fold(await self._own(events))
        reach("controller.folded")
        await self._guard.wait()
        await self._send(step)
        if snapshots := step.snapshots:
            await self._snapshots.publish(snapshots)
        await asyncio.gather(
            *(self._sender.send(WEBHOOK_EVENT, ended.tenant, ended) for ended in step.ends)
        )
        reach("controller.effects_sent")
        await self._guard.wait()
        if not all(consumed.live for consumed in step.events):
            return
        self._write(step)
        self._on_step(step)
        for consumed in step.events:
            consumed.ack()
        reach("controller.acked")

    async def _own(self, events: Sequence[Consumed]) -> list[Consumed]:
        """The events that are where they belong; rows of others would be lost on recovery."""
        own = []
        for consumed in events:
            event = cast("Event", consumed.record)
            if self._books.partition_of(event.batch_id) == consumed.partition:
                own.append(consumed)
            else:
                await self._reject(consumed, "this is not the partition of its batch")
        return own

    def _fold(self, events: Sequence[Consumed]) -> Step:
        step = Step()
        books = self._books
        for consumed in events:
            event = cast("Event", consumed.record)
            batch_id = event.batch_id
            before = step.batches.get(batch_id) or books.find(batch_id)
            changed = step.chunks.get(batch_id)
            ledgers = books.ledgers.get(batch_id, {})
            if changed:
                ledgers = ledgers | changed
            folded = fold(before, ledgers, Entry(event, consumed.offset, _logged_at_ms(consumed)))
            if folded.chunks:
                step.chunks.setdefault(batch_id, {}).update(folded.chunks)
            if folded.batch is not None and folded.batch is not before:
                step.batches[batch_id] = folded.batch
                if before is None or before.terms != folded.batch.terms:
                    step.timed.add(batch_id)
            step.causes[batch_id] = Cause(consumed.partition, consumed.offset)
            step.effects += folded.effects
            step.events.append(consumed)
        return step

    async def _send(self, step: Step) -> None:
        sends: list[Awaitable[object]] = [
            self._sender.send(USAGE_RECORDED, usage.tenant, usage) for usage in step.bills
        ]
        for effect in step.effects:
            match effect:
                case SendTask():
                    sends.append(self._sender.send(FILE_TASK, effect.task.batch_id, effect.task))
                case RecordFile():
                    sends.append(self._sender.send(FILE, effect.file.file_id, effect.file))
                case RecordUsage() | PublishSnapshot():
                    pass
                case OpenLines() | SteerLines() | SettleLines() | CloseLines():
                    pass
                case _:
                    assert_never(effect)
        if sends:
            await asyncio.gather(*sends)

    def _write(self, step: Step) -> None:
        for batch_id, changed in step.chunks.items():
            self._books.write_chunks(batch_id, changed, step.causes[batch_id])
        reach("controller.chunks_written")
        for batch_id, batch in step.batches.items():
            self._books.write_batch(batch, step.causes[batch_id])
            if isinstance(batch, Ended):
                self._snapshots.forget(batch_id)
                _log_end(batch)
            else:
                self._snapshots.touch(batch_id)
        reach("controller.tables_written")


def _logged_at_ms(consumed: Consumed) -> int:
    # Milliseconds: our consumer passes on what the broker says.
    return int(consumed.event.message.timestamp or 0)


def _log_end(batch: Ended) -> None:
    log.info(
        "A batch has ended.",
        action="batch_ended",
        batch_id=batch.request.batch_id,
        status=batch.status.value,
        completed=batch.final.completed,
        failed=batch.final.failed,
    )
