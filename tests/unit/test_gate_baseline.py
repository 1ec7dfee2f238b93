"""What a call would have met without batch: learnt while batch runs."""

from __future__ import annotations

import random

import pytest

from streams.domain.gate.alone import Shadow
from streams.domain.gate.curve import Curve, CurveLearner, FadingPlane
from streams.domain.gate.gate import Gate, GateSettings
from streams.domain.gate.history import History
from streams.domain.gate.plan import Aim, Met, Window, make_plan, situation
from streams.domain.gate.signals import FirstToken, RealtimeLoad
from streams.simulator.engine import EngineSpec
from tests.bench.yield_gate import Backhaul
from tests.bench.yield_policies import StaticCap
from tests.bench.yield_traces import waves
from tests.bench.yield_world import World, percentile

CURVE = Curve(a=0.007, b=0.00014, f=0.0, d=0.01, m=4.0, q=0.0)


def test_what_real_time_calls_do_is_not_taken_for_what_batch_does_not_do() -> None:
    # Batch is there where real-time calls are few, and these cost more each.
    plane = FadingPlane(half_life=3_000, reach=64)
    random_ = random.Random(1)
    for _ in range(3_000):
        realtime = random_.uniform(0, 70)
        running = 140 - 0.6 * realtime + random_.gauss(0, 8)
        plane.add(running, realtime, 7 + 0.14 * running + 0.03 * realtime + random_.gauss(0, 2))
    intercept, slope, lift = plane.fit()
    assert slope == pytest.approx(0.14, rel=0.05)
    assert lift == pytest.approx(0.03, rel=0.2)
    assert intercept + (slope + lift) * 40 == pytest.approx(13.8, rel=0.03)


@pytest.mark.parametrize("realtime", [0.0, 5.0])
def test_a_curve_with_a_single_point_is_still_a_curve(realtime: float) -> None:
    learner = CurveLearner()
    for _ in range(50):
        learner.gaps(5, realtime, 0.01)
        learner.first(5, realtime, 0.05)
    curve = learner.curve()
    assert min(curve.a, curve.b, curve.f, curve.d, curve.m, curve.q) >= 0
    assert curve.ttft_s(5, realtime) == pytest.approx(0.05, rel=0.01)


def met_alone(batch: float, seconds: float, *, started_s: float = 0.0) -> tuple[float, float]:
    """(real-time calls in flight, those that would be alone) under 15 calls of 200 steps a second.

    Batch is there from `started_s` on. The traffic itself is played beside it, by its means.
    """
    shadow, calls, at_s, alone = Shadow(), 0.0, 0.0, 0.0
    while at_s < seconds:
        at_s += 1 / 15
        running = calls + (batch if at_s >= started_s else 0.0)
        steps = (1 / 15) / CURVE.step_s(running, calls)
        shadow.spend(calls, steps)
        calls -= calls * steps / 200
        alone = shadow.came(at_s, calls, running, CURVE)
        calls += 1
    return calls, alone


def test_calls_that_last_longer_beside_batch_are_not_counted_as_traffic() -> None:
    undisturbed, _ = met_alone(0, 120)
    beside, alone = met_alone(40, 120)
    assert beside > 1.5 * undisturbed
    assert alone == pytest.approx(undisturbed, rel=0.05)


def test_without_batch_all_calls_in_flight_are_there_of_themselves() -> None:
    calls, alone = met_alone(0, 60)
    assert alone == pytest.approx(calls, rel=0.05)


def test_batch_that_has_only_just_come_has_not_made_calls_last_longer() -> None:
    calls, alone = met_alone(300, 60.1, started_s=60.0)
    # In a tenth of a second some would have ended; of a share of 7 ÷ 49 it is far.
    assert alone == pytest.approx(calls, rel=0.15)


def test_without_batch_a_call_would_have_met_alone_what_it_met_itself_included() -> None:
    gate = Gate(GateSettings())
    for n in range(200):
        # One call comes and goes, and nobody else is there. It is told of a little later.
        at_s, told_s = 1000.0 + n, 1000.01 + n
        gate.hear(RealtimeLoad("w", told_s, 1, gaps=3, gaps_s=0.03), told_s)
        token = FirstToken(at_s, 0.05)
        gate.hear(RealtimeLoad("w", at_s + 0.2, 0, (token,)), at_s + 0.2)
    met = gate._window.calls()
    assert [m.realtime for m in met] == pytest.approx([0.8] * 200)
    assert [m.alone for m in met] == pytest.approx([0.8] * 200, rel=0.1)


def test_an_average_is_over_the_time_and_not_over_the_changes() -> None:
    history = History()
    history.set(10.0, 4)
    history.set(10.1, 100)
    history.set(10.2, 0)
    assert history.mean(9.0, 11.0) == pytest.approx((0.1 * 4 + 0.1 * 100) / 2)
    assert history.mean(10.15, 10.2) == pytest.approx(100)
    assert history.mean(12.0, 12.0) == 0


def test_slow_calls_are_spent_once_on_silences_or_on_busy_times() -> None:
    """A window of long silences that each end in a call, and of busy times."""

    def busy_sequences(silences: int) -> float:
        window, random_ = Window(), random.Random(1)
        busy, quiet = situation(20, 0.0), situation(0, 60.0)
        for n in range(800):
            at_s = n / 2
            window.spend(at_s, busy, 0.1)
            spread = random_.expovariate(1 / 0.003)
            window.add(at_s, Met(busy, 15, 20, 25, 0, CURVE.ttft_s(25, 20) + spread))
        for n in range(silences):
            at_s = 400.0 + n
            window.spend(at_s, quiet, 60)
            window.add(at_s, Met(quiet, 0, 1, 340, 0, 0.11, aborted=True))
        plan = make_plan(window, CURVE, Aim(0.5, can_abort=True), 1.0, 300)
        assert plan is not None
        return plan.running[busy]

    assert busy_sequences(0) > busy_sequences(8)


def test_however_widely_first_tokens_spread_batch_is_left_something_to_learn_from() -> None:
    window, random_ = Window(), random.Random(1)
    where = situation(10, 0.0)
    for n in range(7_200):
        at_s = n / 8
        window.spend(at_s, where, 1 / 8)
        ttft_s = CURVE.ttft_s(10, 10) * random_.lognormvariate(0, 0.5)
        window.add(at_s, Met(where, 10, 10, 10, 0, ttft_s))
    plan = make_plan(window, CURVE, Aim(0.05, can_abort=True), 2.0, 300)
    assert plan is not None
    assert plan.free > 0
    assert plan.running[where] > 10


@pytest.mark.parametrize("target", [0.05, 0.5])
def test_the_baseline_is_that_of_the_same_traffic_alone(target: float) -> None:
    trace = waves(7)
    alone = World(trace, EngineSpec(), batch=False).run(StaticCap(0))
    settings = GateSettings(target=target, highest=368, can_abort=True)
    policy = Backhaul(settings, gate=(gate := Gate(settings)))
    World(trace, EngineSpec()).run(policy)
    assert gate.plan is not None
    assert gate.plan.baseline_s == pytest.approx(percentile(alone.ttfts, 0.99), rel=0.03)
