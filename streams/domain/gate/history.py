"""What a number was a moment ago: samples are told late, and belong to the state they met."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

_KEPT_S = 120.0


class History:
    """A number that changes in steps, and what it was at any time of the last two minutes."""

    def __init__(self, first: float = 0.0) -> None:
        self._times: deque[float] = deque([float("-inf")])
        self._values: deque[float] = deque([first])

    @property
    def last(self) -> float:
        """What it is now."""
        return self._values[-1]

    def set(self, at_s: float, value: float) -> None:
        """It is this from now on; times that go back count as the last one."""
        if value == self._values[-1]:
            return
        self._times.append(max(at_s, self._times[-1]))
        self._values.append(value)
        while len(self._times) > 2 and self._times[1] < at_s - _KEPT_S:
            self._times.popleft()
            self._values.popleft()

    def at(self, at_s: float) -> float:
        """What it was then."""
        index = bisect_right(self._times, at_s) - 1
        return self._values[max(0, index)]

    def most(self, from_s: float) -> float:
        """The highest that it was since then."""
        index = max(0, bisect_right(self._times, from_s) - 1)
        return max(self._values[i] for i in range(index, len(self._values)))

    def least(self, from_s: float) -> float:
        """The lowest that it was since then."""
        index = max(0, bisect_right(self._times, from_s) - 1)
        return min(self._values[i] for i in range(index, len(self._values)))

    def mean(self, from_s: float, to_s: float) -> float:
        """Its average between two times."""
        index = max(0, bisect_right(self._times, from_s) - 1)
        total, at_s = 0.0, from_s
        while index + 1 < len(self._times) and self._times[index + 1] < to_s:
            total += self._values[index] * (self._times[index + 1] - at_s)
            index, at_s = index + 1, self._times[index + 1]
        total += self._values[index] * (to_s - at_s)
        return total / (to_s - from_s) if to_s > from_s else self._values[index]
