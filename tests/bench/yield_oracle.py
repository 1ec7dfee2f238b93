"""An oracle that knows every arrival of the trace, to show how much there is to win.

Like Backhaul it keeps real-time and batch sequences together at a constant number, found in
hindsight. Unlike it, it knows how many calls will be in flight over the life of a batch call, so
batch has left before they come; and it fills the engine whenever nobody comes for long enough.
"""

from __future__ import annotations

import math
from bisect import bisect_left

from streams.simulator.engine import EngineSpec
from tests.bench.yield_traces import Trace
from tests.bench.yield_world import Order, World

#: Batch has to be gone so long before a call comes; a full engine is emptied by abort, then.
_CLEAR_S = 0.2
_SILENCE_S = 3.0
_TICK_S = 0.05


class Oracle:
    """`top` sequences in all, as if the calls of the next moments were here already."""

    def __init__(self, trace: Trace, spec: EngineSpec, top: int) -> None:
        self._arrivals = [arrival.at_s for arrival in trace.arrivals]
        self._top = top
        self._full = spec.max_num_seqs
        self._tick_s = 0.0

    def order(self, now_s: float, world: World) -> Order:
        """See Policy."""
        self._tick_s = now_s + _TICK_S
        following = bisect_left(self._arrivals, now_s)
        next_s = self._arrivals[following] if following < len(self._arrivals) else math.inf
        if world.realtime_in_flight == 0 and next_s - now_s > _CLEAR_S:
            # Alone until then; the last moment before a call is for emptying the engine.
            return Order(self._full if next_s - now_s > _SILENCE_S else self._top)
        coming = bisect_left(self._arrivals, now_s + 2 * _CLEAR_S) - following
        limit = max(0, self._top - world.realtime_in_flight - coming)
        return Order(limit, limit + self._top // 4)

    def next_at_s(self) -> float:
        """See Policy."""
        return self._tick_s
