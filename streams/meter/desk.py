"""Carries out what operators decide about amounts (streams.domain.billing.meter.decisions).

    done:     row, durable ─► state and decision on meter.send ─► the tenant's lane ─► ack
    refused:  row, durable ─► decision on meter.send ─► ack

What was told is so: a replay finds the offset in the row and changes nothing. It tells the same
again, since a crash may have come before it was told. Whether the sink takes something back is told
by the lane, when the sink has answered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from schemas.records import (
    BillingCommand,
    BillingCommandKind,
    BillingDecision,
    MeterSend,
    SendState,
)
from schemas.topics import METER_SEND
from streams.domain.billing.meter.decisions import Refusal, bounded, decide, decision
from streams.domain.clock import Clock
from streams.kafka.failpoint import reach
from streams.meter.books import Books
from streams.meter.ports import Guard, Publisher

log = structlog.get_logger(__name__)

#: What becomes of these their lane tells.
_IN_A_LANE = (SendState.PENDING, SendState.SENT, SendState.CANCELLING)


class Desk:
    """Takes commands.

    flush: returns when the tables' writes are durable. queue: told what is to go on through its
    tenant's lane.
    """

    def __init__(
        self,
        books: Books,
        publisher: Publisher,
        guard: Guard,
        clock: Clock,
        flush: Callable[[], Awaitable[None]],
        queue: Callable[[MeterSend], None],
    ) -> None:
        self._books = books
        self._publisher = publisher
        self._guard = guard
        self._clock = clock
        self._flush = flush
        self._queue = queue

    async def obey(self, command: BillingCommand, offset: int, live: Callable[[], bool]) -> bool:
        """Carries one command out, or refuses it. False if its partition was revoked meanwhile."""
        command = bounded(command)
        async with self._books.deciding:
            await self._guard.wait()
            if not live():
                return False
            send = self._books.send(command.identifier)
            if send is None or send.tenant != command.tenant:
                await self._tell(command, None, Refusal.UNKNOWN_AMOUNT)
            elif offset > send.command_offset:
                return await self._decide(send, command, offset, live)
            elif offset == send.command_offset and send.command_refusal:
                await self._tell(command, send, send.command_refusal)
            elif send.command == command:
                if send.state not in _IN_A_LANE:
                    await self._publish(send)
                await self._tell_done(command, send)
        return True

    async def _decide(
        self, send: MeterSend, command: BillingCommand, offset: int, live: Callable[[], bool]
    ) -> bool:
        found = decide(send, command, offset, self._clock.now_ms())
        self._books.write(found, self._clock.now_ms())
        reach("meter.decided")
        await self._flush()
        reach("meter.decision_durable")
        if not live():
            return False
        if found.command_refusal:
            await self._tell(command, found, found.command_refusal)
            reach("meter.refusal_told")
            return True
        await self._publish(found)
        await self._tell_done(command, found)
        reach("meter.decision_told")
        # Last: what the lane tells of the send must come after this.
        if found.state in _IN_A_LANE:
            self._queue(found)
        return True

    async def _publish(self, send: MeterSend) -> None:
        await self._publisher.send(METER_SEND, send.identifier, send)

    async def _tell_done(self, command: BillingCommand, send: MeterSend) -> None:
        if command.kind is not BillingCommandKind.CANCEL:
            await self._tell(command, send, "")

    async def _tell(self, command: BillingCommand, send: MeterSend | None, refusal: str) -> None:
        await tell(self._publisher, decision(command, send, refusal, self._clock.now_ms()))


async def tell(publisher: Publisher, made: BillingDecision) -> None:
    """Puts a decision into the books."""
    command = made.command
    log.info(
        "An operator's decision about an amount.",
        action="billing_decision",
        identifier=command.identifier,
        kind=command.kind.value,
        by=command.by,
        refusal=made.refusal,
    )
    await publisher.send(METER_SEND, command.command_id, made)
