"""What the controller's metrics say of its steps."""

from __future__ import annotations

from schemas.metrics import (
    BATCHES_AT_RISK,
    BATCHES_ENDED,
    BATCHES_HELD,
    BATCHES_QUEUED,
    EVENTS_FOLDED,
    LINES_ACCEPTED,
    Metrics,
)
from schemas.records import BudgetHold, OutcomeKind
from streams.controller.log import Step
from streams.controller.meter import ControllerMeter
from streams.domain.batch.machine import fold
from streams.domain.batch.state import Batch
from streams.domain.forecast.forecast import Outlook
from streams.domain.ledger import Ledger
from tests.support.batch_log import assembled, create, entries, outcome, segment, validated


def test_a_step_is_counted_in_events_lines_and_ended_batches() -> None:
    metrics = Metrics()
    lines = [outcome(0), outcome(1), outcome(2, OutcomeKind.FAILED)]
    step = Step()
    batch: Batch | None = None
    chunks: dict[int, Ledger] = {}
    for entry in entries([create(), validated(3), segment(lines), assembled(2, 1)]):
        folded = fold(batch, chunks, entry)
        batch, chunks = folded.batch, {**chunks, **folded.chunks}
        step.effects += folded.effects

    ControllerMeter(metrics).stepped(step)

    accepted = metrics.counter(LINES_ACCEPTED)
    assert accepted.labels("completed")._value.get() == 2
    assert accepted.labels("failed")._value.get() == 1
    assert metrics.counter(BATCHES_ENDED).labels("completed")._value.get() == 1
    assert metrics.counter(EVENTS_FOLDED)._value.get() == len(step.events)


def test_batches_that_are_at_risk_or_wait_for_room_are_counted_as_they_are_now() -> None:
    metrics = Metrics()
    meter = ControllerMeter(metrics)
    meter.foresaw(
        [
            Outlook("in time", deadline_ms=10, eta_ms=9, position=0),
            Outlook("late", deadline_ms=10, eta_ms=11, position=0),
            Outlook("unknown", deadline_ms=10, eta_ms=None, position=0),
            Outlook("late and waiting", deadline_ms=10, eta_ms=11, position=1, queued=True),
        ]
    )
    assert metrics.gauge(BATCHES_AT_RISK)._value.get() == 2
    assert metrics.gauge(BATCHES_QUEUED)._value.get() == 1
    meter.foresaw([])
    assert metrics.gauge(BATCHES_AT_RISK)._value.get() == 0


def test_batches_without_money_are_counted_by_whose_budget_it_is() -> None:
    def held(scope: str | None) -> Outlook:
        hold = scope and BudgetHold(
            reason="", scope=scope, period="", budget_micros=1, spent_micros=1, currency="usd"
        )
        return Outlook("b", deadline_ms=10, eta_ms=None, position=None, hold=hold or None)

    metrics = Metrics()
    meter = ControllerMeter(metrics)
    meter.foresaw([held("key"), held("tenant"), held("key"), held(None)])
    gauge = metrics.gauge(BATCHES_HELD)
    assert [gauge.labels(scope)._value.get() for scope in ("tenant", "key")] == [1, 2]
    meter.foresaw([])
    assert gauge.labels("key")._value.get() == 0
