"""`backhaul list`, `get` and `cancel`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import islice
from typing import Annotated

import typer

from api.cli.http import Json
from api.cli.options import (
    APIKey,
    AsJSON,
    BaseURL,
    BatchID,
    DataDir,
    Interval,
    client_for,
)
from api.cli.terminal import note, out, out_json, printable
from api.cli.view import (
    BatchView,
    ago,
    cost_text,
    counts_text,
    duration,
    error_lines,
    forecast_text,
    hold_text,
    priority_text,
    prompt_lines,
    queue_text,
    view_of,
    warning_lines,
)
from api.cli.watch import watch_to_end

_PAGE = 100


def list_batches(
    limit: Annotated[int, typer.Option("--limit", "-n", help="At most so many.", min=1)] = 20,
    every: Annotated[bool, typer.Option("--all", help="All of them, whatever --limit.")] = False,
    status: Annotated[
        list[str] | None,
        typer.Option("--status", help="Only batches with this status; repeatable."),
    ] = None,
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """List batches, newest first. With --json one Batch object a line."""
    wanted = None if every else limit
    with client_for(base_url, api_key, data_dir) as client:
        page = min(limit, _PAGE) if not every and not status else _PAGE
        batches = (
            batch
            for batch in client.list_batches(page=page)
            if not status or batch.get("status") in status
        )
        _show_list(islice(batches, wanted), as_json=as_json)


def _show_list(batches: Iterable[Json], *, as_json: bool) -> None:
    shown = False
    for batch in batches:
        if as_json:
            out_json(batch)
            continue
        if not shown:
            out(f"{'BATCH':<38} {'STATUS':<11} {'DONE':>11} {'FAILED':>6} {'CREATED':>10}")
        shown = True
        out(_row(view_of(batch)))
    if not shown and not as_json:
        note("No batches.")


def _row(view: BatchView) -> str:
    done = f"{view.done}/{view.total}" if view.total else "-"
    created = ago(time.time() - view.created_at)
    row = f"{view.id:<38} {view.state:<11} {done:>11} {view.failed or '-':>6} {created:>10}"
    words = (
        priority_text(view),
        forecast_text(view, time.time()),
        queue_text(view),
        hold_text(view),
    )
    return f"{row}  {', '.join(word for word in words if word)}".rstrip()


def get(
    batch: BatchID,
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Show one batch."""
    with client_for(base_url, api_key, data_dir) as client:
        answer = client.get_batch(batch)
    if as_json:
        out_json(answer)
        return
    for name, value in _fields(view_of(answer), answer):
        out(f"{name + ':':<12} {value}")


def _fields(view: BatchView, batch: Json) -> list[tuple[str, str]]:
    now = time.time()
    fields = [
        ("batch", view.id),
        ("status", view.status),
        ("paused", _since(view.paused_at, now) if view.state == "paused" else ""),
        ("lines", counts_text(view)),
        ("priority", str(view.priority or "")),
        ("endpoint", printable(view.endpoint)),
        ("model", printable(str(batch.get("model") or ""))),
        ("created", _since(view.created_at, now)),
    ]
    if view.ended_at:
        took = duration(view.ended_at - view.created_at)
        fields.append(("ended", f"{_at(view.ended_at)} (after {took})"))
    elif view.expires_at:
        fields.append(("expires", f"{_at(view.expires_at)} (in {duration(view.expires_at - now)})"))
    if view.eta:
        risk = ", at risk: later than it expires" if view.at_risk else ""
        fields.append(("eta", f"{_at(view.eta)} (in {duration(view.eta - now)}){risk}"))
    fields.append(("queue", queue_text(view)))
    fields.append(("held", printable(str(view.hold.get("message") or ""))))
    if view.input_tokens or view.output_tokens:
        fields.append(("tokens", f"{view.input_tokens:,} in, {view.output_tokens:,} out"))
    fields += [
        ("cost", cost_text(view)),
        ("input", view.input_file_id or ""),
        ("output", view.output_file_id or ""),
        ("errors", view.error_file_id or ""),
    ]
    fields += [("prompt", text) for text in prompt_lines(view)]
    fields += [("metadata", printable(f"{name}={value}")) for name, value in view.metadata.items()]
    fields += [("warning", text) for text in warning_lines(view)]
    fields += [("error", text) for text in error_lines(view.errors)]
    return [(name, value) for name, value in fields if value]


def _since(unix_s: int | None, now: float) -> str:
    return f"{_at(unix_s)} ({ago(now - unix_s)})" if unix_s else ""


def _at(unix_s: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))


def cancel(
    batch: BatchID,
    wait: Annotated[bool, typer.Option("--wait", help="Until it is cancelled.")] = False,
    interval: Interval = 1.0,
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Cancel a batch; what is done already is kept and can be downloaded.

    With --wait, the exit code is that of `backhaul watch`: 4 once it is cancelled.
    """
    with client_for(base_url, api_key, data_dir) as client:
        answer = client.cancel_batch(batch)
        if wait:
            watch_to_end(client, batch, interval_s=interval, as_json=as_json)
            return
    if as_json:
        out_json(answer)
        return
    view = view_of(answer)
    out(f"{view.id} {view.status}")
    note(counts_text(view))
