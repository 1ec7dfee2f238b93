"""`backhaul watch`: a batch's progress until it has ended. Also what `--wait` does."""

from __future__ import annotations

from api.cli.client import Client
from api.cli.failure import BatchEndedBadly, Interrupted
from api.cli.follow import follow
from api.cli.options import APIKey, AsJSON, BaseURL, BatchID, DataDir, Interval, client_for
from api.cli.terminal import note, out
from api.cli.view import summary_lines, view_of
from api.cli.watchers import watcher_for


def watch(
    batch: BatchID,
    interval: Interval = 1.0,
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Show a batch's progress until it has ended; exit code 4 if it ended badly.

    Ctrl-C stops the watching, never the batch. With --json each change is one line.
    """
    with client_for(base_url, api_key, data_dir) as client:
        watch_to_end(client, batch, interval_s=interval, as_json=as_json)


def watch_to_end(client: Client, batch_id: str, *, interval_s: float, as_json: bool) -> None:
    """Shows the batch until it has ended, then its summary. Raises BatchEndedBadly, Interrupted."""
    watcher = watcher_for(as_json=as_json)
    try:
        view = view_of(follow(client, batch_id, watcher, interval_s=interval_s))
    except KeyboardInterrupt:
        raise Interrupted(
            "Stopped watching; the batch goes on.",
            f"Go on watching:  backhaul watch {batch_id}\n"
            f"Or cancel it:    backhaul cancel {batch_id}",
        ) from None
    finally:
        watcher.close()
    write = note if as_json else out
    for line in summary_lines(view):
        write(line)
    if not view.ended_well:
        raise BatchEndedBadly("")
