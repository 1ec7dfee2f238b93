"""How fast the sink may be called: a share of what all meters may do, and pauses after failures."""

from __future__ import annotations

from collections.abc import Callable

from streams.domain.clock import Clock

#: The pause after the first failure in a row, and the longest.
_FIRST_S, _MAX_S = 1.0, 300.0
_MAX_DOUBLINGS = 16
#: A sink that asks for a longer pause is asked again after this.
_MAX_ASKED_S = 3600.0


class Pacer:
    """Spaces calls out evenly. Each process takes as large a share as it holds partitions."""

    def __init__(self, calls_per_s: float, clock: Clock) -> None:
        self._calls_per_s = calls_per_s
        self._clock = clock
        self._share = 1.0
        self._next_s = 0.0

    def take_share(self, held: int, of: int) -> None:
        """So many of so many partitions are ours."""
        self._share = max(held, 1) / max(of, 1)

    def reserve(self) -> float:
        """Takes the next slot; how many seconds it is away."""
        now_s = self._clock.monotonic_s()
        at_s = max(now_s, self._next_s)
        self._next_s = at_s + 1 / (self._calls_per_s * self._share)
        return at_s - now_s


def pause_s(failures: int, asked_s: float | None, random: Callable[[], float]) -> float:
    """Seconds after so many failures in a row; `random` gives numbers in [0, 1)."""
    full = min(_FIRST_S * 2.0 ** min(failures - 1, _MAX_DOUBLINGS), _MAX_S)
    pause = full * (0.5 + 0.5 * random())
    return pause if asked_s is None else max(pause, min(asked_s, _MAX_ASKED_S))
