"""The controller's metrics, fed once a step, after its effects are at the broker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from schemas.metrics import (
    BATCHES_AT_RISK,
    BATCHES_ENDED,
    BATCHES_HELD,
    BATCHES_QUEUED,
    EVENTS_FOLDED,
    LINES_ACCEPTED,
    Metrics,
)
from schemas.records import BatchStatus
from streams.controller.log import Step
from streams.domain.batch.effects import PublishSnapshot, RecordUsage
from streams.domain.forecast.forecast import Outlook

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
        self._at_risk = metrics.gauge(BATCHES_AT_RISK)
        self._held = metrics.gauge(BATCHES_HELD)
        self._queued = metrics.gauge(BATCHES_QUEUED)

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

    def foresaw(self, outlooks: Sequence[Outlook]) -> None:
        """This is foreseen for all of this process's batches."""
        self._at_risk.set(sum(outlook.at_risk for outlook in outlooks))
        self._queued.set(sum(outlook.queued for outlook in outlooks))
        scopes = Counter(outlook.hold.scope for outlook in outlooks if outlook.hold is not None)
        for scope in ("tenant", "key"):
            self._held.labels(scope).set(scopes[scope])
