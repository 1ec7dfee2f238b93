"""`backhaul download`: a batch's output and error file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from api.cli.client import Client, Progress
from api.cli.failure import BatchEndedBadly, Failure, Interrupted
from api.cli.fetch import Fetched, fetch
from api.cli.options import APIKey, AsJSON, BaseURL, BatchID, DataDir, Interval, client_for
from api.cli.tail import tail
from api.cli.terminal import console, is_live, note, out, out_json
from api.cli.view import BatchView, error_lines, size, view_of
from api.cli.watchers import watcher_for


def download(
    batch: BatchID,
    folder: Annotated[
        Path, typer.Option("--dir", "-d", metavar="DIR", help="Where to put the files.")
    ] = Path(),
    force: Annotated[
        bool, typer.Option("--force", help="Fetch again what is there already.")
    ] = False,
    follow: Annotated[
        bool,
        typer.Option("--follow", help="Write the output as it comes, until the batch has ended."),
    ] = False,
    interval: Interval = 1.0,
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Download a batch's output and error file, as BATCH_output.jsonl and BATCH_error.jsonl.

    A download that broke off goes on where it was; a file appears under its name when it is whole.
    With --follow the output file grows under its name, in whole lines, while the batch runs.
    """
    with client_for(base_url, api_key, data_dir) as client:
        if follow:
            _follow(client, batch, folder, interval_s=interval)
        view = view_of(client.get_batch(batch))
        files = [
            ("output", view.output_file_id, folder / f"{view.id}_output.jsonl"),
            ("error", view.error_file_id, folder / f"{view.id}_error.jsonl"),
        ]
        wanted = [(kind, file_id, path) for kind, file_id, path in files if file_id]
        if not wanted:
            raise _nothing(view)
        try:
            fetched = {
                kind: _fetch(client, file_id, path, force=force) for kind, file_id, path in wanted
            }
        except KeyboardInterrupt:
            raise Interrupted(
                "Stopped.", "Run the same command again to go on where it stopped."
            ) from None
    _say(fetched, as_json=as_json)


def _follow(client: Client, batch: str, folder: Path, *, interval_s: float) -> None:
    target = folder / f"{view_of(client.get_batch(batch)).id}_output.jsonl"
    try:
        tail(client, batch, target, watcher_for(as_json=False), interval_s=interval_s)
    except KeyboardInterrupt:
        raise Interrupted(
            "Stopped; the batch goes on.", "Run the same command again to go on where it stopped."
        ) from None


def _nothing(view: BatchView) -> Failure:
    """Why there is nothing to download."""
    if not view.ended:
        return Failure(
            f"{view.id} is {view.status}; its files are there when it has ended.",
            f"Wait for it:  backhaul watch {view.id}",
        )
    if view.status == "failed":
        return BatchEndedBadly(
            f"{view.id} failed; it has no files.", "\n".join(error_lines(view.errors))
        )
    return Failure(f"{view.id} is {view.status} and has no files.")


def _fetch(client: Client, file_id: str, path: Path, *, force: bool) -> Fetched:
    with _bar(path.name) as progress:
        return fetch(client, file_id, path, sleep=time.sleep, progress=progress, force=force)


@contextmanager
def _bar(name: str) -> Iterator[Callable[[int], Progress] | None]:
    """A bar where somebody watches."""
    if not is_live():
        yield None
        return
    from rich import progress as rich_progress

    columns = (
        rich_progress.TextColumn("downloading"),
        rich_progress.BarColumn(bar_width=24),
        rich_progress.DownloadColumn(),
        rich_progress.TransferSpeedColumn(),
    )
    with rich_progress.Progress(*columns, console=console(stderr=True), transient=True) as bar:

        def start(total: int) -> Progress:
            task = bar.add_task(name, total=total)
            return lambda count: bar.advance(task, count)

        yield start


def _say(fetched: dict[str, Fetched], *, as_json: bool) -> None:
    if as_json:
        out_json({kind: str(each.path.absolute()) for kind, each in fetched.items()})
        return
    for each in fetched.values():
        out(str(each.path))
        if not each.new:
            note(f"  {size(each.size_bytes)}, already there (--force fetches it again)")
        elif each.resumed_from:
            note(f"  {size(each.size_bytes)}, {size(each.resumed_from)} of it from an earlier run")
        else:
            note(f"  {size(each.size_bytes)}")
