"""Sends outcomes: those of one batch that finish close together travel in one record.

A record costs more than a line does, so an outcome waits up to 20 ms for company; not when it
is the only one that its batch waits for, or one of the batch's last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from schemas.records import DoneLines, Outcome
from streams.background import Broken, Tasks
from streams.batch_worker.line import Line
from streams.domain.clock import Clock
from streams.kafka.errors import KafkaBaseError
from streams.kafka.failpoint import reach

log = structlog.get_logger(__name__)

#: How long an outcome waits for company.
LINGER_S = 0.02
#: A record is sent when it holds so many bytes or outcomes.
MAX_RECORD_BYTES = 256 * 1024
MAX_RECORD_OUTCOMES = 500
#: About what an outcome takes without its rendered line.
_OUTCOME_BYTES = 128
#: Pauses while the broker doesn't take a record; outcomes are never given up.
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.2, 5.0

Send = Callable[[DoneLines], Awaitable[object]]


class _Buffer:
    __slots__ = ("bytes", "lines", "numbers", "outcomes", "tail", "timer")

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.outcomes: list[Outcome] = []
        self.numbers: set[int] = set()
        self.bytes = 0
        self.tail = False
        self.timer: asyncio.Handle | None = None


class OutcomePublisher:
    """Packs and sends outcomes. `sent` is called for each line once the broker has its outcome."""

    def __init__(
        self,
        worker: str,
        send: Send,
        sent: Callable[[Line], None],
        clock: Clock,
        broken: Broken,
    ) -> None:
        self._worker = worker
        self._send = send
        self._sent = sent
        self._clock = clock
        self._buffers: dict[str, _Buffer] = {}
        self._sending = Tasks(broken)

    def add(self, line: Line, outcome: Outcome) -> None:
        """Takes an outcome; it is on its way within LINGER_S."""
        batch = line.batch
        buffer = self._buffers.get(batch.batch_id)
        size = _OUTCOME_BYTES + len(outcome.rendered or b"")
        # Copies of a line are told apart by their record's offset, so they travel separately.
        if buffer is not None and (
            buffer.bytes + size > MAX_RECORD_BYTES or outcome.line in buffer.numbers
        ):
            self._flush(batch.batch_id)
            buffer = None
        if buffer is None:
            buffer = self._buffers[batch.batch_id] = _Buffer()
        buffer.lines.append(line)
        buffer.outcomes.append(outcome)
        buffer.numbers.add(outcome.line)
        buffer.bytes += size
        buffer.tail = buffer.tail or line.ready.tail
        if buffer.bytes >= MAX_RECORD_BYTES or len(buffer.outcomes) >= MAX_RECORD_OUTCOMES:
            self._flush(batch.batch_id)
        elif buffer.tail or batch.unanswered == 0:
            # At once, but with the answers that this turn of the loop still brings.
            self._arm(batch.batch_id, buffer, 0.0)
        elif buffer.timer is None:
            self._arm(batch.batch_id, buffer, LINGER_S)

    async def drain(self, budget_s: float) -> None:
        """Sends what waits now and gives the broker so long to take it."""
        for batch_id in list(self._buffers):
            self._flush(batch_id)
        await self._sending.stop(budget_s)

    def _arm(self, batch_id: str, buffer: _Buffer, delay_s: float) -> None:
        if buffer.timer is not None:
            buffer.timer.cancel()
        loop = asyncio.get_running_loop()
        if delay_s == 0.0:
            buffer.timer = loop.call_soon(self._flush, batch_id)
        else:
            buffer.timer = loop.call_later(delay_s, self._flush, batch_id)

    def _flush(self, batch_id: str) -> None:
        buffer = self._buffers.pop(batch_id)
        if buffer.timer is not None:
            buffer.timer.cancel()
        self._sending.start(self._deliver(buffer))

    async def _deliver(self, buffer: _Buffer) -> None:
        batch = buffer.lines[0].batch
        record = DoneLines(
            batch_id=batch.batch_id,
            tenant=batch.tenant,
            at_ms=self._clock.now_ms(),
            worker=self._worker,
            tail=buffer.tail,
            outcomes=tuple(buffer.outcomes),
        )
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                await self._send(record)
            except KafkaBaseError as error:
                log.warning(
                    "The broker did not take outcomes; trying again.",
                    action="outcomes_not_taken",
                    batch_id=batch.batch_id,
                    error=type(error).__name__,
                )
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _MAX_PAUSE_S)
            else:
                break
        reach("batch_worker.outcome_sent")
        for line in buffer.lines:
            self._sent(line)
        reach("batch_worker.acked")
