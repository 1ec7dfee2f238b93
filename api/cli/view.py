"""A batch as people read it: what the commands show of the server's Batch object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from api.cli.terminal import printable

#: The batch will not change any more.
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
#: The statuses in which a batch may be paused.
PAUSABLE = frozenset({"validating", "in_progress"})
_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"))
_MAX_ERRORS_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchView:
    """The fields of a Batch object that commands look at; the server may send more, or fewer."""

    id: str
    status: str
    endpoint: str
    total: int
    completed: int
    failed: int
    created_at: int
    ended_at: int | None
    expires_at: int | None
    output_file_id: str | None
    error_file_id: str | None
    input_file_id: str | None
    errors: tuple[Mapping[str, Any], ...]
    input_tokens: int
    output_tokens: int
    cost: Mapping[str, Any]
    metadata: Mapping[str, str]
    prompts: tuple[Mapping[str, Any], ...]
    unused_variables: int
    priority: int
    paused_at: int | None
    eta: int | None
    at_risk: bool
    queue_position: int | None
    queued: bool
    hold: Mapping[str, Any]

    @property
    def state(self) -> str:
        """The status in one word; `paused` where no new line is released."""
        return "paused" if self.paused_at and self.status in PAUSABLE else self.status

    @property
    def done(self) -> int:
        """Lines that are over, well or badly."""
        return self.completed + self.failed

    @property
    def ended(self) -> bool:
        """Whether the batch will not change any more."""
        return self.status in ENDED

    @property
    def ended_well(self) -> bool:
        """Completed, with at least one good line (or none to do)."""
        return self.status == "completed" and (self.completed > 0 or self.failed == 0)


def view_of(batch: Mapping[str, Any]) -> BatchView:
    """The view of a Batch object; absent and null fields are empty ones."""
    counts = batch.get("request_counts") or {}
    usage = batch.get("usage") or {}
    ends = (batch.get(f"{status}_at") for status in ENDED)
    return BatchView(
        id=str(batch.get("id") or ""),
        status=str(batch.get("status") or "unknown"),
        endpoint=str(batch.get("endpoint") or ""),
        total=int(counts.get("total") or 0),
        completed=int(counts.get("completed") or 0),
        failed=int(counts.get("failed") or 0),
        created_at=int(batch.get("created_at") or 0),
        ended_at=next((int(at) for at in ends if at), None),
        expires_at=batch.get("expires_at"),
        output_file_id=batch.get("output_file_id"),
        error_file_id=batch.get("error_file_id"),
        input_file_id=batch.get("input_file_id"),
        errors=tuple((batch.get("errors") or {}).get("data") or ()),
        input_tokens=int(usage.get("input_tokens") or 0),
        output_tokens=int(usage.get("output_tokens") or 0),
        cost=batch.get("cost") or {},
        metadata=batch.get("metadata") or {},
        prompts=tuple(batch.get("prompts") or ()),
        unused_variables=int((batch.get("warnings") or {}).get("unused_variables") or 0),
        priority=int(batch.get("priority") or 0),
        paused_at=batch.get("paused_at"),
        eta=batch.get("eta"),
        at_risk=bool(batch.get("at_risk")),
        queue_position=batch.get("queue_position"),
        queued=bool(batch.get("queued")),
        hold=batch.get("hold") or {},
    )


def duration(seconds: float) -> str:
    """`0:07`, `12:30`, `3:05:00`."""
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{whole % 60:02d}"
    return f"{minutes}:{whole % 60:02d}"


def ago(seconds: float) -> str:
    """`12 s ago`, `3 min ago`, `5 h ago`, `2 d ago`."""
    for unit, name in _UNITS:
        if seconds >= unit:
            return f"{int(seconds // unit)} {name} ago"
    return f"{max(0, int(seconds))} s ago"


def size(count: int) -> str:
    """`512 B`, `1.5 MB`."""
    value = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def counts_text(view: BatchView) -> str:
    """`1,234 of 5,000 lines, 3 failed`."""
    if not view.total:
        return "no lines counted yet" if not view.ended else "no lines"
    failed = f", {view.failed:,} failed" if view.failed else ""
    return f"{view.done:,} of {view.total:,} lines{failed}"


def priority_text(view: BatchView) -> str:
    """`priority 5`; empty for the ordinary one."""
    return f"priority {view.priority}" if view.priority else ""


def queue_text(view: BatchView) -> str:
    """`behind 2 of your batches`, `waits for room: behind 1 of your batches`; empty for none."""
    ahead = view.queue_position or 0
    behind = f"behind {ahead:,} of your batches" if ahead else ""
    if view.queued:
        return f"waits for room{': ' if behind else ''}{behind}"
    return behind


def hold_text(view: BatchView) -> str:
    """`held: budget of the key used up, 100.02 of 100.00 usd`; empty unless it waits for money."""
    hold = view.hold
    if not hold:
        return ""
    spent = f"{hold.get('spent')} of {hold.get('budget')} {hold.get('currency')}"
    if hold.get("estimate") is None:
        return printable(f"held: budget of the {hold.get('scope')} used up, {spent}")
    more = f"{hold.get('estimate')} to come"
    return printable(f"held: budget of the {hold.get('scope')} too small, {spent} and {more}")


def forecast_text(view: BatchView, now: float) -> str:
    """`0:07 left`, `3:05:00 left, at risk`; empty while nothing is known."""
    if view.eta is None:
        return ""
    return f"{duration(view.eta - now)} left{', at risk' if view.at_risk else ''}"


def cost_text(view: BatchView) -> str:
    """`1.234567 usd (2.469134 at list price), so far`; empty where nothing is priced."""
    cost = view.cost
    if not cost:
        return ""
    so_far = "" if cost.get("status") == "confirmed" else ", so far"
    text = f"{cost.get('billed')} {cost.get('currency')} ({cost.get('list')} at list price)"
    return printable(text) + so_far


def error_lines(errors: Sequence[Mapping[str, Any]]) -> list[str]:
    """The validation errors, one a line, up to a number."""
    shown = []
    for error in errors[:_MAX_ERRORS_SHOWN]:
        line = error.get("line")
        where = f"line {line}: " if line is not None else ""
        what = str(error.get("message") or error.get("code") or "unknown error")
        # Names out of the caller's file may be in it.
        shown.append(f"{where}{printable(what)}")
    if len(errors) > _MAX_ERRORS_SHOWN:
        shown.append(f"and {len(errors) - _MAX_ERRORS_SHOWN:,} more")
    return shown


def prompt_lines(view: BatchView) -> list[str]:
    """The versions of stored prompts that lines use: `summarize version 2 (1,000 lines)`."""
    return [
        f"{printable(str(pin.get('slug')))} version {pin.get('version')} "
        f"({int(pin.get('lines') or 0):,} lines)"
        for pin in view.prompts
    ]


def warning_lines(view: BatchView) -> list[str]:
    """What may be wrong, though the batch runs."""
    count = view.unused_variables
    if not count:
        return []
    what = "line gives a variable" if count == 1 else "lines give variables"
    return [f"{count:,} {what} that the prompt does not use"]


def summary_lines(view: BatchView) -> list[str]:
    """What to say about a batch that has ended, and what can be done next."""
    took = ""
    if view.ended_at and view.created_at:
        took = f", in {duration(view.ended_at - view.created_at)}"
    lines = [f"{view.id} {view.status}", f"{counts_text(view)}{took}"]
    if view.input_tokens or view.output_tokens:
        lines.append(f"tokens: {view.input_tokens:,} in, {view.output_tokens:,} out")
    if view.cost:
        lines.append(f"cost: {cost_text(view)}")
    lines += error_lines(view.errors)
    lines += [f"warning: {text}" for text in warning_lines(view)]
    if view.output_file_id or view.error_file_id:
        lines.append(f"results: backhaul download {view.id}")
    return lines
