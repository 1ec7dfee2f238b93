"""The batch-worker's metrics, fed from what it publishes, so that a line costs next to nothing."""

from __future__ import annotations

from prometheus_client import Counter

from schemas.metrics import LINE_OUTCOMES, POOL_CREDITS, POOL_HELD, Metrics
from schemas.records import DoneLines, OutcomeKind, WorkerLoad


class WorkerMeter:
    """Counts outcomes that were sent, and shows the load that was published."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        #: Looked up once per kind and reason, because labels are slow.
        self._outcomes: dict[tuple[OutcomeKind, str], Counter] = {}

    def sent(self, record: DoneLines) -> None:
        """These outcomes are at the broker."""
        for outcome in record.outcomes:
            key = (outcome.kind, outcome.reason)
            counter = self._outcomes.get(key)
            if counter is None:
                counter = self._metrics.counter(LINE_OUTCOMES).labels(*key)
                self._outcomes[key] = counter
            counter.inc()

    def published(self, load: WorkerLoad) -> None:
        """This is the load now."""
        for pool in load.pools:
            self._metrics.gauge(POOL_HELD).labels(pool.pool).set(pool.held)
            self._metrics.gauge(POOL_CREDITS).labels(pool.pool).set(pool.credits)
