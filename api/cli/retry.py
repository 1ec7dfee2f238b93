"""`backhaul retry`: the failed lines of an ended batch as a new batch."""

from __future__ import annotations

from typing import Annotated

import typer

from api.cli.options import APIKey, AsJSON, BaseURL, BatchID, DataDir, Interval, client_for
from api.cli.submit_options import Metadata, Priority, Wait, metadata_of
from api.cli.terminal import note, out, out_json
from api.cli.watch import watch_to_end


def retry(
    batch: BatchID,
    wait: Wait = False,
    window: Annotated[
        str | None,
        typer.Option("--window", help="Time that the new batch may take. Else the old one's."),
    ] = None,
    priority: Priority = None,
    metadata: Metadata = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option("--idempotency-key", help="With the same key: the same batch, not another."),
    ] = None,
    interval: Interval = 1.0,
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Run the failed lines of an ended batch again, as a new batch; also those that it never ran.

    Prints the new batch's id. What no option says is as in the old batch. With --wait the exit
    code is 4 if the new batch ended badly.
    """
    said = {
        "completion_window": window,
        "priority": priority,
        "metadata": metadata_of(metadata) if metadata else None,
    }
    changes = {name: value for name, value in said.items() if value is not None}
    with client_for(base_url, api_key, data_dir) as client:
        made = client.retry_batch(batch, changes, idempotency_key)
        batch_id = str(made.get("id"))
        if wait:
            note(f"batch {batch_id} (Ctrl-C stops the watching, not the batch)")
            watch_to_end(client, batch_id, interval_s=interval, as_json=as_json)
        elif as_json:
            out_json(made)
        else:
            out(batch_id)
            note(f"Watch it:  backhaul watch {batch_id}")
