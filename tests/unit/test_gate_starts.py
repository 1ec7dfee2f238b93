"""When batch calls may start: not beside a first token that is waited for, and one a step."""

from __future__ import annotations

import asyncio
import math

import pytest

from streams.adapters.inference_fake import Hang
from streams.domain.gate.floor import Demand
from streams.domain.gate.gate import Decision, Gate, GateSettings
from streams.domain.gate.signals import FirstToken, RealtimeLoad
from streams.simulator.engine import EngineSpec
from tests.bench.yield_gate import Backhaul
from tests.bench.yield_traces import waves
from tests.bench.yield_world import World
from tests.support.gates import Site
from tests.support.waiting import eventually
from tests.support.worker_bench import Bench, lines, until

STEP_S = 0.02


def _gate(realtime: int, *, batch: int = 60) -> Gate:
    """A gate that has seen so many calls in flight for a minute, each step as long."""
    gate = Gate(GateSettings(highest=200, can_abort=True))
    for tick in range(1200):
        now_s = 1000 + tick * 0.05
        first = (FirstToken(now_s - 0.1, 0.08),)
        gate.hear(RealtimeLoad("w", now_s, realtime, first, 10, 10 * STEP_S), now_s)
        gate.batch_in_flight(batch, now_s)
        gate.decide(now_s)
    return gate


def _say(gate: Gate, now_s: float, realtime: int, awaiting: int, worker: str = "w") -> float:
    gate.hear(RealtimeLoad(worker, now_s, realtime, awaiting=awaiting), now_s)
    return gate.decide(now_s).gap_s


def test_beside_real_time_calls_batch_calls_start_a_step_apart_and_in_silence_at_once() -> None:
    gate = _gate(20)
    assert _say(gate, 1061.0, 20, 0) == pytest.approx(STEP_S, rel=0.1)
    assert _say(gate, 1061.1, 0, 0) == 0


def test_however_many_engines_there_are_calls_can_be_replaced_as_they_end() -> None:
    gate = _gate(20)
    _say(gate, 1061.0, 20, 0)
    for call_s in (0.05, 1.0, 60.0):
        decision = gate.decide(1061.0, Demand(call_s=call_s))
        assert decision.gap_s <= STEP_S * 1.1
        assert decision.gap_s <= call_s / decision.limit / 1.9


def test_none_starts_while_a_first_token_is_waited_for() -> None:
    gate = _gate(20)
    assert _say(gate, 1061.0, 21, 1) == math.inf
    assert _say(gate, 1061.1, 21, 0) < 1
    assert _say(gate, 1061.2, 22, 1) == math.inf, "each call counts anew"


def test_calls_that_wait_one_upon_another_do_not_keep_batch_out_for_good() -> None:
    gate = _gate(20)
    gaps = [_say(gate, 1061.0 + tick * 0.05, 20, 1) for tick in range(40)]
    held = [gap == math.inf for gap in gaps]
    assert held == sorted(held, reverse=True)
    assert 5 <= sum(held) <= 11
    assert _say(gate, 1064.0, 20, 0) < 1
    assert _say(gate, 1064.1, 20, 1) == math.inf


def test_a_worker_whose_calls_all_came_does_not_speak_for_the_others() -> None:
    gate = _gate(20)
    _say(gate, 1061.0, 1, 1, "other")
    assert _say(gate, 1061.1, 20, 0) == math.inf


def test_a_burst_that_begins_makes_room_for_the_calls_that_will_be_there_in_a_second() -> None:
    # The same number of calls, there for two seconds, or just come.
    steady, rising = _after(14), _after(4)
    assert steady.abort_above is None
    assert rising.limit < steady.limit - 10
    assert rising.abort_above == rising.limit


@pytest.mark.parametrize("clock_s", [-0.9, 0.9])
def test_whose_clock_is_how_far_apart_does_not_matter_to_a_burst(clock_s: float) -> None:
    for before in (14, 4):
        assert _after(before, clock_s).limit == _after(before).limit


def _after(before: int, clock_s: float = 0.0) -> Decision:
    """What a gate that knows waves says of 14 calls in flight, so many of them there before.

    clock_s: how far the realtime-worker's clock is ahead of the gate's.
    """
    policy = Backhaul(GateSettings(target=0.25, highest=368, can_abort=True), 3)
    World(waves(3)._replace(duration_s=240.0), EngineSpec()).run(policy)
    gate, now_s = policy.gate, 240.0
    for _ in range(40):
        now_s += 0.05
        gate.hear(RealtimeLoad("realtime-1", now_s + clock_s, before), now_s)
        gate.batch_in_flight(100, now_s)
        gate.decide(now_s)
    gate.hear(RealtimeLoad("realtime-1", now_s + clock_s, 14), now_s)
    return gate.decide(now_s)


async def test_a_pool_starts_its_lines_so_far_apart_and_none_while_it_is_told_so() -> None:
    bench = Bench(lambda _path, _body: Hang(), limit=8)
    pool = bench.worker.pools["a"]
    pool.pace(math.inf)
    bench.take(*lines(*range(5)))
    for _ in range(20):
        await asyncio.sleep(0)
    assert (bench.requests(), pool.running) == (0, 0)
    pool.pace(3600.0)
    await until(lambda: bench.requests() == 1)
    pool.pace(0.001)
    await eventually(lambda: bench.requests() == 5)
    assert pool.running == 5


async def test_lines_that_wait_for_their_time_start_by_themselves() -> None:
    bench = Bench(lambda _path, _body: Hang(), limit=8)
    bench.worker.pools["a"].pace(0.2)
    bench.take(*lines(*range(5)))
    assert bench.worker.pools["a"].running < 5
    await eventually(lambda: bench.requests() == 5)


async def test_workers_that_hear_the_same_do_not_start_at_the_same_moment() -> None:
    benches = [Bench(lambda _path, _body: Hang(), limit=8) for _ in range(4)]
    for number, bench in enumerate(benches):
        bench.worker.pools["a"].pace(math.inf)
        bench.take(*lines(*range(5)))
        bench.worker.pools["a"].pace(3600.0, number / 4)
    for _ in range(20):
        await asyncio.sleep(0)
    assert [bench.requests() for bench in benches] == [1, 0, 0, 0]


@pytest.mark.parametrize("workers", [1, 4])
def test_several_workers_share_the_starts(workers: int) -> None:
    site = Site(workers)
    paces: list[float] = []
    site.worker.pool.pace = lambda gap_s, _turn: paces.append(gap_s)  # type: ignore[method-assign,assignment,misc]
    site.run(20.0, lane=10)
    assert paces[-1] == pytest.approx(workers * 0.01, rel=0.3)
    site.say(10, pool={"awaiting": 1})
    assert paces[-1] == math.inf
    site.run(0.1, lane=0)
    assert paces[-1] == 0
