"""When a batch's outcomes are packed: by size, by age, and at once where someone waits for them.

A busy batch is packed every quarter of a second, so that its counts are live. A slow one waits
longer as it gets older, up to half a minute, so that a day's trickle is not one object a line.
Retries set a limit to that: the dispatcher can't run a line again before it knows of it.
"""

from __future__ import annotations

from dataclasses import dataclass

#: The age at which a busy batch is packed, and the most that a slow one's may grow to.
MIN_AGE_S, MAX_AGE_S = 0.25, 30.0
#: A segment is packed when it has so many lines or bytes.
FULL_LINES, FULL_BYTES = 2000, 4 * 1024 * 1024
#: A batch waits until it has about so many lines, but not longer than a share of the time since
#: its first one: young batches show progress, and a day's trickle is a few thousand objects.
_ENOUGH_LINES = 100
_AGE_SHARE = 0.1
#: A retry is known so long before it is due, where its time allows.
_RETRY_LEAD_S = 0.1


@dataclass(slots=True)
class Waiting:
    """What is known of the outcomes of a batch that wait: since when, how many, how urgent."""

    since_s: float
    lines: int = 0
    bytes: int = 0
    finals: int = 0
    tail: bool = False
    #: Monotonic time at which the first line must run again; None without retries.
    retry_at_s: float | None = None


class Pace:
    """How long a batch's outcomes wait for company, by how fast they came so far."""

    __slots__ = ("_first_s", "_packed_s", "age_s")

    def __init__(self, now_s: float) -> None:
        self._first_s = now_s
        self._packed_s = now_s
        self.age_s = MIN_AGE_S

    def due_s(self, waiting: Waiting) -> float:
        """Monotonic time at which they are to be packed; a time in the past means at once."""
        if waiting.tail or waiting.finals == 0:
            return waiting.since_s
        if waiting.lines >= FULL_LINES or waiting.bytes >= FULL_BYTES:
            return waiting.since_s
        if waiting.retry_at_s is None:
            return waiting.since_s + self.age_s
        return min(waiting.since_s + MIN_AGE_S, waiting.retry_at_s - _RETRY_LEAD_S)

    def packed(self, lines: int, now_s: float) -> None:
        """Learns that so many lines were packed."""
        elapsed = max(now_s - self._packed_s, 0.001)
        self._packed_s = now_s
        wanted = _ENOUGH_LINES * elapsed / max(lines, 1)
        allowed = min((now_s - self._first_s) * _AGE_SHARE, MAX_AGE_S)
        self.age_s = max(min(wanted, allowed), MIN_AGE_S)
