"""Sends parts of answers to the gateways: what is urgent at once, the rest after 25 ms together.

    parts of many answers ─► one outbox per gateway ─► one record at a time ─► realtime.reply

A part is urgent if its client waits for nothing else: the first event of a stream, the end of an
answer that comes whole, a failure. The acceptance is not, nor is the rest of a stream.

What the broker doesn't take for GIVE_UP_S is lost, and with it all that its answers still had to
say: each ends as failed, and gateways, who count the parts, take none with a hole for whole.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import NamedTuple

import structlog

from schemas.records import RealtimeReplies, RealtimeReply, ReplyKind
from streams.background import Broken, Tasks
from streams.domain.clock import Clock
from streams.domain.failures import FailureReason
from streams.kafka.errors import KafkaBaseError

log = structlog.get_logger(__name__)

#: How long a part that is not urgent waits for company.
LINGER_S = 0.025
#: A record takes parts up to this; a part is at most MAX_PART_BYTES.
MAX_RECORD_BYTES = 512 * 1024
MAX_PART_BYTES = 256 * 1024
_PART_BYTES = 64
#: With more waiting than this, answers are no longer read from the upstreams.
MAX_HELD_BYTES = 8 * 1024 * 1024
#: How long a record is tried. If it is the whole broker that is gone, every gateway has given up
#: on us by then; if it is one partition, its gateway still hears that we live, and waits.
GIVE_UP_S = 30.0
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.1, 2.0


class Destination(NamedTuple):
    """A gateway, and the partition that it reads."""

    gateway: str
    partition: int


Send = Callable[[int, RealtimeReplies], Awaitable[object]]
#: Told the ids of requests whose answers have lost parts.
Lost = Callable[[Collection[str]], None]


class Replies:
    """Everything on its way from this worker. `send` puts a record into a partition.

    Whoever is told by `lost` adds nothing more to these answers; how they end is said here.
    """

    def __init__(
        self, worker: str, process: str, send: Send, clock: Clock, lost: Lost, broken: Broken
    ) -> None:
        self._worker = worker
        self._process = process
        self._send = send
        self._clock = clock
        self._lost = lost
        self._outboxes: dict[Destination, _Outbox] = {}
        self._sending = Tasks(broken)

    def add(self, to: Destination, part: RealtimeReply, *, urgent: bool) -> None:
        """Takes a part; it is on its way at once, or within LINGER_S. Order is kept."""
        outbox = self._outboxes.get(to)
        if outbox is None:
            outbox = self._outboxes[to] = _Outbox()
            self._sending.start(self._work(to, outbox))
        outbox.add(part, urgent=urgent)

    async def room(self, to: Destination) -> None:
        """Waits while too much waits for the broker already."""
        outbox = self._outboxes.get(to)
        while outbox is not None and outbox.bytes > MAX_HELD_BYTES:
            await outbox.sent.wait()
            outbox = self._outboxes.get(to)

    async def drain(self, budget_s: float) -> None:
        """Sends what waits, and gives the broker so long to take it."""
        for outbox in self._outboxes.values():
            outbox.wake.set()
        await self._sending.stop(budget_s)

    async def _work(self, to: Destination, outbox: _Outbox) -> None:
        while outbox.parts:
            if not outbox.wake.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(LINGER_S):
                        await outbox.wake.wait()
            outbox.wake.clear()
            parts = outbox.take()
            if await self._deliver(to, parts):
                outbox.failed.clear()
            else:
                self._give_up(outbox, parts)
            outbox.taken()
        del self._outboxes[to]

    async def _deliver(self, to: Destination, parts: tuple[RealtimeReply, ...]) -> bool:
        """Whether the broker took them in time."""
        record = RealtimeReplies(
            gateway=to.gateway,
            worker=self._worker,
            process=self._process,
            at_ms=self._clock.now_ms(),
            replies=parts,
        )
        pause_s, give_up = _FIRST_PAUSE_S, time.monotonic() + GIVE_UP_S
        while True:
            try:
                # The same parts may arrive twice; gateways know them by their numbers.
                await self._send(to.partition, record)
            except KafkaBaseError as error:
                log.warning(
                    "The broker did not take parts of answers.",
                    action="replies_not_taken",
                    parts=len(parts),
                    error=type(error).__name__,
                )
                if time.monotonic() > give_up:
                    return False
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _MAX_PAUSE_S)
            else:
                return True

    def _give_up(self, outbox: _Outbox, parts: tuple[RealtimeReply, ...]) -> None:
        # A failure is told once more and not for ever: its client's time runs out all the same.
        last = {part.request_id: part for part in parts if part.request_id not in outbox.failed}
        log.error(
            "Parts of answers are lost: the broker did not take them. Their clients get an error.",
            action="replies_lost",
            parts=len(parts),
            answers=len(last),
        )
        self._lost(last)
        last |= {part.request_id: part for part in outbox.withdraw(last)}
        outbox.failed |= last.keys()
        for part in last.values():
            outbox.add(_failed_after(part), urgent=True)


class _Outbox:
    """The parts that wait for one gateway.

    wake: some are urgent. sent: some have left. failed: answers that were given up since the
    broker took something last.
    """

    __slots__ = ("bytes", "failed", "parts", "sent", "wake")

    def __init__(self) -> None:
        self.parts: deque[RealtimeReply] = deque()
        self.bytes = 0
        self.failed: set[str] = set()
        self.wake = asyncio.Event()
        self.sent = asyncio.Event()

    def add(self, part: RealtimeReply, *, urgent: bool) -> None:
        self.parts.append(part)
        self.bytes += len(part.data) + _PART_BYTES
        if urgent or self.bytes > MAX_RECORD_BYTES:
            self.wake.set()

    def take(self) -> tuple[RealtimeReply, ...]:
        """What goes into the next record, at least one part."""
        taken: list[RealtimeReply] = []
        size = 0
        while self.parts:
            size += len(self.parts[0].data) + _PART_BYTES
            if taken and size > MAX_RECORD_BYTES:
                self.wake.set()
                break
            taken.append(self.parts.popleft())
        self.bytes -= sum(len(part.data) + _PART_BYTES for part in taken)
        return tuple(taken)

    def withdraw(self, request_ids: Collection[str]) -> list[RealtimeReply]:
        """Takes out what waits of these answers."""
        out = [part for part in self.parts if part.request_id in request_ids]
        self.parts = deque(part for part in self.parts if part.request_id not in request_ids)
        self.bytes -= sum(len(part.data) + _PART_BYTES for part in out)
        return out

    def taken(self) -> None:
        """There is more room now."""
        self.sent.set()
        self.sent = asyncio.Event()


def _failed_after(part: RealtimeReply) -> RealtimeReply:
    if part.kind is ReplyKind.FAILED:
        return part
    return RealtimeReply(
        request_id=part.request_id,
        sequence=part.sequence + 1,
        kind=ReplyKind.FAILED,
        reason=FailureReason.UNREACHABLE.value,
    )
