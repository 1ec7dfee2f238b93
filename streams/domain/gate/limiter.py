"""The limiter: down at once, up slowly, and not for every little thing.

wanted below the limit        ─► the limit is what is wanted, now
wanted above it by the band   ─► it climbs, `climb_s` from nothing to the highest,
                                 and not within `HOLD_S` of a real fall
"""

from __future__ import annotations

import math

#: After a real fall the limit stays down so long: bursts come in groups.
HOLD_S = 0.3
#: From nothing to the highest takes so long.
CLIMB_S = 3.0
#: A fall by this part of the limit (and at least that many) is a real one.
_FALL_PART = 0.15
_FALL_LEAST = 4.0


class Limiter:
    """The number of batch calls allowed in flight, over time."""

    def __init__(self, highest: int, start: float = 0.0) -> None:
        self.highest = highest
        self._limit = start
        self._moved_at_s: float | None = None
        self._held_until_s = float("-inf")

    @property
    def limit(self) -> int:
        """The limit now."""
        return int(self._limit)

    def move(self, wanted: float, now_s: float, most_a_s: float = math.inf) -> int:
        """Moves towards what is wanted, up by no more than that in a second; the limit now."""
        wanted = min(max(wanted, 0.0), float(self.highest))
        passed = 0.0 if self._moved_at_s is None else max(0.0, now_s - self._moved_at_s)
        self._moved_at_s = now_s
        fall = self._limit - wanted
        if fall > 0:
            if fall >= max(_FALL_LEAST, _FALL_PART * self._limit):
                self._held_until_s = now_s + HOLD_S
            self._limit = wanted
        elif now_s >= self._held_until_s:
            self._limit = min(wanted, self._limit + passed * min(most_a_s, self.highest / CLIMB_S))
        return self.limit

    def jump(self, to: float) -> None:
        """It is this at once, for whoever knows that nobody can mind."""
        self._limit = min(to, float(self.highest))
        self._held_until_s = float("-inf")
