"""How fast a batch goes and when it will be done, from the counts seen in the last seconds."""

from __future__ import annotations

from collections import deque

#: The pace is that of so many seconds.
_WINDOW_S = 30.0
#: A shorter stretch says nothing.
_LEAST_S = 0.5


class Pace:
    """Lines a second over a sliding window of observations, which must come in order of time."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def observe(self, now_s: float, done: int) -> None:
        """Notes that so many lines are over at that time."""
        self._seen.append((now_s, done))
        # The last one before the window stays, so that the window is always filled.
        while len(self._seen) > 2 and now_s - self._seen[1][0] >= _WINDOW_S:
            self._seen.popleft()

    def lines_per_s(self) -> float | None:
        """None before anything can be said."""
        if not self._seen:
            return None
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        if last_s - first_s < _LEAST_S:
            return None
        return max(0.0, (last - first) / (last_s - first_s))

    def seconds_left(self, remaining: int) -> float | None:
        """Until so many more lines are over; None if that can't be told."""
        rate = self.lines_per_s()
        return remaining / rate if rate else None
