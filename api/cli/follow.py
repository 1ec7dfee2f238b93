"""Following a batch to its end, through restarts of the server."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from api.cli.client import Client
from api.cli.failure import ServerRefused, ServerUnreachable
from api.cli.http import Json
from api.cli.pace import Pace
from api.cli.view import BatchView, view_of

#: So long a server may be away while a batch is followed; `backhaul up` restarts within seconds.
PATIENCE_S = 120.0
#: The first looks come sooner, so that a small batch is over at once.
_FIRST_INTERVAL_S = 0.1
_SLOWER = 1.5
_HTTP_SERVER_ERROR = 500


class Watcher(Protocol):
    """What shows a batch's progress."""

    def show(self, view: BatchView, pace: Pace, batch: Json) -> None:
        """The batch as it is now; called at every look, whether or not something changed."""
        ...

    def trouble(self, message: str) -> None:
        """The server doesn't answer just now; it will be asked again."""
        ...

    def close(self) -> None:
        """Nothing more will be shown; the terminal is as before."""
        ...


def follow(
    client: Client,
    batch_id: str,
    watcher: Watcher,
    *,
    interval_s: float,
    patience_s: float = PATIENCE_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Json:
    """The Batch object once it has ended.

    Raises ServerUnreachable if the server is away at the first look, or longer than patience_s.
    """
    pace = Pace()
    wait = min(_FIRST_INTERVAL_S, interval_s)
    away_since: float | None = None
    seen = False
    while True:
        try:
            batch = client.get_batch(batch_id)
        except (ServerUnreachable, ServerRefused) as error:
            if isinstance(error, ServerRefused) and error.status < _HTTP_SERVER_ERROR:
                raise
            away_since = clock() if away_since is None else away_since
            if not seen or clock() - away_since >= patience_s:
                raise
            watcher.trouble(error.message)
        else:
            seen, away_since = True, None
            view = view_of(batch)
            pace.observe(clock(), view.done)
            watcher.show(view, pace, batch)
            if view.ended:
                return batch
        sleep(wait)
        wait = min(wait * _SLOWER, interval_s)
