"""What operators decide about sends, and when that may be done.

    confirmed ──cancel──► cancelling ──► cancelled      the sink took it back
        ▲                     └──► confirmed            it would not
    parked, rejected ──send──► pending                  it is tried as if for the first time
    parked, rejected ──write off──► written_off         it is never billed
    parked (sums_unclear) ──arrived──► confirmed        somebody has looked: it is there

A decision, refused or not, is written into the row of its send with its offset in the log, so that
a replay of it, or of an earlier one, changes nothing.
"""

from __future__ import annotations

from enum import StrEnum
from typing import assert_never

from msgspec.structs import replace

from schemas.records import (
    BillingCommand,
    BillingCommandKind,
    BillingDecision,
    MeterSend,
    SendState,
)
from streams.domain.billing.meter.send import FOR_A_PERSON, TOO_OLD_MS, UNCLEAR, changed, only

#: The sink takes back what came within the last 24 hours.
CANCELLABLE_MS = 24 * 3_600_000


#: Bounds of what a command says; Kafka's producers are anybody's.
MAX_REASON, MAX_BY, _MAX_ID = 500, 100, 100


class Refusal(StrEnum):
    """Why a decision is not carried out; for people the command line has words."""

    UNKNOWN_AMOUNT = "unknown_amount"
    UNKNOWN_COMMAND = "unknown_command"
    #: To be taken back it must have arrived, and not have been taken back already.
    NOT_CONFIRMED = "not_confirmed"
    TOO_LATE = "too_late"
    #: It waits for no decision: it is on its way, or has come to its end.
    NOT_WAITING = "not_waiting"
    #: It goes on when what it waits for is there.
    GOES_ON_BY_ITSELF = "goes_on_by_itself"
    #: Only the sink's sums can leave open whether something arrived.
    NOT_UNCLEAR = "not_unclear"


def decide(send: MeterSend, command: BillingCommand, offset: int, now_ms: int) -> MeterSend:
    """The send as the command makes it, or as it was with why it may not (command_refusal)."""
    found = _obeyed(send, command, now_ms)
    if isinstance(found, Refusal):
        return replace(
            send, watermark=send.watermark + 1, command_offset=offset, command_refusal=found.value
        )
    return replace(found, command=command, command_offset=offset, command_refusal="")


def onto(known: MeterSend, send: MeterSend) -> MeterSend:
    """The send, made of an older row than the known one: what was refused meanwhile stays so.

    Nothing else can have changed it: while its lane is at it, all commands are refused.
    """
    if known.command_offset <= send.command_offset:
        return send
    return replace(
        send,
        watermark=max(known.watermark, send.watermark) + 1,
        command_offset=known.command_offset,
        command_refusal=known.command_refusal,
    )


def bounded(command: BillingCommand) -> BillingCommand:
    """The command, no larger than it may be."""
    return replace(
        command,
        command_id=command.command_id[:_MAX_ID],
        identifier=command.identifier[:_MAX_ID],
        reason=command.reason[:MAX_REASON],
        by=command.by[:MAX_BY],
    )


def taken_back(send: MeterSend, now_ms: int) -> MeterSend:
    """The sink no longer counts it."""
    only(send, SendState.CANCELLING)
    return changed(send, SendState.CANCELLED, now_ms)


def kept(send: MeterSend, now_ms: int) -> MeterSend:
    """The sink would not take it back."""
    only(send, SendState.CANCELLING)
    return replace(changed(send, SendState.CONFIRMED, now_ms), command=None)


def decision(
    command: BillingCommand, send: MeterSend | None, refusal: str, now_ms: int
) -> BillingDecision:
    """What the books keep of it. refusal: empty if it was carried out."""
    return BillingDecision(
        command=command,
        done=not refusal,
        refusal=refusal,
        tokens=0 if send is None else send.tokens,
        at_ms=now_ms,
    )


def _obeyed(send: MeterSend, command: BillingCommand, now_ms: int) -> MeterSend | Refusal:
    match command.kind:
        case BillingCommandKind.CANCEL:
            return _cancelled(send, now_ms)
        case BillingCommandKind.SEND:
            return _released(send, now_ms)
        case BillingCommandKind.WRITE_OFF:
            waits = send.state in (SendState.PARKED, SendState.REJECTED)
            gone = SendState.WRITTEN_OFF
            # Why it waited stays to be seen.
            return changed(send, gone, now_ms, send.reason) if waits else Refusal.NOT_WAITING
        case BillingCommandKind.ARRIVED:
            unclear = send.state is SendState.PARKED and send.reason == UNCLEAR
            there = SendState.CONFIRMED
            return changed(send, there, now_ms) if unclear else Refusal.NOT_UNCLEAR
        case BillingCommandKind.UNKNOWN:
            return Refusal.UNKNOWN_COMMAND
        case _:
            assert_never(command.kind)


def _cancelled(send: MeterSend, now_ms: int) -> MeterSend | Refusal:
    if send.state is not SendState.CONFIRMED:
        return Refusal.NOT_CONFIRMED
    came_ms = send.changed_at_ms if send.first_sent_at_ms is None else send.first_sent_at_ms
    if now_ms - came_ms >= CANCELLABLE_MS:
        return Refusal.TOO_LATE
    return changed(send, SendState.CANCELLING, now_ms)


def _released(send: MeterSend, now_ms: int) -> MeterSend | Refusal:
    if send.state is SendState.PARKED and send.reason not in FOR_A_PERSON:
        return Refusal.GOES_ON_BY_ITSELF
    if send.state not in (SendState.PARKED, SendState.REJECTED):
        return Refusal.NOT_WAITING
    found = changed(send, SendState.PENDING, now_ms)
    # Usage of so long ago the sink takes as of now only: it is billed in the present period.
    return replace(found, at_ms=now_ms) if now_ms - send.at_ms >= TOO_OLD_MS else found
