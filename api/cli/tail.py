"""Writing a batch's output to disk while it runs, as it comes: what `download --follow` does."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from api.cli.client import Client, ConnectionLost
from api.cli.failure import TransferFailed
from api.cli.follow import Watcher, follow
from api.cli.http import Json
from api.cli.pace import Pace
from api.cli.view import BatchView


def tail(
    client: Client,
    batch_id: str,
    target: Path,
    watcher: Watcher,
    *,
    interval_s: float,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Appends to `target` what it lacks of the output, until the batch has ended.

    What an earlier run has written is gone on with. Whether the file is whole in the end is for
    fetch() to judge. Raises TransferFailed, and what follow() raises.
    """
    growing = _Growing(client, target, watcher)
    try:
        follow(client, batch_id, growing, interval_s=interval_s, sleep=sleep)
    except OSError as error:
        raise TransferFailed(f"{target} can't be written: {error.strerror or error}.") from error
    finally:
        growing.close()


class _Growing:
    """A watcher that fetches what is new at every look, and passes the look on."""

    def __init__(self, client: Client, target: Path, inner: Watcher) -> None:
        self._client = client
        self._target = target
        self._inner = inner

    def show(self, view: BatchView, pace: Pace, batch: Json) -> None:
        self._inner.show(view, pace, batch)
        file_id = view.output_file_id or batch.get("partial_output_file_id")
        if file_id:
            # A connection that breaks is no harm: the next look goes on from what was written.
            with contextlib.suppress(ConnectionLost):
                self._append(str(file_id))

    def trouble(self, message: str) -> None:
        self._inner.trouble(message)

    def close(self) -> None:
        self._inner.close()

    def _append(self, file_id: str) -> None:
        self._target.parent.mkdir(parents=True, exist_ok=True)
        with self._target.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TransferFailed(f"Another download is writing {self._target}.") from None
            for chunk in self._client.content_after(file_id, file.seek(0, os.SEEK_END)):
                file.write(chunk)
                file.flush()
