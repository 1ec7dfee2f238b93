"""Stripe's webhook for tests: notices signed with `sign`, and errors that are yours."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

import msgspec

from schemas.records import BillingReportError
from streams.domain.clock import Clock
from streams.ports.stripe_events import (
    MAX_OFF_S,
    TOLERANCE_S,
    EventsUnavailable,
    Notice,
    NoticeInvalid,
)

_FORM = re.compile(r"([0-9]{1,12}):[0-9a-f]{64}")


@dataclass
class FakeStripeEvents:
    """Keeps the rules of the port with a signature of its own. errors_of: by event id."""

    clock: Clock
    errors_of: dict[str, tuple[BillingReportError, ...] | None] = field(default_factory=dict)
    available: bool = True
    #: Event ids that were asked for.
    asked: list[str] = field(default_factory=list)

    def sign(self, body: bytes, at_s: int | None = None) -> str:
        """The signature of a body made then, by default now."""
        at_s = self.clock.now_ms() // 1000 if at_s is None else at_s
        return f"{at_s}:{hashlib.sha256(f'{at_s}.'.encode() + body).hexdigest()}"

    def plausible(self, signature: str | None, now_s: int) -> bool:
        """See StripeEvents.plausible."""
        found = _FORM.fullmatch(signature or "")
        return found is not None and abs(now_s - int(found[1])) <= MAX_OFF_S

    def verified(self, body: bytes, signature: str | None) -> Notice:
        """See StripeEvents.verified."""
        at_s = (signature or "").partition(":")[0]
        if not at_s.isdecimal() or signature != self.sign(body, int(at_s)):
            raise NoticeInvalid("signature")
        if self.clock.now_ms() // 1000 - int(at_s) > TOLERANCE_S:
            raise NoticeInvalid("too old")
        try:
            found = msgspec.json.decode(body)
            related = found.get("related_object") or {}
            return Notice(
                event_id=found["id"],
                event_type=found["type"],
                at_ms=self.clock.now_ms(),
                meter_id=related.get("id"),
            )
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError, AttributeError) as error:
            raise NoticeInvalid("no event") from error

    async def errors(self, notice: Notice) -> tuple[BillingReportError, ...] | None:
        """See StripeEvents.errors."""
        self.asked.append(notice.event_id)
        if not self.available:
            raise EventsUnavailable("scripted")
        return self.errors_of.get(notice.event_id)

    async def close(self) -> None:
        """Nothing to close."""
