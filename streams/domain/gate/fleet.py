"""One budget, many workers: each computes the same division and takes no more than its part.

Every worker hears the fleet's limit and what each worker has in flight and wants. All divide alike
(dispatch_share), so the parts add up to the limit. What a worker loses it gives up at once; what
it gains it takes only as far as the others have left room, and each after its own short wait, so
that twenty workers don't start together on one signal.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from streams.domain.dispatch.share import Claim, divide

#: A worker's word is good for so long.
STALE_AFTER_S = 3.0
#: The longest wait before a gain is taken.
JITTER_S = 0.2
#: Where there are fewer calls than workers, they go round: nobody's lines wait for ever.
TURN_S = 10.0


@dataclass(frozen=True, slots=True)
class WorkerCalls:
    """What one batch-worker says of an upstream and model.

    in_flight: calls now. wants: calls that it could have in flight, with the lines it holds.
    """

    worker: str
    at_s: float
    in_flight: int
    wants: int


class FleetShare:
    """One worker's part of the limit, over time. Times must not go back."""

    def __init__(self, worker: str) -> None:
        self._me = worker
        self._others: dict[str, WorkerCalls] = {}
        self._share = 0
        self._gain_at_s: float | None = None
        #: Its turn among workers that hear the same at the same moment, from 0 to 1.
        self.turn = zlib.crc32(worker.encode()) / 2**32

    def hear(self, calls: WorkerCalls) -> None:
        """Another worker's word; one's own is ignored."""
        if calls.worker != self._me:
            self._others[calls.worker] = calls

    def part(self, limit: int, mine: WorkerCalls, now_s: float) -> int:
        """Calls that this worker may have in flight now."""
        others = [calls for calls in self._others.values() if now_s - calls.at_s <= STALE_AFTER_S]
        claims = [Claim(calls.worker, max(0, calls.wants)) for calls in (mine, *others)]
        turn = int(now_s // TURN_S) if limit < len(claims) else 0
        fair = divide(claims, max(0, limit), turn)[self._me]
        room = max(0, limit - sum(calls.in_flight for calls in others))
        target = min(fair, room) if fair > self._share else fair
        if target <= self._share:
            self._share = min(self._share, fair)
            self._gain_at_s = None
        elif self._gain_at_s is None:
            self._gain_at_s = now_s + self.turn * JITTER_S
        elif now_s >= self._gain_at_s:
            self._share = target
            self._gain_at_s = None
        return self._share
