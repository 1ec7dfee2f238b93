"""Knows which running batches got another end of their window while lines of them are here."""

from __future__ import annotations

from msgspec.structs import replace

from schemas.records import BatchSnapshot, ReadyLines
from streams.batch_worker.ended import MAX_REMEMBERED


class MovedWindows:
    """The ends of windows that may have moved, by batch; the oldest is forgotten first."""

    def __init__(self, limit: int = MAX_REMEMBERED) -> None:
        self._limit = limit
        self._ends_ms: dict[str, int] = {}

    def note(self, snapshot: BatchSnapshot) -> bool:
        """Takes in what a snapshot says; whether that is new."""
        # The first command is the create, which fixed the end that lines carry as it is.
        if len(snapshot.commands) < 2:
            return False
        if self._ends_ms.get(snapshot.batch_id) == snapshot.expires_at_ms:
            return False
        self._ends_ms[snapshot.batch_id] = snapshot.expires_at_ms
        if len(self._ends_ms) > self._limit:
            del self._ends_ms[next(iter(self._ends_ms))]
        return True

    def forget(self, batch_id: str) -> None:
        """The batch has ended."""
        self._ends_ms.pop(batch_id, None)

    def applied(self, ready: ReadyLines) -> ReadyLines:
        """The slice, with a later deadline if its window was moved to one.

        An earlier one is no matter here: when it comes the batch ends, which drops its lines.
        """
        ends_ms = self._ends_ms.get(ready.batch_id, 0)
        return replace(ready, deadline_ms=ends_ms) if ends_ms > ready.deadline_ms else ready
