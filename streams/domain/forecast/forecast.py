"""The forecast of every batch of one controller: when its last line will be in, and its place.

    dispatcher ─ look(), each second ─► paces ─┐
    dispatcher ─ what waits, in its order ─────┴─► fluid ─► eta of each batch

What waits at other controllers takes turns as so many tenants of about equal work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from schemas.records import BudgetHold
from streams.domain.dispatch.dispatcher import Dispatcher
from streams.domain.dispatch.lane import BatchLines
from streams.domain.forecast.fluid import Waiting, ends
from streams.domain.forecast.pace import Paces, promised_rates

#: A forecast reaches no further: what would take longer has practically no pace at all.
HORIZON_MS = 30 * 86_400_000
#: Of a batch that is out entirely at least this part of a line's usual time is left.
_AT_LEAST = 0.25
#: Most tenants of another controller that are told apart; more differ little.
_MOST_OTHERS = 64
_NO_HOLDS: Mapping[str, BudgetHold] = {}


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is foreseen for one batch.

    eta_ms: when its last line will be in, later than now; None if that is not known.
    position: how many batches of its tenant go before it; None if that is not known. queued: it
    waits until its tenant has room for it. hold: why it waits for money, if it does.
    """

    batch_id: str
    deadline_ms: int
    eta_ms: int | None
    position: int | None
    queued: bool = False
    hold: BudgetHold | None = None

    @property
    def at_risk(self) -> bool:
        """Whether it will not be done in time, as things are now."""
        return self.eta_ms is not None and self.eta_ms > self.deadline_ms


class Forecaster:
    """Measures one dispatcher's pools and foretells its batches."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._paces = Paces()

    def look(self, now_ms: int) -> None:
        """Measures; to be called about once a second."""
        self._paces.look(self._dispatcher.seen(now_ms), now_ms)

    def outlooks(
        self, positions: Mapping[str, int], now_ms: int, holds: Mapping[str, BudgetHold] = _NO_HOLDS
    ) -> list[Outlook]:
        """Every batch whose window is open. positions: of batches among their tenants'.

        holds: of batches that wait for money. Nobody knows when they will go on.
        """
        open_ = [b for b in self._dispatcher.batches() if now_ms < b.deadline_ms]
        # One that waits for room has its place in the same order, so it is as if it ran.
        going = sorted((b for b in open_ if not b.paused and b.batch_id not in holds), key=_order)
        ends_s = self._ends(going, now_ms)
        return [
            Outlook(
                batch_id=batch.batch_id,
                deadline_ms=batch.deadline_ms,
                eta_ms=self._eta_ms(batch, ends_s[batch.batch_id], now_ms)
                if batch.batch_id in ends_s
                else None,
                position=positions.get(batch.batch_id),
                queued=batch.held and batch.batch_id not in holds,
                hold=holds.get(batch.batch_id),
            )
            for batch in open_
        ]

    def _ends(self, batches: Sequence[BatchLines], now_ms: int) -> dict[str, float]:
        """Seconds until the last line of each batch is released; 0 if all are."""
        rates = self._rates(now_ms)
        lanes = [
            Waiting(batch.tenant, lane.pools, lines, lane.mean_cost())
            for batch in batches
            for lane, lines in zip(batch.lanes, batch.waiting(), strict=True)
        ]
        found = iter(ends([*lanes, *self._others(rates, now_ms)], rates))
        return {
            batch.batch_id: max((next(found) for _ in batch.lanes), default=0.0)
            for batch in batches
        }

    def _rates(self, now_ms: int) -> dict[str, float]:
        promised = promised_rates(self._dispatcher.workers(now_ms))
        pools = {
            pool for b in self._dispatcher.batches() for lane in b.lanes for pool in lane.pools
        }
        measured = {pool: self._paces.rate(pool) for pool in pools}
        return {p: r for p in pools if (r := measured[p] or promised.get(p))}

    def _others(self, rates: dict[str, float], now_ms: int) -> Iterator[Waiting]:
        for pool in rates:
            _, *others = self._dispatcher.claims(pool, now_ms)
            for claim in others:
                tenants = min(claim.tenants, _MOST_OTHERS)
                for number in range(tenants):
                    name = f"{claim.controller}/{number}"
                    yield Waiting(name, (pool,), claim.lines / tenants)

    def _eta_ms(self, batch: BatchLines, released_in_s: float, now_ms: int) -> int | None:
        sojourn_s = self._sojourn_s(batch)
        if math.isinf(released_in_s) or (released_in_s == 0 and sojourn_s is None):
            return None
        sojourn_ms = 1000 * (sojourn_s or 0.0)
        if released_in_s:
            eta_ms = now_ms + 1000 * released_in_s + sojourn_ms
        else:
            eta_ms = max(batch.released_at_ms + sojourn_ms, now_ms + _AT_LEAST * sojourn_ms)
        return max(now_ms + 1000, math.ceil(min(eta_ms, now_ms + HORIZON_MS)))

    def _sojourn_s(self, batch: BatchLines) -> float | None:
        """That of its slowest pool, as far as any is known."""
        slowest: float | None = None
        for lane in batch.lanes:
            for pool in lane.pools:
                sojourn_s = self._paces.sojourn_s(pool)
                if sojourn_s is not None and (slowest is None or sojourn_s > slowest):
                    slowest = sojourn_s
        return slowest


def _order(batch: BatchLines) -> tuple[int, int, int, str]:
    return (-batch.priority, batch.deadline_ms, batch.created_at_ms, batch.batch_id)
