"""`backhaul submit`: upload a file of requests and create a batch on it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from api.cli import submit_options as opt
from api.cli.client import Client
from api.cli.estimate import show_estimate
from api.cli.failure import Misuse, ServerRefused
from api.cli.http import Json
from api.cli.options import APIKey, AsJSON, BaseURL, DataDir, Interval, client_for
from api.cli.submit_prompt import job_from, prompt_file
from api.cli.terminal import console, is_live, note, out, out_json
from api.cli.view import size
from api.cli.watch import watch_to_end

_FIRST_LINE_BYTES = 8 << 20
_CONFLICT = 409


class _Line(msgspec.Struct):
    url: str | None = None


def submit(
    file: opt.File = None,
    wait: opt.Wait = False,
    estimate: opt.Estimate = False,
    endpoint: opt.BatchEndpoint = None,
    window: opt.Window = "24h",
    priority: opt.Priority = None,
    metadata: opt.Metadata = None,
    idempotency_key: opt.IdempotencyKey = None,
    input_file_id: opt.InputFileID = None,
    prompt: opt.PromptSlug = None,
    variables: opt.Variables = None,
    rows_format: opt.RowsFormat = None,
    id_column: opt.IDColumn = None,
    keep_id: opt.KeepID = False,
    prompt_version: opt.PromptVersion = None,
    model: opt.Model = None,
    save: opt.Save = None,
    interval: Interval = 1.0,
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Upload FILE, or lines made from a stored prompt, and create a batch.

    Prints the batch's id (with --json the Batch object; with --wait --json each change of it).

    With --wait the exit code is 4 if the batch ended badly.

    With --estimate it prints what the batch would use and cost, and creates none.

    For a stored prompt: backhaul submit --prompt summarize --variables rows.csv
    """
    notes = opt.metadata_of(metadata or [])
    if [file, input_file_id, prompt].count(None) != 2:
        raise Misuse("Give one of FILE, --input-file-id and --prompt.")
    if estimate and wait:
        raise Misuse("--estimate creates no batch, so there is none to --wait for.")
    job = job_from(
        prompt, variables, rows_format=rows_format, id_column=id_column, keep_id=keep_id,
        version=prompt_version, model=model, endpoint=endpoint, save=save,
    )  # fmt: skip
    endpoint = endpoint or ("" if job else _endpoint_of(file))
    with client_for(base_url, api_key, data_dir) as client:
        file_id = input_file_id or (_upload(client, file) if file else "")
        if job is not None:
            with prompt_file(client, job) as (path, endpoint):
                file_id = _upload(client, path)
        if estimate:
            found = client.estimate_cost(file_id, endpoint, window)
            show_estimate(found, window, as_json=as_json)
            return
        batch = _create(client, file_id, endpoint, window, notes, idempotency_key, priority)
        if wait:
            _watch(client, batch, interval, as_json=as_json)
        else:
            _say(batch, as_json=as_json)


def _watch(client: Client, batch: Json, interval_s: float, *, as_json: bool) -> None:
    batch_id = str(batch.get("id"))
    note(f"batch {batch_id} (Ctrl-C stops the watching, not the batch)")
    watch_to_end(client, batch_id, interval_s=interval_s, as_json=as_json)


def _say(batch: Json, *, as_json: bool) -> None:
    batch_id = str(batch.get("id"))
    if as_json:
        out_json(batch)
        return
    out(batch_id)
    note(f"Watch it:  backhaul watch {batch_id}")


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
    priority: int | None,
) -> Json:
    try:
        return client.create_batch(
            input_file_id=file_id,
            endpoint=endpoint,
            window=window,
            metadata=metadata,
            idempotency_key=idempotency_key,
            priority=priority,
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
