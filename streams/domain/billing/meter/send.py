"""A send: one amount of tokens on its way to the bill.

    pending ──begin──► sent ──────────► confirmed      it arrived
      ▲  │              │  └──────────► rejected       it is refused for good
      │  └──► parked ◄──┘
      └────────┘    waits for a customer, a price, a person

What a person decides about one that has come to rest is in streams.domain.billing.meter.decisions.

- What is sent follows from the row alone, so a crash anywhere sends the same again: customer and
  meter are fixed, and durable, before the first try.
- The sink forgets an identifier after a day. A send that was first tried nearly so long ago and
  still isn't known to have arrived is looked for in the sink's own sums before it is sent again.
- What is older than the sink takes is parked, to be seen; nothing is ever dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from msgspec.structs import replace

from schemas.records import MeterSend, SendState

_HOUR_MS = 3_600_000
#: The sink knows an identifier for at least 24 hours from when it took it.
TRUSTED_MS = 23 * _HOUR_MS
#: The sink takes events of up to 35 days ago.
TOO_OLD_MS = 35 * 24 * _HOUR_MS - _HOUR_MS
#: The sink's sums are asked for by whole minutes.
MINUTE_MS = 60_000

#: Reasons of a parked send.
NO_CUSTOMER = "no_customer"
NO_PRICE = "no_price"
FLAGGED = "usage_flagged"
TOO_OLD = "too_old"
UNCLEAR = "sums_unclear"
#: These wait for a person to look; whatever else a send is parked for may come by itself.
FOR_A_PERSON = frozenset({FLAGGED, TOO_OLD, UNCLEAR})


class Next(Enum):
    """What is to be done with a send now."""

    #: Fix customer and meter, make that durable, then call.
    BEGIN = "begin"
    #: Call again, the same as before.
    CALL = "call"
    #: Look into the sink's sums.
    CHECK = "check"
    #: Take it back.
    CANCEL = "cancel"
    #: Park it, as too old.
    PARK = "park"
    #: Nothing, until something else changes.
    NOTHING = "nothing"


def next_of(send: MeterSend, now_ms: int) -> Next:
    """What is to be done."""
    too_old = now_ms - send.at_ms >= TOO_OLD_MS
    match send.state:
        case SendState.PENDING:
            return Next.PARK if too_old else Next.BEGIN
        case SendState.SENT:
            first = send.first_sent_at_ms
            doubtful = too_old or first is None or now_ms - first >= TRUSTED_MS
            return Next.CHECK if doubtful else Next.CALL
        case SendState.PARKED:
            return Next.PARK if too_old and waits_by_itself(send) else Next.NOTHING
        case SendState.CANCELLING:
            return Next.CANCEL
        case SendState.CONFIRMED | SendState.REJECTED | SendState.UNKNOWN:
            return Next.NOTHING
        case SendState.CANCELLED | SendState.WRITTEN_OFF:
            return Next.NOTHING
        case _:
            assert_never(send.state)


def waits_by_itself(send: MeterSend) -> bool:
    """Whether it is parked and may go on without anybody's decision."""
    return send.state is SendState.PARKED and send.reason not in FOR_A_PERSON


def is_open(send: MeterSend) -> bool:
    """Whether anything may still become of it, unless somebody decides otherwise."""
    return is_unbilled(send) or send.state is SendState.CANCELLING


def is_unbilled(send: MeterSend) -> bool:
    """Whether it isn't known to have arrived and may still."""
    return send.state in (SendState.PENDING, SendState.SENT, SendState.PARKED)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a send goes: the sink's customer, and the meter's event name."""

    customer: str
    event_name: str


def begin(send: MeterSend, target: Target, now_ms: int) -> MeterSend:
    """About to be tried for the first time."""
    only(send, SendState.PENDING)
    return replace(
        changed(send, SendState.SENT, now_ms),
        customer=target.customer,
        event_name=target.event_name,
        first_sent_at_ms=now_ms,
    )


def begin_again(send: MeterSend, now_ms: int) -> MeterSend:
    """The sink's sums say that it has not arrived: it is as if it had never been tried."""
    only(send, SendState.SENT)
    return replace(changed(send, SendState.SENT, now_ms), first_sent_at_ms=now_ms)


def confirm(send: MeterSend, now_ms: int) -> MeterSend:
    """The sink has it."""
    only(send, SendState.SENT)
    return changed(send, SendState.CONFIRMED, now_ms)


def reject(send: MeterSend, reason: str, now_ms: int) -> MeterSend:
    """The sink will never take it."""
    only(send, SendState.SENT)
    return changed(send, SendState.REJECTED, now_ms, reason)


def park(send: MeterSend, reason: str, now_ms: int) -> MeterSend:
    """It has to wait for something else than time."""
    only(send, SendState.PENDING, SendState.SENT, SendState.PARKED)
    return changed(send, SendState.PARKED, now_ms, reason)


def unpark(send: MeterSend, now_ms: int) -> MeterSend:
    """What it waited for has come."""
    only(send, SendState.PARKED)
    return changed(send, SendState.PENDING, now_ms)


def minute_of(at_ms: int) -> int:
    """The start of the minute by which the sink sums."""
    return at_ms // MINUTE_MS * MINUTE_MS


def arrived(send: MeterSend, known_tokens: int, sink_tokens: int) -> bool | None:
    """Whether the sink's sum of a customer's minute holds this send; None if that isn't clear.

    known_tokens: of the confirmed sends of that customer, meter and minute.
    """
    if sink_tokens == known_tokens + send.tokens:
        return True
    return False if sink_tokens == known_tokens else None


def changed(send: MeterSend, state: SendState, now_ms: int, reason: str = "") -> MeterSend:
    """It has come into this state."""
    return replace(
        send, watermark=send.watermark + 1, state=state, reason=reason, changed_at_ms=now_ms
    )


def only(send: MeterSend, *states: SendState) -> None:
    """Raises ValueError if it is in none of these states."""
    if send.state not in states:
        raise ValueError(f"A send that is {send.state.value} can't do that.")
