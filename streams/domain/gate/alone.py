"""How many real-time calls would be in flight if there were no batch.

Beside batch every step is longer, so real-time calls last longer and more of them are in flight:
what a call meets is not only batch, but also what batch did to the calls before it. Two shadows of
the traffic undo that. Each call that comes joins both, and leaves after as many steps as calls take
on the average: in the one as long as steps are, in the other as long as they would be alone. How
many the second has for each that the first has is the share of those really in flight that would
be alone. (The second by itself is not enough: it knows nothing of answers that happen to be long.)
"""

from __future__ import annotations

import math

from streams.domain.gate.curve import Curve

#: What a call's steps are averaged over, in calls.
_HALF_LIFE_CALLS = 2_000
_KEEP = 0.5 ** (1 / _HALF_LIFE_CALLS)
#: Fewer calls than this are none.
_NOBODY = 1e-6


class Shadow:
    """The two shadows of the calls that came."""

    def __init__(self) -> None:
        self._calls = self._steps = 0.0
        self._now = self._alone = 0.0
        self._last_s = float("-inf")

    @property
    def last_s(self) -> float:
        """When the last call came."""
        return self._last_s

    def spend(self, realtime: float, steps: float) -> None:
        """So many calls were in flight for so many steps."""
        self._steps += realtime * steps

    def came(self, at_s: float, realtime: float, running: float, curve: Curve) -> float:
        """A call came, and is one of so many: how many there would have been alone.

        running: sequences of both lanes since the call before, on the average.
        """
        passed_s = max(0.0, at_s - self._last_s)
        before = realtime * self._share()
        self._now *= self._staying(passed_s, curve.step_s(running, realtime))
        self._alone *= self._staying(passed_s, curve.step_s(before, before))
        met = realtime * self._share()
        self._calls = _KEEP * self._calls + 1
        self._steps *= _KEEP
        self._now += 1
        self._alone += 1
        self._last_s = max(self._last_s, at_s)
        return met

    def _share(self) -> float:
        return self._alone / self._now if self._now > _NOBODY else 1.0

    def _staying(self, passed_s: float, step_s: float) -> float:
        """The part of the calls that is still there after so long."""
        if not self._calls or self._steps <= 0 or step_s <= 0:
            return 1.0
        return math.exp(-passed_s * self._calls / (self._steps * step_s))
