"""`backhaul submit`: upload a file of requests and create a batch on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from api.cli.client import Client
from api.cli.failure import Misuse, ServerRefused
from api.cli.http import Json
from api.cli.options import APIKey, AsJSON, BaseURL, DataDir, Interval, client_for
from api.cli.terminal import console, is_live, note, out, out_json
from api.cli.view import size
from api.cli.watch import watch_to_end

_FIRST_LINE_BYTES = 8 << 20
_CONFLICT = 409


class _Line(msgspec.Struct):
    url: str | None = None


def submit(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="A JSONL file of requests.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Watch the batch to its end.")] = False,
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", help="Default: the `url` of the file's first line."),
    ] = None,
    window: Annotated[
        str, typer.Option("--window", help="Time that the batch may take, as the server allows.")
    ] = "24h",
    metadata: Annotated[
        list[str] | None,
        typer.Option("--metadata", metavar="KEY=VALUE", help="A note on the batch; repeatable."),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key", help="With the same input file id: the same batch, not another."
        ),
    ] = None,
    input_file_id: Annotated[
        str | None,
        typer.Option("--input-file-id", help="Use a file that was uploaded before, not FILE."),
    ] = None,
    interval: Interval = 1.0,
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Upload FILE and create a batch on it.

    Prints the batch's id (with --json the Batch object; with --wait --json each change of it).
    With --wait the exit code is 4 if the batch ended badly.
    """
    notes = _metadata(metadata or [])
    if (file is None) == (input_file_id is None):
        raise Misuse("Give either FILE or --input-file-id.")
    endpoint = endpoint or _endpoint_of(file)
    with client_for(base_url, api_key, data_dir) as client:
        file_id = input_file_id or (_upload(client, file) if file else "")
        batch = _create(client, file_id, endpoint, window, notes, idempotency_key)
        batch_id = str(batch.get("id"))
        if not wait:
            _say(batch, batch_id, as_json=as_json)
            return
        note(f"batch {batch_id} (Ctrl-C stops the watching, not the batch)")
        watch_to_end(client, batch_id, interval_s=interval, as_json=as_json)


def _say(batch: Json, batch_id: str, *, as_json: bool) -> None:
    if as_json:
        out_json(batch)
        return
    out(batch_id)
    note(f"Watch it:  backhaul watch {batch_id}")


def _metadata(pairs: list[str]) -> dict[str, str]:
    notes = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise Misuse(f"--metadata {pair!r} is not KEY=VALUE.")
        notes[name] = value
    return notes


def _endpoint_of(path: Path | None) -> str:
    """The `url` of the file's first line. Raises Misuse if it has none."""
    if path is None:
        raise Misuse("--input-file-id needs --endpoint, such as /v1/chat/completions.")
    if path.exists() and not path.is_file():
        raise Misuse(f"{path} is not a regular file.")
    try:
        with path.open("rb") as file:
            first = file.readline(_FIRST_LINE_BYTES)
    except OSError as error:
        raise Misuse(f"{path} can't be read: {error.strerror}.") from error
    if not first.strip():
        raise Misuse(f"{path} is empty, or its first line is.")
    try:
        url = msgspec.json.decode(first.removeprefix(b"\xef\xbb\xbf"), type=_Line).url
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Misuse(
            f"The first line of {path} is not a JSON object of a request.",
            'A line looks like {"custom_id": "1", "method": "POST", '
            '"url": "/v1/chat/completions", "body": {...}}.',
        ) from None
    if not url:
        raise Misuse(f"The first line of {path} has no `url`; give --endpoint.")
    return url


def _upload(client: Client, path: Path) -> str:
    """Uploads with a bar where somebody watches; the file's id."""
    total = path.stat().st_size
    if is_live():
        from rich.progress import Progress

        with Progress(console=console(stderr=True), transient=True) as bar:
            task = bar.add_task(f"uploading {size(total)}", total=total)
            uploaded = client.upload(path, progress=lambda count: bar.advance(task, count))
    else:
        uploaded = client.upload(path)
    file_id = str(uploaded.get("id"))
    note(f"uploaded {path.name} ({size(total)}) as {file_id}")
    return file_id


def _create(
    client: Client,
    file_id: str,
    endpoint: str,
    window: str,
    metadata: dict[str, str],
    idempotency_key: str | None,
) -> Json:
    try:
        return client.create_batch(
            input_file_id=file_id,
            endpoint=endpoint,
            window=window,
            metadata=metadata,
            idempotency_key=idempotency_key,
        )
    except ServerRefused as error:
        remedy = f"The file stays on the server as {file_id} (--input-file-id)."
        if error.status == _CONFLICT and idempotency_key:
            remedy = (
                "The key was used with another input file or other options. To get the same "
                "batch again, give the file's id of that time with --input-file-id."
            )
        raise ServerRefused(
            error.message, remedy, status=error.status, code=error.code, param=error.param
        ) from error
