"""What is foreseen for running batches, as the controllers said it last; kept in memory only."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from api.log_port import LogReader
from schemas.records import (
    BatchForecast,
    BatchForecasts,
    BatchSnapshot,
    BatchStatus,
    BudgetHold,
)
from streams.background import Tasks
from streams.domain.clock import Clock
from streams.kafka.errors import KafkaBaseError
from streams.kafka.reader import ReadRecord

log = structlog.get_logger(__name__)

#: Controllers repeat themselves within 10 minutes; what is older is of a batch or a controller
#: that is gone.
KEPT_MS = 20 * 60_000
#: Batches remembered; the oldest forecasts go first.
MOST = 1_000_000
_POLL_S = 0.5
_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Foreseen:
    """The extra fields of a Batch: eta in Unix seconds, later than now.

    hold: why the batch waits for money, if it does.
    """

    eta: int | None = None
    at_risk: bool = False
    queue_position: int | None = None
    queued: bool = False
    hold: BudgetHold | None = None


NOTHING = Foreseen()


class Forecasts:
    """Follows batch.forecast. A controller that is away leaves its batches without a forecast."""

    def __init__(self, reader: LogReader, clock: Clock) -> None:
        self._reader = reader
        self._clock = clock
        # In the order in which they were told.
        self._told: dict[str, tuple[int, BatchForecast]] = {}
        self._tasks = Tasks(_note_bug)

    async def start(self) -> None:
        """Begins to read all that the topic still has. Raises KafkaBaseError."""
        await self._reader.start("beginning")
        self._tasks.start(self._read())

    async def stop(self) -> None:
        """Stops reading."""
        await self._tasks.stop(0.0)
        await self._reader.stop()

    def of(self, batch: BatchSnapshot) -> Foreseen:
        """What is foreseen for the batch as it is now."""
        now_ms = self._clock.now_ms()
        at_ms, told = self._told.get(batch.batch_id, (0, None))
        running = batch.status is BatchStatus.IN_PROGRESS
        if told is None or not running or now_ms - at_ms > KEPT_MS:
            return NOTHING
        if batch.paused_at_ms is not None:
            # Who resumes it must see that it will not go on.
            return Foreseen(hold=told.hold)
        # Rounded up, whole seconds are still later than now.
        eta_ms = told.eta_ms if told.eta_ms is not None and told.eta_ms > now_ms else None
        return Foreseen(
            # Rounded up, whole seconds are still later than now.
            eta=None if eta_ms is None else -(-eta_ms // 1000),
            at_risk=eta_ms is not None and eta_ms > batch.expires_at_ms,
            queue_position=told.queue_position,
            queued=told.queued,
            hold=told.hold,
        )

    async def _read(self) -> None:
        while True:
            try:
                for read in await self._reader.poll(_POLL_S):
                    self._take(read)
            except KafkaBaseError as error:
                log.warning(
                    "Forecasts can not be read.",
                    action="forecasts_not_read",
                    error=type(error).__name__,
                )
                await asyncio.sleep(_RETRY_S)

    def _take(self, read: ReadRecord) -> None:
        if not isinstance(read.record, BatchForecasts):
            return
        # By the log's clock: a controller's own may be wrong by years.
        for forecast in read.record.forecasts:
            self._told.pop(forecast.batch_id, None)
            self._told[forecast.batch_id] = read.timestamp_ms, forecast
        oldest_ms = self._clock.now_ms() - KEPT_MS
        while self._told:
            first = next(iter(self._told))
            if self._told[first][0] >= oldest_ms and len(self._told) <= MOST:
                break
            del self._told[first]


def _note_bug(error: BaseException) -> None:
    log.error("Reading forecasts broke.", action="forecasts_broken", exc_info=error)
