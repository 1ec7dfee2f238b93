"""The controller's metrics, fed once a step, after its effects are at the broker."""

from __future__ import annotations

from schemas.metrics import BATCHES_ENDED, EVENTS_FOLDED, LINES_ACCEPTED, Metrics
from schemas.records import BatchStatus
from streams.controller.log import Step
from streams.domain.batch.effects import PublishSnapshot, RecordUsage

_FINAL = frozenset(
    {BatchStatus.COMPLETED, BatchStatus.FAILED, BatchStatus.EXPIRED, BatchStatus.CANCELLED}
)


class ControllerMeter:
    """Counts what steps did. A replay after a crash counts again: these are no ledger."""

    def __init__(self, metrics: Metrics) -> None:
        self._events = metrics.counter(EVENTS_FOLDED)
        self._completed = metrics.counter(LINES_ACCEPTED).labels("completed")
        self._failed = metrics.counter(LINES_ACCEPTED).labels("failed")
        self._ended = metrics.counter(BATCHES_ENDED)

    def stepped(self, step: Step) -> None:
        """This step is done."""
        self._events.inc(len(step.events))
        for effect in step.effects:
            if isinstance(effect, RecordUsage):
                completed = sum(line.completed for line in effect.usage.lines)
                self._completed.inc(completed)
                self._failed.inc(len(effect.usage.lines) - completed)
            elif isinstance(effect, PublishSnapshot) and effect.snapshot.status in _FINAL:
                self._ended.labels(effect.snapshot.status.value).inc()
