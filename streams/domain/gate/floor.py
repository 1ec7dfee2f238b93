"""What deadlines ask for: the calls in flight that a batch in danger needs, and no more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

#: Calls are asked for as if each took this much longer: they will, beside real-time calls.
_MARGIN = 1.25
#: So long before its deadline a batch should be done: assembly takes its time.
_SPARE_S = 60.0


class Protect(StrEnum):
    """Which side wins when a window is in danger."""

    REALTIME = "realtime"
    WINDOW = "window"


@dataclass(frozen=True, slots=True)
class Work:
    """Lines that must be done in `left_s` seconds."""

    lines: int
    left_s: float


@dataclass(frozen=True, slots=True)
class Demand:
    """All that waits for one upstream and model. call_s: how long a call takes, as measured."""

    work: Sequence[Work] = ()
    call_s: float = 0.0


NO_DEMAND = Demand()


def needed_calls(demand: Demand) -> int:
    """Calls in flight with which every deadline is met, earliest first.

    By Little's law: lines · seconds a call ÷ seconds left. For each deadline the work of
    all earlier ones counts too. Work that is late already asks for nothing: it can't be saved.
    """
    if not (math.isfinite(demand.call_s) and demand.call_s > 0):
        return 0
    needed, lines = 0.0, 0
    for work in sorted(demand.work, key=lambda w: w.left_s):
        left_s = work.left_s - min(_SPARE_S, work.left_s / 10)
        if not left_s > 0:
            continue
        lines += max(0, work.lines)
        needed = max(needed, _MARGIN * lines * demand.call_s / left_s)
    return math.ceil(min(needed, 1e9))
