"""What Stripe says later of usage that it took: the amounts that it could not bill after all."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from schemas.records import BillingReport, BillingReportError

#: Types of Stripe's events that tell of it.
EVENT_TYPES = frozenset(
    {"v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"}
)
#: Bounds of what is kept of one event.
MAX_ERRORS, MAX_IDENTIFIERS, MAX_CHARS = 20, 10, 100
_MAX_COUNT = 10**12
#: So long a report asks for somebody; Stripe reports again what goes on.
_FRESH_MS = 7 * 86_400_000


def bounded(code: str, count: int, identifiers: Iterable[str]) -> BillingReportError:
    """An error of a report, no larger than it may be."""
    kept = [one[:MAX_CHARS] for one in islice(identifiers, MAX_IDENTIFIERS)]
    return BillingReportError(
        code=code[:MAX_CHARS],
        count=min(max(0, count), _MAX_COUNT),
        identifiers=tuple(kept),
    )


class BillingReports:
    """Folds the records of `billing.report`, in any order and number."""

    def __init__(self) -> None:
        self._by_event: dict[str, BillingReport] = {}

    def apply(self, report: BillingReport) -> None:
        """One record. Of an event's records one that knows the errors goes before one without."""
        known = self._by_event.get(report.event_id)
        if known is None or not known.asked:
            self._by_event[report.event_id] = report

    def all(self) -> list[BillingReport]:
        """One of each event, the latest first."""
        found = self._by_event.values()
        return sorted(found, key=lambda one: (-one.at_ms, one.event_id))

    def fresh(self, now_ms: int) -> bool:
        """Whether Stripe has reported anything within a week."""
        return any(now_ms - one.at_ms < _FRESH_MS for one in self._by_event.values())
