"""What is foreseen for running batches."""

from __future__ import annotations

import msgspec


class BudgetHold(msgspec.Struct, frozen=True, kw_only=True):
    """Why nothing more of a batch is released though nobody has paused it."""

    reason: str
    scope: str
    period: str
    budget_micros: int
    spent_micros: int
    estimate_micros: int | None = None
    currency: str
    until_ms: int | None = None


class BatchForecast(msgspec.Struct, frozen=True, kw_only=True):
    """What is foreseen for one batch."""

    batch_id: str
    eta_ms: int | None = None
    queue_position: int | None = None
    queued: bool = False
    hold: BudgetHold | None = None


class BatchForecasts(msgspec.Struct, frozen=True, kw_only=True):
    """What a controller foresees for some of its batches, in place of what it said before."""

    controller: str
    at_ms: int
    forecasts: tuple[BatchForecast, ...]
