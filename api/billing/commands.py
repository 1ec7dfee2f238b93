"""What operators decide about amounts: told to the meter through the log, and answered there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from api.billing.customers import all_records
from api.log_port import LogProducer, LogReader
from schemas.records import BillingCommand, BillingCommandKind, BillingDecision, MeterSend
from schemas.topics import METER_SEND, USAGE_RECORDED, Topic
from streams.domain.billing.meter.decisions import MAX_BY, MAX_REASON
from streams.domain.clock import Clock
from streams.domain.ids import new_command_id

_POLL_S = 0.2

Readers = Callable[[Sequence[Topic]], LogReader]


class InvalidDecision(ValueError):  # noqa: N818 - it is what is wrong
    """The command can't be given; the message says why."""


class UnknownAmount(LookupError):  # noqa: N818 - as above
    """No amount has this identifier."""


class NotAnswered(TimeoutError):  # noqa: N818 - as above
    """The command is in the log, and no meter has answered yet. state: the amount's, as known."""

    def __init__(self, state: str) -> None:
        super().__init__(state)
        self.state = state


async def command(
    identifier: str,
    kind: BillingCommandKind,
    *,
    reason: str,
    by: str,
    producer: LogProducer,
    readers: Readers,
    clock: Clock,
    within_s: float,
) -> tuple[BillingDecision, MeterSend]:
    """Tells the meter, and waits for its answer: what it decided, and the amount before.

    Raises InvalidDecision, UnknownAmount, NotAnswered, KafkaBaseError.
    """
    _check(reason, by)
    send = await find(readers([METER_SEND]), identifier)
    given = BillingCommand(
        command_id=new_command_id(),
        tenant=send.tenant,
        identifier=identifier,
        kind=kind,
        reason=reason,
        by=by,
        at_ms=clock.now_ms(),
    )
    reader = readers([METER_SEND])
    await reader.start("end")
    try:
        await producer.send(USAGE_RECORDED, given.tenant, given)
        return await _answer(reader, given, send, within_s), send
    finally:
        await reader.stop()


async def find(reader: LogReader, identifier: str) -> MeterSend:
    """The amount as it is now; `reader` is a fresh one of METER_SEND. Raises UnknownAmount."""
    found: MeterSend | None = None
    async for read in all_records(reader):
        send = read.record
        if isinstance(send, MeterSend) and send.identifier == identifier:
            found = _newer(found, send)
    if found is None:
        raise UnknownAmount(f"There is no amount with the identifier {identifier}.")
    return found


async def _answer(
    reader: LogReader, given: BillingCommand, send: MeterSend, within_s: float
) -> BillingDecision:
    try:
        async with asyncio.timeout(within_s):
            while True:
                for read in await reader.poll(_POLL_S):
                    record = read.record
                    if isinstance(record, BillingDecision) and read.key == given.command_id:
                        return record
                    if isinstance(record, MeterSend) and record.identifier == given.identifier:
                        send = _newer(send, record)
    except TimeoutError:
        raise NotAnswered(send.state.value) from None


def _newer(known: MeterSend | None, send: MeterSend) -> MeterSend:
    return send if known is None or known.watermark <= send.watermark else known


def _check(reason: str, by: str) -> None:
    if not (reason.strip() and reason.isprintable() and len(reason) <= MAX_REASON):
        raise InvalidDecision(f"A reason is 1 to {MAX_REASON} printable characters.")
    if not (by.strip() and by.isprintable() and len(by) <= MAX_BY):
        raise InvalidDecision(f"Who decides it is 1 to {MAX_BY} printable characters.")
