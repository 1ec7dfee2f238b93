"""How fast lines go at each pool when there are enough of them, and how long one is out.

    rate:     lines/s = lines in ÷ seconds, over the time in which lines waited; of the whole fleet
    sojourn:  seconds = (lines out · seconds) ÷ lines in: Little's law

What is long past counts less and less. A pool where nothing ever waited has shown no limit: its
rate is then what the workers say of themselves, or not known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from schemas.records import WorkerLoad
from streams.domain.dispatch.flow import Seen

#: What happened so long ago counts 1/e.
MEMORY_S = 60.0
#: A rate is told once it was measured over so many seconds.
_ENOUGH_S = 3.0
#: What was measured fades to this and no further: a pool that stands still for days is known to be
#: slow, which is not the same as unknown, and nothing is ever divided by next to nothing.
_LEAST = 1e-6
#: Longer between two looks than this, and nobody looked: the time is left out.
_LONGEST_LOOK_S = 30.0


@dataclass(slots=True)
class _Pool:
    last: Seen
    lines: float = 0.0
    seconds: float = 0.0
    in_: float = 0.0
    out_seconds: float = 0.0


class Paces:
    """What was measured of every pool."""

    def __init__(self) -> None:
        self._pools: dict[str, _Pool] = {}
        self._looked_at_ms: int | None = None

    def look(self, seen: Mapping[str, Seen], now_ms: int) -> None:
        """Takes in how things stand; to be called about once a second."""
        last_ms, self._looked_at_ms = self._looked_at_ms, now_ms
        seconds = 0.0 if last_ms is None else (now_ms - last_ms) / 1000
        for name, now in seen.items():
            pool = self._pools.get(name)
            if pool is None:
                self._pools[name] = _Pool(now)
                continue
            if 0 < seconds <= _LONGEST_LOOK_S:
                _measure(pool, now, seconds)
            pool.last = now

    def rate(self, pool: str) -> float | None:
        """Lines a second that the fleet does there, above 0; None if that is not known."""
        known = self._pools.get(pool)
        if known is None or known.seconds < _ENOUGH_S or not known.lines:
            return None
        return known.lines / known.seconds

    def sojourn_s(self, pool: str) -> float | None:
        """Seconds from a line's release until it is in; None if no line has been."""
        known = self._pools.get(pool)
        return known.out_seconds / known.in_ if known and known.in_ > 0 else None


def promised_rates(loads: Iterable[WorkerLoad]) -> dict[str, float]:
    """Lines a second by pool, as workers say it: calls that they may have, by a call's time."""
    rates: dict[str, float] = {}
    for load in loads:
        for pool in load.pools:
            if pool.limit > 0 and pool.call_ms > 0:
                rates[pool.pool] = rates.get(pool.pool, 0.0) + pool.limit * 1000 / pool.call_ms
    return rates


def _measure(pool: _Pool, now: Seen, seconds: float) -> None:
    last, fade = pool.last, math.exp(-seconds / MEMORY_S)
    in_ = max(0, now.finished - last.finished)
    pool.in_ = _faded(pool.in_, fade) + in_
    pool.out_seconds = pool.out_seconds * fade + seconds * (last.out + now.out) / 2
    if last.waits and now.waits:
        pool.lines = _faded(pool.lines, fade) + in_ / now.share
        pool.seconds = pool.seconds * fade + seconds


def _faded(count: float, fade: float) -> float:
    return max(count * fade, _LEAST) if count else 0.0
