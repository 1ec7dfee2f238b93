"""Reads an engine's page again and again, and tells the gates what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from streams.domain.gate.page import EngineReading, engine_load
from streams.domain.gate.signals import EngineLoad
from streams.ports.engine_metrics import EngineMetrics, EngineMetricsError

log = structlog.get_logger(__name__)

#: A reading waits so long for the workers' loads of the same moment: a batch call that the engine
#: shows before its worker does would pass for a stranger's.
SETTLE_S = 0.15


class EngineReader:
    """One engine. Readings that fail are left out, and so what is known grows old."""

    def __init__(
        self,
        url: str,
        engine: EngineMetrics,
        hear: Callable[[EngineLoad], None],
        now_s: Callable[[], float],
        period_s: Callable[[], float],
    ) -> None:
        """period_s: from one reading to the next, asked each time."""
        self._url = url
        self._engine = engine
        self._hear = hear
        self._now_s = now_s
        self._period_s = period_s
        self._before: EngineReading | None = None
        self._failing = False

    async def run(self) -> None:
        """Reads until it is cancelled."""
        while True:
            asked_s = self._now_s()
            await self.step()
            # What the reading itself took is part of it: in a row they would make half as many.
            period_s = self._period_s()
            await asyncio.sleep(max(period_s / 4, period_s - (self._now_s() - asked_s)))

    async def step(self) -> None:
        """Reads once."""
        # The answer may have been made as early as this.
        asked_s = self._now_s()
        try:
            reading = await self._engine.read()
        except EngineMetricsError as error:
            if not self._failing:
                log.warning(
                    "The engine's metrics can not be read.",
                    action="engine_not_read",
                    url=self._url,
                    error=str(error),
                )
            self._failing = True
            return
        self._failing = False
        await asyncio.sleep(SETTLE_S)
        self._hear(engine_load(reading, self._before, asked_s))
        self._before = reading
