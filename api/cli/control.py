"""`backhaul pause`, `resume` and `change`: live control of a batch."""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Annotated

import typer

from api.cli.failure import Misuse
from api.cli.http import Json
from api.cli.options import APIKey, AsJSON, BaseURL, BatchID, DataDir, client_for
from api.cli.terminal import note, out, out_json, printable
from api.cli.view import counts_text, duration, hold_text, priority_text, view_of

_SPAN = re.compile(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?")
_UNIX = re.compile(r"\d{9,12}")
_DAY_S, _HOUR_S, _MINUTE_S = 86_400, 3600, 60


def pause(
    batch: BatchID,
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Let a batch release no new line, until `backhaul resume`.

    Lines that are out already finish and count. The window goes on: a paused batch may expire.
    """
    with client_for(base_url, api_key, data_dir) as client:
        _say(client.pause_batch(batch), as_json=as_json)


def resume(
    batch: BatchID,
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Go on with a paused batch."""
    with client_for(base_url, api_key, data_dir) as client:
        _say(client.resume_batch(batch), as_json=as_json)


def change(
    batch: BatchID,
    priority: Annotated[
        int | None,
        typer.Option(
            "--priority",
            metavar="N",
            help="-100 to 100: of your batches, those with a higher one go first.",
            min=-100,
            max=100,
        ),
    ] = None,
    expires_in: Annotated[
        str | None,
        typer.Option(
            "--expires-in",
            metavar="TIME",
            help="The new end of the window, counted from now: 90m, 12h, 1d12h.",
        ),
    ] = None,
    expires_at: Annotated[
        str | None,
        typer.Option(
            "--expires-at",
            metavar="WHEN",
            help="The same as a moment: 2026-05-01T18:00, also with +02:00 or Z, or Unix seconds.",
        ),
    ] = None,
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Change the priority of a batch, the end of its window, or both, for all lines not yet out.

    A window can end at most the longest window of the server after the batch was created.
    """
    if expires_in is not None and expires_at is not None:
        raise Misuse("Give one of --expires-in and --expires-at.")
    changes: dict[str, int] = {}
    if priority is not None:
        changes["priority"] = priority
    if expires_in is not None:
        changes["expires_at"] = int(time.time()) + seconds_in(expires_in)
    if expires_at is not None:
        changes["expires_at"] = moment(expires_at)
    if not changes:
        raise Misuse("Give --priority, --expires-in or --expires-at.")
    with client_for(base_url, api_key, data_dir) as client:
        _say(client.change_batch(batch, changes), as_json=as_json)


def seconds_in(span: str) -> int:
    """The seconds in `90m`, `12h` or `1d12h`. Raises Misuse."""
    found = _SPAN.fullmatch(span)
    parts = [int(part or 0) for part in found.groups()] if found else [0]
    total = sum(
        part * unit_s for part, unit_s in zip(parts, (_DAY_S, _HOUR_S, _MINUTE_S, 1), strict=False)
    )
    if not total:
        raise Misuse(f"--expires-in {span!r} is no time such as 90m, 12h or 1d12h.")
    return total


def moment(text: str) -> int:
    """The Unix seconds of a moment; one without a zone is local time. Raises Misuse."""
    if _UNIX.fullmatch(text):
        return int(text)
    try:
        return int(datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError, OSError):
        raise Misuse(
            f"--expires-at {text!r} is no moment such as 2026-05-01T18:00 or 1777651200."
        ) from None


def _say(batch: Json, *, as_json: bool) -> None:
    if as_json:
        out_json(batch)
        return
    view = view_of(batch)
    out(f"{view.id} {view.state}")
    ends = f"expires in {duration(view.expires_at - time.time())}" if view.expires_at else ""
    note(", ".join(filter(None, (counts_text(view), priority_text(view), ends))))
    if view.hold:
        note(printable(str(view.hold.get("message") or hold_text(view))))
