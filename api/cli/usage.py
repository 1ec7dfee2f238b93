"""`backhaul usage`: what batches have used and cost."""

from __future__ import annotations

import calendar
import sys
import time
from collections.abc import Iterable
from typing import Annotated

import typer

from api.cli.failure import Misuse
from api.cli.http import Json
from api.cli.options import APIKey, AsJSON, BaseURL, DataDir, client_for
from api.cli.terminal import note, out, out_json, printable

_DAY_S = 86_400
_GROUPS = ("day", "model", "batch", "key")
_REALTIME_GROUPS = ("day", "model")
_NAMES = {"day": "day", "model": "model", "batch": "batch_id", "key": "api_key_id"}
_WIDTHS = {"day": 10, "model": 24, "batch": 38, "key": 53}
_KEY_WIDTH = 36


def usage(
    by: Annotated[
        list[str] | None,
        typer.Option("--by", metavar="day|model|batch|key", help="A row for each; repeatable."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="DATE", help="First day, UTC. Default: 30 days in all."),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="DATE", help="Last day, UTC. Default: today."),
    ] = None,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="Of real-time requests; by day and model only.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, for spreadsheets.")] = False,
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Show what your batches have used and cost, by day unless --by says otherwise.

    A batch counts whole on the day on which it was created. With --json one row a line.
    Real-time requests are a report of their own; it is some minutes behind.
    """
    groups = by or ["day"]
    offered = _REALTIME_GROUPS if realtime else _GROUPS
    for group in groups:
        if group not in offered:
            raise Misuse(f"--by {group!r} is none of {', '.join(offered)}.")
    query = {"group_by": ",".join(groups)}
    if since is not None:
        query["start_time"] = str(_day(since, "--since"))
    if until is not None:
        query["end_time"] = str(_day(until, "--until") + _DAY_S)
    with client_for(base_url, api_key, data_dir) as client:
        if as_csv:
            for chunk in client.usage_csv(query, realtime=realtime):
                sys.stdout.write(chunk.decode())
            return
        rows = client.realtime_usage(query) if realtime else client.usage(query)
        if as_json:
            for row in rows:
                out_json(row)
        else:
            _show(rows, [group for group in _GROUPS if group in groups], batches=not realtime)


def _show(rows: Iterable[Json], groups: list[str], *, batches: bool) -> None:
    shown = False
    for row in rows:
        if not shown:
            names = "".join(f"{group.upper():<{_WIDTHS[group]}} " for group in groups)
            count = f"{'BATCHES':>8} " if batches else ""
            out(f"{names}{count}{'TOKENS IN':>15} {'OUT':>15}  COST")
        shown = True
        out(_line(row, groups, batches=batches))
    if not shown:
        note("No usage in that time.")


def _line(row: Json, groups: list[str], *, batches: bool) -> str:
    used, cost = row.get("usage") or {}, row.get("cost")
    texts = [_text(row, group) for group in groups]
    names = "".join(f"{text:<{_WIDTHS[group]}} " for group, text in zip(groups, texts, strict=True))
    price = "-"
    if cost:
        so_far = ", so far" if cost.get("status") == "estimate" else ""
        price = printable(f"{cost.get('billed')} {cost.get('currency')}") + so_far
    tokens = f"{used.get('input_tokens') or 0:>15,} {used.get('output_tokens') or 0:>15,}"
    count = f"{row.get('batches') or 0:>8,} " if batches else ""
    return f"{names}{count}{tokens}  {price}"


def _text(row: Json, group: str) -> str:
    """What a row says of what it is grouped by; of a key its id and its name."""
    text = str(row.get(_NAMES[group]) or ("none" if group == "key" else "unknown"))
    if group == "key":
        text = f"{text:<{_KEY_WIDTH}} {row.get('api_key_name') or ''}".rstrip()
    return printable(text)


def _day(text: str, option: str) -> int:
    try:
        return calendar.timegm(time.strptime(text, "%Y-%m-%d"))
    except ValueError as error:
        raise Misuse(f"{option} {text!r} is not a day such as 2026-11-28.") from error
