"""What `backhaul billing reconcile` prints."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from api.billing.reconcile.run import Report
from api.billing.reconcile.sums import Checked, SinkSum
from api.cli.terminal import note, out, out_json, printable
from schemas.records import MeterSend, Usage
from streams.domain.billing.reconcile.lines import LineDifference
from streams.domain.billing.reconcile.sums import Difference, Entry, sums

#: Lines of a batch for people; --json has up to a thousand.
_LINES_SHOWN = 20
_ABSENT = "-"


def print_all(report: Report) -> None:
    """For people: what differs in full, the rest as sums."""
    wrong = {difference.account for difference in report.differences}
    _table(e for e in report.entries if report.batches == 1 or e.account in wrong)
    if report.batches != 1:
        _table(sums(report.entries))
    _print_sums(report.sums)
    for difference in report.differences:
        out(_said(difference))
    for batch_id, lines in report.lines.items():
        _print_lines(batch_id, lines)
    for send in report.adjusted[:_LINES_SHOWN]:
        out(_adjusted_said(send))
    waiting = [send for entry in report.entries for send in entry.waiting]
    for send in waiting[:_LINES_SHOWN]:
        out(
            f"WAITING {send.reason}: {send.identifier}: {send.tokens:,} {send.token_type} "
            f"({send.state.value})"
        )
    if len(waiting) > _LINES_SHOWN:
        note(f"{len(waiting) - _LINES_SHOWN:,} amounts more wait; --json shows all.")
    _print_notes(report)


def print_json(report: Report) -> None:
    """For scripts: one object a line, the last one sums it up."""
    for entry in report.entries:
        out_json({"object": "entry", **_account(entry), **_amounts(entry)})
    for checked in report.sums or ():
        minutes = [
            {**_sum(minute), "sends": [send.identifier for send in minute.sends]}
            for minute in checked.minutes
        ]
        out_json({"object": "sink_sum", **_sum(checked.sum), "minutes": minutes})
    for difference in report.differences:
        account = difference.account
        out_json(
            {
                "object": "difference",
                "cause": difference.cause.value,
                "tenant": account.tenant,
                "batch_id": account.batch_id,
                "model": account.model,
                "token_type": account.token_type,
                "expected": difference.expected,
                "found": difference.found,
            }
        )
    for send in report.adjusted:
        out_json({"object": "adjustment", **_adjusted(send)})
    for batch_id, lines in report.lines.items():
        for line in lines:
            out_json({"object": "line", "batch_id": batch_id, **_line(line)})
    out_json(_summary(report))


def _summary(report: Report) -> dict[str, Any]:
    return {
        "object": "summary",
        "balanced": report.balanced,
        "batches": report.batches,
        "running": report.running,
        "without_output": report.without_output,
        "sink": None if report.sums is None else "compared",
        "tokens": report.tokens,
        "on_its_way": report.on_way,
    }


def _table(entries: Iterable[Entry]) -> None:
    """Amounts, under the tenant, the batch and the model that they are of."""
    heading = ""
    for entry in entries:
        account, sent = entry.account, entry.sent
        of = printable(f"{account.tenant}, {account.batch_id}, {account.model}")
        if of != heading:
            heading = of
            out(of)
            out(
                f"  {'':<12} {'OUTPUT FILE':>15} {'LEDGER':>15} {'SENT':>15} {'ON ITS WAY':>15} "
                f"{'WAITING':>15} {'ADJUSTED':>15}"
            )
        out(
            f"  {account.token_type:<12} {_or_absent(entry.output):>15} "
            f"{_or_absent(entry.ledger):>15} {sent.confirmed:>15,} "
            f"{sent.on_way:>15,} {sent.parked + sent.rejected:>15,} {sent.adjusted:>15,}"
        )
    if heading:
        out("")


def _print_sums(found: list[Checked] | None) -> None:
    if not found:
        return
    out(f"{'CUSTOMER':<24} {'SENT':>16} {'BILLED':>16} METER, MINUTES")
    for checked in found:
        _print_sum(checked.sum)
        for minute in checked.minutes:
            if minute.range != checked.sum.range:
                _print_sum(minute, indent="  ")
            for send in minute.sends:
                out(f"    {send.identifier}: {send.tokens:,} {send.state.value}")
    out("")


def _print_sum(found: SinkSum, indent: str = "") -> None:
    expected, range_ = found.expected, found.range
    wanted = f"{expected.least:,}"
    if expected.most != expected.least:
        wanted += f" to {expected.most:,}"
    said = "" if found.agrees else "  DIFFERENT"
    if found.refused is not None:
        said += f" ({found.refused})"
    out(
        f"{indent + range_.customer:<24} {wanted:>16} {found.found:>16,} "
        f"{printable(range_.event_name)} {_time(range_.start_ms)} to {_time(range_.end_ms)}{said}"
    )


def _said(difference: Difference) -> str:
    account, found, expected = difference.account, difference.found, difference.expected
    amounts = (
        f"{found:,} instead of {expected:,} ({found - expected:+,})" if expected else f"{found:,}"
    )
    return (
        f"DIFFERENT {difference.cause.value}: {printable(account.batch_id)} "
        f"{printable(account.model)} {account.token_type}: {amounts}"
    )


def _adjusted_said(send: MeterSend) -> str:
    said = f"ADJUSTED {send.state.value}: {send.identifier}: {send.tokens:,} {send.token_type}"
    if send.command is not None:
        by, why = printable(send.command.by), printable(send.command.reason)
        said += f", by {by} at {_time(send.command.at_ms)}: {why}"
    return said


def _print_lines(batch_id: str, lines: list[LineDifference]) -> None:
    if not lines:
        note(f"{batch_id}: every line of the output file is as it was recorded.")
    for line in lines[:_LINES_SHOWN]:
        where = "" if line.number is None else f"line {line.number + 1} of the input, "
        where += (
            "not in the output file" if line.place is None else f"line {line.place} of the output"
        )
        said = f"  {batch_id}: {line.fault.value}: {where}"
        if line.request_id is not None:
            said += f", {line.request_id}"
        out(f"{said}: {_words(line.output)}; recorded {_words(line.recorded)}")
    if len(lines) > _LINES_SHOWN:
        note(f"{len(lines) - _LINES_SHOWN:,} lines more; --json shows up to a thousand.")


def _print_notes(report: Report) -> None:
    if report.sums is None:
        note(
            "NOT COMPARED with what was billed: there is no BACKHAUL_STRIPE_KEY here and no folder "
            "`usage` of a meter that writes files."
        )
    if report.running:
        note(f"{_batches(len(report.running))} still running: not compared.")
    if report.without_output:
        note(
            f"{_batches(len(report.without_output))} without an output file, since it was deleted "
            f"or expired: not compared with it: {', '.join(report.without_output[:_LINES_SHOWN])}"
        )
    if report.on_way:
        note(f"{report.on_way:,} tokens are on their way.")
    if report.balanced:
        note(f"Balanced: {_batches(report.batches)}, {report.tokens:,} tokens.")


def _account(entry: Entry) -> dict[str, Any]:
    account = entry.account
    return {
        "tenant": account.tenant,
        "batch_id": account.batch_id,
        "model": account.model,
        "token_type": account.token_type,
    }


def _amounts(entry: Entry) -> dict[str, Any]:
    sent = entry.sent
    return {
        "output_file": entry.output,
        "ledger": entry.ledger,
        "sent": sent.confirmed,
        "on_its_way": sent.on_way,
        "parked": sent.parked,
        "rejected": sent.rejected,
        "cancelled": sent.cancelled,
        "written_off": sent.written_off,
        "waiting": [send.identifier for send in entry.waiting],
    }


def _adjusted(send: MeterSend) -> dict[str, Any]:
    command = send.command
    return {
        "identifier": send.identifier,
        "tenant": send.tenant,
        "batch_id": send.batch_id,
        "model": send.model,
        "token_type": send.token_type,
        "tokens": send.tokens,
        "state": send.state.value,
        "by": None if command is None else command.by,
        "reason": None if command is None else command.reason,
        "at": None if command is None else command.at_ms // 1000,
    }


def _sum(found: SinkSum) -> dict[str, Any]:
    return {
        "customer": found.range.customer,
        "meter": found.range.event_name,
        "start_time": found.range.start_ms // 1000,
        "end_time": found.range.end_ms // 1000,
        "expected_least": found.expected.least,
        "expected_most": found.expected.most,
        "billed": found.found,
        "refused": found.refused,
        "agrees": found.agrees,
    }


def _line(line: LineDifference) -> dict[str, Any]:
    return {
        "fault": line.fault.value,
        "line": None if line.number is None else line.number + 1,
        "output_line": line.place,
        "request_id": line.request_id,
        "output_file": line.output,
        "recorded": line.recorded,
    }


def _or_absent(tokens: int | None) -> str:
    return _ABSENT if tokens is None else f"{tokens:,}"


def _batches(count: int) -> str:
    return f"{count:,} batch" if count == 1 else f"{count:,} batches"


def _words(usage: Usage) -> str:
    return (
        f"{usage.input_tokens:,} input ({usage.cached_tokens:,} cached), "
        f"{usage.output_tokens:,} output ({usage.reasoning_tokens:,} reasoning)"
    )


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%MZ")
