"""What Stripe tells us by its webhook: whether it is Stripe's, and what it is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from schemas.records import BillingReportError

#: How old a signature may be.
TOLERANCE_S = 300
#: How far a signature's time may be from ours before its notice isn't even read: clocks differ.
MAX_OFF_S = 2 * TOLERANCE_S
#: Longest event id.
MAX_ID = 255


class NoticeInvalid(Exception):  # noqa: N818 - it is what is wrong
    """It is not signed by Stripe for us, it is too old, or it is no event."""


class EventsUnavailable(Exception):  # noqa: N818 - a state of the other side, not of the caller
    """Stripe can't be asked now; when it repeats its notice, it may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """An event of Stripe's, without its content. at_ms: Unix milliseconds, by Stripe's clock."""

    event_id: str
    event_type: str
    at_ms: int
    meter_id: str | None


class StripeEvents(Protocol):
    """Reads notices."""

    def plausible(self, signature: str | None, now_s: int) -> bool:
        """Whether a Stripe-Signature of this form and age might be good. now_s: Unix seconds.

        It costs nothing, is asked before the body is read, and says nothing of who made it.
        """
        ...

    def verified(self, body: bytes, signature: str | None) -> Notice:
        """The notice in a request's body, given its Stripe-Signature. Raises NoticeInvalid."""
        ...

    async def errors(self, notice: Notice) -> tuple[BillingReportError, ...] | None:
        """What the event says is wrong; None if we have no key to ask with, or may not.

        Bounded in number and size. Raises EventsUnavailable.
        """
        ...

    async def close(self) -> None:
        """Disconnects. Idempotent."""
        ...
