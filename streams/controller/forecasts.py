"""Foresees this assignment's batches and publishes what is news of it, on batch.forecast."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from schemas.records import BatchForecast, BatchForecasts
from streams.domain.dispatch.dispatcher import Dispatcher
from streams.domain.enqueued.tenants import Tenants
from streams.domain.forecast.forecast import Forecaster, Outlook
from streams.domain.forecast.news import News

Foresaw = Callable[[Sequence[Outlook]], None]

#: How often the pools are measured, and at most how often the batches are foreseen.
_LOOK_MS = 1000
_FORESEE_MS = 2000
#: Foreseeing goes through all batches: it gets at most this part of the time.
_PART = 0.02
#: Forecasts of one record.
_AT_ONCE = 500


class Forecasts:
    """When to foresee what; whoever asks sends it."""

    def __init__(
        self, controller: str, dispatcher: Dispatcher, tenants: Tenants, foresaw: Foresaw
    ) -> None:
        """foresaw: called with all that is foreseen, told or not."""
        self._foresaw = foresaw
        self._controller = controller
        self._tenants = tenants
        self._forecaster = Forecaster(dispatcher)
        self._news = News()
        self._look_at_ms = 0
        self._foresee_at_ms = 0

    def due(self, now_ms: int) -> list[BatchForecasts]:
        """What is to be published now; mostly nothing. To be called often."""
        if now_ms >= self._look_at_ms:
            self._look_at_ms = now_ms + _LOOK_MS
            self._forecaster.look(now_ms)
        if now_ms < self._foresee_at_ms:
            return []
        began = time.perf_counter()
        positions = self._tenants.positions(now_ms)
        outlooks = self._forecaster.outlooks(positions, now_ms, self._tenants.budgets.holds())
        self._foresaw(outlooks)
        news = self._news.pick(outlooks, now_ms)
        took_ms = 1000 * (time.perf_counter() - began)
        self._foresee_at_ms = now_ms + max(_FORESEE_MS, round(took_ms / _PART))
        return list(self._records(news, now_ms))

    def _records(self, news: list[BatchForecast], now_ms: int) -> Iterator[BatchForecasts]:
        for start in range(0, len(news), _AT_ONCE):
            some = tuple(news[start : start + _AT_ONCE])
            yield BatchForecasts(controller=self._controller, at_ms=now_ms, forecasts=some)
