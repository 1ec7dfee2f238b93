"""Where the amounts that are to be billed are, and which of them need somebody."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from schemas.records import MeterSend, SendState
from streams.domain.billing.meter.send import FOR_A_PERSON, is_unbilled
from streams.domain.billing.reports.stripe_errors import BillingReports


def waits_for_a_person(send: MeterSend) -> bool:
    """Whether it won't be billed unless somebody does something: refused, or parked for good."""
    if send.state is SendState.PARKED:
        return send.reason in FOR_A_PERSON
    return send.state is SendState.REJECTED


@dataclass(slots=True)
class Amount:
    """How many sends, and their tokens."""

    sends: int = 0
    tokens: int = 0

    def add(self, tokens: int) -> None:
        """One send more."""
        self.sends += 1
        self.tokens += tokens


@dataclass(slots=True)
class MeterTokens:
    """Tokens of a tenant on one meter: at the sink, on their way, and refused for good.

    adjusted: taken back, or written off.
    """

    confirmed: int = 0
    waiting: int = 0
    rejected: int = 0
    adjusted: int = 0


class BillingStatus:
    """Folds the records of `meter.send`, in any order; holds the latest of each identifier."""

    def __init__(self, sends: Iterable[MeterSend] = ()) -> None:
        self._latest: dict[str, MeterSend] = {}
        #: What Stripe said later of what it took.
        self.reports = BillingReports()
        for send in sends:
            self.apply(send)

    def apply(self, send: MeterSend) -> None:
        """One record; the highest watermark of an identifier counts."""
        known = self._latest.get(send.identifier)
        if known is None or known.watermark < send.watermark:
            self._latest[send.identifier] = send

    def send(self, identifier: str) -> MeterSend | None:
        """The amount of this identifier, as it is now."""
        return self._latest.get(identifier)

    def by_state(self) -> dict[SendState, Amount]:
        """Amounts by state, of the states that there are."""
        found: dict[SendState, Amount] = {}
        for send in self._latest.values():
            found.setdefault(send.state, Amount()).add(send.tokens)
        return dict(sorted(found.items()))

    def by_meter(self) -> dict[tuple[str, str], MeterTokens]:
        """Tokens by tenant and meter; the meter is "" before a send's first try fixes it."""
        found: dict[tuple[str, str], MeterTokens] = {}
        for send in self._latest.values():
            sums = found.setdefault((send.tenant, send.event_name or ""), MeterTokens())
            if send.state in (SendState.CONFIRMED, SendState.CANCELLING):
                sums.confirmed += send.tokens
            elif send.state is SendState.REJECTED:
                sums.rejected += send.tokens
            elif send.state in (SendState.CANCELLED, SendState.WRITTEN_OFF):
                sums.adjusted += send.tokens
            else:
                sums.waiting += send.tokens
        return dict(sorted(found.items()))

    def stuck(self) -> list[MeterSend]:
        """The parked and the refused ones, oldest first."""
        held = (SendState.PARKED, SendState.REJECTED)
        return _by_age(send for send in self._latest.values() if send.state in held)

    def oldest_open(self) -> MeterSend | None:
        """The oldest that isn't known to have arrived and may still."""
        return next(iter(_by_age(s for s in self._latest.values() if is_unbilled(s))), None)

    def needs_somebody(self) -> bool:
        """Whether any send waits for a person."""
        return any(map(waits_for_a_person, self._latest.values()))


def _by_age(sends: Iterable[MeterSend]) -> list[MeterSend]:
    return sorted(sends, key=lambda send: (send.at_ms, send.identifier))
