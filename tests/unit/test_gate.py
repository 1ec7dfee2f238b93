"""The gate: what it allows, and that it never allows more than its signals bear out."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.domain.gate.floor import NO_DEMAND, Demand, Protect, Work
from streams.domain.gate.gate import Decision, Gate, GateSettings, Reason
from streams.domain.gate.plan import WINDOW_S
from streams.domain.gate.signals import (
    EngineLoad,
    FirstToken,
    QueueLoad,
    RealtimeLoad,
    Signal,
    Source,
)

BASE = GateSettings(highest=200, floor=3)
TICK_S = 0.05


class Bench:
    """A gate before a made-up engine: step = a + b·R, first token after four steps and a bit."""

    def __init__(self, settings: GateSettings = BASE, seed: int = 1) -> None:
        self.gate = Gate(settings)
        self.random = random.Random(seed)
        self.now = 1000.0
        self.batch = 0
        self.a, self.b = 0.007, 0.00015
        self.decision = Decision(0, None, 0, Reason.LEARNING)
        self.demand = NO_DEMAND

    def tick(self, realtime: int, *, tokens: int = 1, deaf: bool = False) -> Decision:
        """Fifty milliseconds in which `tokens` calls got their first token; batch obeys at once."""
        self.now += TICK_S
        step = self.a + self.b * (realtime + self.batch)
        first = tuple(
            FirstToken(self.now - 0.1, 4 * step * self.random.lognormvariate(0, 0.15) + 0.01)
            for _ in range(tokens if realtime else 0)
        )
        gaps = realtime * 3
        load = RealtimeLoad("w", self.now, realtime, first, gaps, gaps * step)
        if not deaf:
            self.gate.hear(load, self.now)
        self.decision = self.gate.decide(self.now, self.demand)
        above = self.decision.abort_above
        if above is not None:
            self.batch = min(self.batch, above)
        # A call lasts some seconds: batch above the limit drains.
        drained = math.ceil(self.batch * 0.98) if self.batch > self.decision.limit else self.batch
        self.batch = max(min(drained, self.batch), min(self.decision.limit, 200))
        self.gate.batch_in_flight(self.batch, self.now)
        return self.decision

    def learn(self, seconds: float = 60.0) -> None:
        """Traffic that goes up and down, so that the gate knows the engine."""
        for i in range(round(seconds / TICK_S)):
            self.tick(10 + round(8 * math.sin(i / 100)))


def hear(gate: Gate, *signals: Signal, now: float) -> None:
    for signal in signals:
        gate.hear(signal, now)


def test_without_any_signal_the_floor_holds() -> None:
    gate = Gate(BASE)
    decision = gate.decide(5.0)
    assert (decision.limit, decision.reason, decision.about) == (3, Reason.STALE, Source.REALTIME)


def test_a_signal_that_stops_means_the_floor_and_is_named_with_its_age() -> None:
    bench = Bench()
    bench.learn()
    assert bench.decision.reason is Reason.YIELD
    for _ in range(80):
        decision = bench.tick(5, deaf=True)
    assert (decision.limit, decision.reason) == (3, Reason.STALE)
    assert decision.about is Source.REALTIME
    assert decision.ages_s[Source.REALTIME] > 3
    # It is not a stop for good.
    for _ in range(100):
        decision = bench.tick(5)
    assert decision.reason is Reason.YIELD
    assert decision.limit > 3


GOOD = RealtimeLoad("w", 1000.0, 2)


@pytest.mark.parametrize(
    "lie",
    [
        replace(GOOD, at_s=math.nan),
        replace(GOOD, at_s=1000.0 - 365 * 86_400),
        replace(GOOD, at_s=1000.0 + 3600),
        replace(GOOD, in_flight=-1),
        replace(GOOD, in_flight=10**9),
        replace(GOOD, gaps=5, gaps_s=0.0),
        replace(GOOD, gaps=5, gaps_s=math.nan),
        replace(GOOD, gaps=5, gaps_s=-1.0),
        replace(GOOD, first_tokens=(FirstToken(999.0, 0.0),)),
        replace(GOOD, first_tokens=(FirstToken(999.0, -0.1),)),
        replace(GOOD, first_tokens=(FirstToken(999.0, math.inf),)),
        replace(GOOD, first_tokens=(FirstToken(math.nan, 0.1),)),
    ],
)
def test_a_load_that_cannot_be_true_means_the_floor_until_a_true_one_comes(
    lie: RealtimeLoad,
) -> None:
    gate = Gate(BASE)
    gate.hear(replace(GOOD, at_s=999.5), 999.5)
    assert gate.decide(999.6).reason is Reason.LEARNING
    gate.hear(lie, 1000.0)
    decision = gate.decide(1000.0)
    assert (decision.limit, decision.reason) == (3, Reason.INVALID)
    gate.hear(replace(GOOD, at_s=1000.5), 1000.5)
    assert gate.decide(1000.6).reason is Reason.LEARNING


@pytest.mark.parametrize(
    "lie",
    [
        EngineLoad(1000.0, -1, 0),
        EngineLoad(1000.0, 0, 0, math.nan),
        EngineLoad(1000.0, 0, 0, 1.5),
        QueueLoad(1000.0, -1),
        QueueLoad(1000.0, 0, math.nan),
    ],
)
def test_engine_and_queue_may_not_lie_either(lie: Signal) -> None:
    sources = frozenset({Source.REALTIME, Source.ENGINE, Source.QUEUE})
    gate = Gate(replace(BASE, sources=sources))
    hear(gate, GOOD, EngineLoad(1000.0, 0, 2), QueueLoad(1000.0, 0), now=1000.0)
    assert gate.decide(1000.0).reason is Reason.LEARNING
    gate.hear(lie, 1000.0)
    decision = gate.decide(1000.0)
    assert (decision.limit, decision.reason) == (3, Reason.INVALID)


def test_it_learns_the_engines_curve_and_its_unloaded_baseline() -> None:
    bench = Bench()
    bench.learn(120)
    plan = bench.gate.plan
    assert plan is not None
    # P99 of four steps with at most 18 calls, and the spread of 15 %.
    alone = [
        4 * (0.007 + 0.00015 * (10 + 8 * math.sin(i / 100))) * math.exp(0.15 * z) + 0.01
        for i in range(1200)
        for z in (-1.5, -0.5, 0.5, 1.5, 2.33)
    ]
    expected = sorted(alone)[round(len(alone) * 0.96)]
    assert plan.baseline_s == pytest.approx(expected, rel=0.08)
    assert plan.baseline_s < plan.line_s <= plan.baseline_s * 1.05


def test_a_slower_engine_is_learnt_anew() -> None:
    bench = Bench()
    bench.learn(60)
    assert bench.gate.plan is not None
    before = bench.gate.plan.baseline_s
    bench.a *= 2
    bench.b *= 2
    bench.learn(950)
    assert bench.gate.plan is not None
    assert bench.gate.plan.baseline_s > 1.6 * before


@pytest.mark.parametrize("can_abort", [False, True])
def test_a_burst_brings_batch_to_the_bottom_within_a_second(can_abort: bool) -> None:
    bench = Bench(replace(BASE, can_abort=can_abort))
    bench.learn(90)
    for _ in range(round(20 / TICK_S)):
        bench.tick(0)
    # What can't be aborted must be few enough when the silence ends.
    assert bench.decision.limit >= (100 if can_abort else BASE.floor + 1)
    for i in range(round(1 / TICK_S)):
        bench.tick(min(120, 20 * (i + 1)), tokens=5)
    assert bench.decision.limit <= BASE.floor
    if can_abort:
        assert bench.batch <= BASE.floor + 8


def test_from_idle_to_full_use_it_takes_less_than_five_seconds() -> None:
    bench = Bench(replace(BASE, can_abort=True))
    bench.learn(30)
    for _ in range(round(200 / TICK_S)):
        bench.tick(0)
    bench.tick(60)
    full = 200
    for _ in range(40):
        bench.tick(60)
    assert bench.decision.limit < 50
    started = bench.now
    while bench.decision.limit < 0.9 * full and bench.now - started < 60:
        bench.tick(0)
    # Known to be harmless, a silence is filled at once.
    assert bench.gate.plan is not None
    allowed = bench.gate.plan.limit(0, 5.0)
    reached = Bench(replace(BASE, can_abort=True))
    started = reached.now
    while reached.decision.limit < full and reached.now - started < 60:
        reached.tick(0)
    assert reached.now - started < 5
    assert allowed >= 0


@pytest.mark.parametrize("call_s", [0.0, 1.0])
def test_beside_real_time_calls_batch_comes_back_with_one_call_a_step(call_s: float) -> None:
    settings_ = replace(BASE, highest=2000, target=2.0)
    bench = Bench(settings_)
    bench.learn(120)
    for _ in range(20):
        bench.tick(100)
    bench.demand = Demand(call_s=call_s)
    rises = []
    for _ in range(40):
        before, running = bench.decision.limit, 5 + bench.batch
        steps = TICK_S / (bench.a + bench.b * running)
        rises.append((bench.tick(5, tokens=0).limit - before) / steps)
    # Learnt, so about; without this it would be 33 in each tick of three to seven steps.
    assert 0.5 < max(rises) < 1.5


def test_calls_that_come_just_after_an_abort_do_not_tell_against_the_silence_before() -> None:
    bench = Bench(replace(BASE, can_abort=True))
    bench.learn(120)
    for _ in range(5):
        for _ in range(round(40 / TICK_S)):
            bench.tick(0)
        # One call meets the full engine; those that follow it in the same moment don't.
        for i in range(6):
            bench.tick(4 * (i + 1), tokens=4 if i else 1)
        bench.learn(40)
    plan = bench.gate.plan
    assert plan is not None
    assert plan.limit(0, 60) == BASE.highest


@pytest.mark.parametrize("spread", [0, 3])
def test_constant_load_makes_a_calm_limit(spread: int) -> None:
    bench = Bench()
    bench.learn(120)
    limits = []
    for i in range(round(180 / TICK_S)):
        noise = bench.random.randint(-spread, spread)
        decision = bench.tick(8 + noise)
        if i > round(60 / TICK_S):
            limits.append(decision.limit)
    mean = sum(limits) / len(limits)
    deviation = math.sqrt(sum((limit - mean) ** 2 for limit in limits) / len(limits))
    # It may follow the noise that it is shown, call by call, and a slow change of plan.
    assert deviation <= 6 + 1.5 * spread


def _limit_after(load: Signal | None, seed: int = 1, realtime: int = 5) -> int:
    sources = frozenset({Source.REALTIME})
    bench = Bench(replace(BASE, sources=sources), seed)
    bench.learn(40)
    for _ in range(60):
        bench.tick(realtime)
    if load is not None:
        bench.gate.hear(replace(load, at_s=bench.now), bench.now)
    return bench.gate.decide(bench.now).limit


@pytest.mark.parametrize(
    "worse",
    [
        [QueueLoad(0, 0), QueueLoad(0, 1), QueueLoad(0, 5), QueueLoad(0, 500)],
        [EngineLoad(0, 0, 20), EngineLoad(0, 3, 20), EngineLoad(0, 30, 20), EngineLoad(0, 99, 20)],
        [EngineLoad(0, 0, 20, 0.2), EngineLoad(0, 0, 20, 0.95), EngineLoad(0, 9, 20, 1.0)],
    ],
)
def test_a_worse_signal_never_means_a_higher_limit(worse: list[Signal]) -> None:
    limits = [_limit_after(signal) for signal in worse]
    assert limits == sorted(limits, reverse=True)
    assert limits[-1] < limits[0]


@settings(max_examples=25, deadline=None)
@given(
    loads=st.lists(st.integers(0, 80), min_size=5, max_size=40),
    seed=st.integers(0, 100),
    highest=st.integers(0, 300),
    floor=st.integers(0, 20),
    can_abort=st.booleans(),
)
def test_the_limit_stays_between_nothing_and_the_highest_whatever_comes(
    loads: list[int], seed: int, highest: int, floor: int, can_abort: bool
) -> None:
    bench = Bench(replace(BASE, highest=highest, floor=floor, can_abort=can_abort), seed)
    for load in loads:
        for _ in range(10):
            deaf = bench.random.random() < 0.2
            decision = bench.tick(load, tokens=bench.random.randint(0, 3), deaf=deaf)
            assert 0 <= decision.limit <= highest
            if decision.reason in (Reason.STALE, Reason.INVALID):
                assert decision.limit <= floor
            above = decision.abort_above
            assert above is None or (can_abort and load > 0 and above >= decision.limit)
    plan = bench.gate.plan
    if plan is not None:
        limits = [plan.limit(o, s) for o, s in [(0, 60), (0, 5), (0, 1), (0, 0)]]
        limits += [plan.limit(realtime, 0) for realtime in range(1, 120)]
        assert limits == sorted(limits, reverse=True), "more real-time never leaves more room"


def test_a_window_in_danger_gets_what_it_needs_if_the_operator_says_so() -> None:
    demand = Demand((Work(lines=6000, left_s=600.0),), call_s=5.0)
    for protect, least in ((Protect.WINDOW, 60), (Protect.REALTIME, 0)):
        gate = Gate(replace(BASE, protect=protect))
        now = 1000.0
        for _ in range(200):
            now += TICK_S
            gate.hear(RealtimeLoad("w", now, 50), now)
            decision = gate.decide(now, demand)
        assert decision.floor >= 60
        assert decision.limit >= least
        assert decision.limit <= 80, "and no more than it needs"
        assert (decision.reason is Reason.WINDOW) is (protect is Protect.WINDOW)


def test_a_realtime_worker_that_has_gone_is_forgotten_when_others_speak() -> None:
    gate = Gate(BASE)
    now = 1000.0
    gate.hear(RealtimeLoad("gone", now, 9), now)
    for _ in range(400):
        now += TICK_S
        gate.hear(RealtimeLoad("here", now, 0), now)
        decision = gate.decide(now)
        if 4 < now - 1000 < 14:
            assert (decision.limit, decision.reason) == (3, Reason.STALE)
    assert decision.reason is not Reason.STALE
    assert decision.limit > 3


def test_without_our_own_lane_the_engines_metrics_tell_of_real_time_calls() -> None:
    gate = Gate(replace(BASE, sources=frozenset({Source.ENGINE})))
    now = 1000.0
    for _ in range(100):
        now += TICK_S
        gate.batch_in_flight(10, now)
        gate.hear(EngineLoad(now, 0, 10), now)
        quiet = gate.decide(now)
    for _ in range(100):
        now += TICK_S
        gate.hear(EngineLoad(now, 0, 40), now)
        busy = gate.decide(now)
    assert quiet.limit > busy.limit
    assert busy.limit <= 4


def test_the_same_signals_give_the_same_decisions() -> None:
    def course() -> list[int]:
        bench = Bench(seed=7)
        return [bench.tick(round(10 + 9 * math.sin(i / 40))).limit for i in range(800)]

    assert course() == course()


def test_from_the_engines_metrics_alone_it_learns_how_much_batch_fits() -> None:
    gate = Gate(replace(BASE, sources=frozenset({Source.ENGINE})))
    random_ = random.Random(3)
    now, batch = 1000.0, 0
    limits: dict[bool, list[int]] = {True: [], False: []}
    for i in range(4000):
        now += 0.25
        busy = i % 240 < 120
        realtime = random_.randint(30, 50) if busy else random_.randint(2, 6)
        running = realtime + batch
        gate.hear(EngineLoad(now, 0, running, 0.3, 100, 0.7 + 0.015 * running), now)
        batch = gate.decide(now).limit
        gate.batch_in_flight(batch, now)
        if i > 2000 and i % 120 > 20:
            limits[busy].append(batch)
    assert sum(limits[False]) / len(limits[False]) > 10
    assert max(limits[True]) < max(limits[False])


def test_an_upstream_that_nobody_calls_is_batchs_at_once_and_again_after_the_window() -> None:
    gate = Gate(BASE)
    gate.hear(RealtimeLoad("w", 1000.0, 0), 1000.0)
    decision = gate.decide(1000.0, Demand(call_s=0.5))
    assert (decision.limit, decision.reason) == (BASE.highest, Reason.SILENCE)
    gate.hear(RealtimeLoad("w", 1001.0, 1), 1001.0)
    assert gate.decide(1001.0).limit <= 4
    now = 1001.0
    while now < 1001.0 + WINDOW_S + 2:
        now += 1.0
        gate.hear(RealtimeLoad("w", now, 0), now)
        if now < 1000.0 + WINDOW_S:
            assert gate.decide(now).limit < BASE.highest
    assert gate.decide(now).limit == BASE.highest


@pytest.mark.parametrize(("call_s", "can_abort"), [(5.0, False), (0.0, False), (5.0, True)])
def test_what_a_first_burst_could_not_get_rid_of_grows_with_the_time_that_nobody_called(
    call_s: float, can_abort: bool
) -> None:
    gate = Gate(replace(BASE, can_abort=can_abort))
    shares = (0.0, 0.1, 0.5, 1.0)
    limits = []
    for share in shares:
        now = 1000.0 + share * WINDOW_S
        gate.hear(RealtimeLoad("w", now, 0), now)
        limits.append(gate.decide(now, Demand(call_s=call_s)).limit)
    assert limits == (
        [BASE.highest] * 4 if can_abort else [32, 32, BASE.highest // 2, BASE.highest]
    )


def test_calls_that_are_quick_only_in_an_empty_engine_do_not_make_it_swing() -> None:
    gate = Gate(BASE)
    gate.hear(RealtimeLoad("w", 1000.0, 0), 1000.0)
    limits = [gate.decide(1000.0, Demand(call_s=call_s)).limit for call_s in (0.8, 3.0, 0.8)]
    assert limits == [BASE.highest, 32, 32]


def test_where_there_is_nobody_to_listen_to_batch_starts_at_once() -> None:
    gate = Gate(replace(BASE, sources=frozenset()))
    assert gate.decide(1000.0, Demand(call_s=5.0)).limit == BASE.highest


def test_calls_past_our_lane_are_seen_beside_those_in_it() -> None:
    gate = Gate(replace(BASE, can_abort=True, sources=frozenset({Source.REALTIME, Source.ENGINE})))
    now = 1000.0
    limits = []
    for strangers in (0, 30, 0):
        for _ in range(60):
            now += TICK_S
            gate.batch_in_flight(10, now)
            gate.hear(RealtimeLoad("w", now, 0), now)
            gate.hear(EngineLoad(now, 0, 10 + strangers), now)
            decision = gate.decide(now)
        limits.append((decision.limit, decision.reason))
    assert limits[0] == (BASE.highest, Reason.SILENCE)
    assert limits[1][0] <= 4
    assert limits[2][0] > 4


def test_batch_that_was_just_aborted_does_not_hide_the_calls_it_was_aborted_for() -> None:
    gate = Gate(replace(BASE, can_abort=True, sources=frozenset({Source.ENGINE})))
    gate.batch_in_flight(60, 1000.0)
    gate.hear(EngineLoad(1000.4, 0, 100), 1000.4)
    gate.batch_in_flight(5, 1000.5)
    # Forty strangers, and of our own by then five to sixty.
    gate.hear(EngineLoad(1000.6, 6, 39), 1000.6)
    assert gate.decide(1000.6).reason is Reason.QUEUE
    # All that there is is ours, and has been for long enough.
    for n in range(20):
        gate.hear(EngineLoad(1001.0 + n / 4, 1, 4), 1001.0 + n / 4)
    assert gate.decide(1005.8).reason is not Reason.QUEUE


def test_batch_calls_that_have_just_ended_are_no_strangers() -> None:
    gate = Gate(replace(BASE, sources=frozenset({Source.ENGINE})))
    now = 1000.0
    for i in range(200):
        now += TICK_S
        # The engine's page is up to a quarter of a second behind.
        gate.batch_in_flight(60 if i % 20 < 10 else 40, now)
        gate.hear(EngineLoad(now, 0, 60 if (i - 4) % 20 < 10 else 40), now)
        assert gate.decide(now).reason is Reason.SILENCE
