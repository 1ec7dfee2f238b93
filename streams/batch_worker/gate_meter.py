"""Shows what the gates decide, and what they know."""

from __future__ import annotations

from schemas.metrics import (
    GATE_ABORTS,
    GATE_FIRST_TOKEN,
    GATE_LIMIT,
    GATE_PART,
    GATE_REASON,
    GATE_SIGNAL_AGE,
    Metrics,
)
from streams.batch_worker.pool_gate import PoolGate
from streams.domain.gate.gate import Reason


class GateMeter:
    """The metrics of all gates of a worker."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._aborted: dict[str, int] = {}

    def show(self, gate: PoolGate) -> None:
        """This gate is so now; to be called each second or so."""
        metrics, pool, decision = self._metrics, gate.name, gate.decision
        if decision is None:
            return
        metrics.gauge(GATE_LIMIT).labels(pool).set(decision.limit)
        metrics.gauge(GATE_PART).labels(pool).set(gate.part)
        for reason in Reason:
            shown = metrics.gauge(GATE_REASON).labels(pool, reason.value)
            shown.set(int(reason is decision.reason))
        for source, age_s in decision.ages_s.items():
            metrics.gauge(GATE_SIGNAL_AGE).labels(pool, source.value).set(age_s)
        before = self._aborted.get(pool, 0)
        # A gate that began anew counts from nothing.
        metrics.counter(GATE_ABORTS).labels(pool).inc(max(0, gate.aborted - before))
        self._aborted[pool] = gate.aborted
        if (plan := gate.gate.plan) is not None:
            firsts = metrics.gauge(GATE_FIRST_TOKEN)
            firsts.labels(pool, "baseline").set(plan.baseline_s)
            firsts.labels(pool, "line").set(plan.line_s)
            firsts.labels(pool, "measured").set(plan.measured_s)
