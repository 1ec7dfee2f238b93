"""What `backhaul billing status` shows of Stripe's error reports."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from api.cli.terminal import note, out, printable

if TYPE_CHECKING:
    from schemas.records import BillingReport, BillingReportError
    from streams.domain.billing.reports.amounts import BillingStatus

_MS = 1000
#: Reports for people; --json has all.
_SHOWN = 20


def reports_shown(status: BillingStatus) -> list[dict[str, Any]]:
    """For --json, the latest first."""
    return [_report(report, status) for report in status.reports.all()]


def tell_reports(status: BillingStatus) -> None:
    """For people."""
    reports = status.reports.all()
    if not reports:
        return
    out("")
    out("Stripe took these amounts and could not bill them:")
    out(f"{'REPORTED':<20} {'AMOUNTS':>8} {'CODE':<40} METER AT STRIPE")
    for report in reports[:_SHOWN]:
        at = datetime.fromtimestamp(report.at_ms / _MS, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        meter = printable(report.meter_id or "(none)")
        if not report.asked:
            out(f"{at:<20} {'?':>8} {'(the gateway could not ask Stripe)':<40} {meter}")
        for error in report.errors:
            out(f"{at:<20} {error.count:>8,} {printable(error.code):<40} {meter}")
            _tell_amounts(error, status)
    if len(reports) > _SHOWN:
        note(f"{len(reports) - _SHOWN:,} reports more; --json shows all.")


def _tell_amounts(error: BillingReportError, status: BillingStatus) -> None:
    for identifier in error.identifiers:
        send = status.send(identifier)
        if send is None:
            out(f"  {printable(identifier)}: not one of ours")
        else:
            out(
                f"  {printable(identifier)}: {send.tenant}, {send.tokens:,} {send.token_type} "
                f"tokens of {send.model}, {send.batch_id}, {send.state.value}"
            )


def _report(report: BillingReport, status: BillingStatus) -> dict[str, Any]:
    errors = [_error(error, status) for error in report.errors]
    return {
        "event_id": report.event_id,
        "type": report.event_type,
        "at": report.at_ms // _MS,
        "meter_id": report.meter_id,
        "errors": errors if report.asked else None,
    }


def _error(error: BillingReportError, status: BillingStatus) -> dict[str, Any]:
    return {
        "code": error.code,
        "count": error.count,
        "amounts": [_amount(identifier, status) for identifier in error.identifiers],
    }


def _amount(identifier: str, status: BillingStatus) -> dict[str, Any]:
    """The amount that an identifier names; all but the identifier null if it isn't ours."""
    send = status.send(identifier)
    return {
        "identifier": identifier,
        "tenant": None if send is None else send.tenant,
        "batch_id": None if send is None else send.batch_id,
        "model": None if send is None else send.model,
        "token_type": None if send is None else send.token_type,
        "tokens": None if send is None else send.tokens,
        "state": None if send is None else send.state.value,
    }
