"""The engine model: what a step does, who waits, who is preempted, and that it is calibrated."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.simulator.engine import Engine, EngineRequest, EngineSpec, Lane, Step
from streams.simulator.engine_lengths import NAIVE_CALLS
from tests.bench.yield_policies import StaticCap
from tests.bench.yield_traces import steady
from tests.bench.yield_world import Samples, World, percentile, weighted_percentile

SIMPLE = EngineSpec(
    step_s=1.0,
    per_decode_s=0.1,
    per_prefill_token_s=0.01,
    front_s=0.5,
    hidden_tokens=0,
    max_num_seqs=2,
    max_num_batched_tokens=100,
    kv_cache_tokens=1000,
)


def request(prompt: int, output: int, priority: int = 0) -> EngineRequest:
    return EngineRequest(Lane.REALTIME, prompt, output, priority)


def drain(engine: Engine) -> list[Step]:
    steps = []
    while engine.next_at_s is not None:
        steps.append(engine.end_step())
    return steps


def test_a_step_costs_a_plus_b_per_decode_plus_c_per_prefill_token() -> None:
    engine = Engine(SIMPLE)
    one = request(50, 3)
    engine.submit(one, 0.0)
    steps = drain(engine)
    assert [step.end_s - step.start_s for step in steps] == pytest.approx([1.5, 1.1, 1.1])
    assert one.first_at_s == pytest.approx(1.5 + 0.5)
    assert one.finished_at_s == pytest.approx(3.7 + 0.5)
    assert [step.gaps for step in steps] == [(0, 0), (1, 0), (1, 0)]
    assert engine.running == 0
    assert engine.kv_cache_usage == 0


def test_a_request_that_comes_in_the_middle_of_a_step_joins_the_next() -> None:
    engine = Engine(SIMPLE)
    engine.submit(request(50, 5), 0.0)
    late = request(50, 1)
    engine.submit(late, 0.1)
    assert (engine.running, engine.waiting) == (1, 1)
    engine.advance(1.5)
    assert (engine.running, engine.waiting) == (2, 0)
    engine.advance(3.2)
    assert late.first_at_s == pytest.approx(1.5 + 1.0 + 0.1 + 0.5 + 0.5)


def test_a_long_prompt_is_prefilled_in_chunks_beside_the_decodes() -> None:
    engine = Engine(SIMPLE)
    engine.submit(request(10, 10), 0.0)
    engine.end_step()
    engine.submit(request(250, 2), 1.2)
    chunks = [step.prefill_tokens for step in drain(engine)]
    assert chunks[:5] == [0, 99, 99, 52, 0]


def test_hidden_tokens_delay_the_first_visible_one() -> None:
    engine = Engine(EngineSpec(step_s=1.0, front_s=0.0, hidden_tokens=3))
    answer, word = request(1, 10), request(1, 2)
    engine.submit(answer, 0.0)
    engine.submit(word, 0.0)
    steps = drain(engine)
    assert answer.first_at_s == steps[3].end_s
    # An answer that is shorter than what is hidden shows its last token.
    assert word.first_at_s == word.finished_at_s
    assert sum(step.gaps[Lane.REALTIME] for step in steps) == 6


def test_without_a_free_slot_everybody_waits_and_the_urgent_go_first() -> None:
    for by_priority in (False, True):
        engine = Engine(
            EngineSpec(step_s=1.0, max_num_seqs=1, hidden_tokens=0, priority=by_priority)
        )
        running, lazy, urgent = request(1, 5, 1), request(1, 1, 1), request(1, 1, 0)
        for each in (running, lazy, urgent):
            engine.submit(each, 0.0)
        drain(engine)
        assert running.preemptions == 0, "priority does not preempt for slots"
        assert urgent.first_at_s is not None
        assert lazy.first_at_s is not None
        assert (urgent.first_at_s < lazy.first_at_s) is by_priority


def test_full_memory_preempts_the_least_urgent_which_computes_its_tokens_again() -> None:
    engine = Engine(
        EngineSpec(
            step_s=1.0,
            hidden_tokens=0,
            max_num_seqs=8,
            kv_cache_tokens=100,
            priority=True,
        )
    )
    batch = EngineRequest(Lane.BATCH, 40, 30, priority=1)
    urgent = EngineRequest(Lane.REALTIME, 40, 30, priority=0)
    engine.submit(batch, 0.0)
    engine.end_step()
    engine.submit(urgent, 1.0)
    steps = drain(engine)
    assert (batch.preemptions, urgent.preemptions) == (1, 0)
    assert sum(sum(step.made) for step in steps) + 1 == 60
    assert urgent.finished_at_s is not None
    assert batch.finished_at_s is not None
    assert urgent.finished_at_s < batch.finished_at_s
    assert engine.kv_cache_usage == 0


def test_the_long_gap_of_a_preempted_request_is_reported() -> None:
    spec = EngineSpec(step_s=1.0, hidden_tokens=0, kv_cache_tokens=100)
    engine = Engine(spec)
    engine.submit(request(40, 40), 0.0)
    engine.submit(request(40, 40), 0.0)
    late = [gap for step in drain(engine) for gap in step.late]
    assert max(late) > 10


def test_an_aborted_request_frees_its_place_at_once_and_never_answers() -> None:
    engine = Engine(SIMPLE)
    decoding, prefilling, waiting = request(10, 9), request(90, 9), request(10, 9)
    engine.submit(decoding, 0.0)
    engine.end_step()
    engine.submit(prefilling, 1.1)
    engine.end_step()
    engine.submit(waiting, 2.3)
    assert (engine.running, engine.waiting) == (2, 1)
    for each in (waiting, prefilling, decoding):
        assert engine.abort(each)
        assert not engine.abort(each)
    assert (engine.running, engine.waiting, engine.kv_cache_usage) == (0, 0, 0)
    finished = [each for step in drain(engine) for each in step.finished]
    assert finished == []


def test_an_idle_engine_has_no_step_to_end() -> None:
    with pytest.raises(RuntimeError, match="idle"):
        Engine(SIMPLE).end_step()


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    priority=st.booleans(),
    kv=st.integers(700, 3000),
    aborts=st.booleans(),
)
def test_nothing_is_lost_whatever_comes_and_goes(
    seed: int, priority: bool, kv: int, aborts: bool
) -> None:
    random_ = random.Random(seed)
    spec = EngineSpec(
        max_num_seqs=8, max_num_batched_tokens=64, kv_cache_tokens=kv, priority=priority
    )
    engine = Engine(spec)
    sent: list[EngineRequest] = []
    aborted: list[EngineRequest] = []
    steps: list[Step] = []
    now = 0.0
    for _ in range(60):
        now += random_.expovariate(20)
        steps += engine.advance(now)
        one = EngineRequest(
            Lane(random_.randrange(2)), random_.randint(1, 300), random_.randint(1, 100), 1
        )
        sent.append(one)
        engine.submit(one, now)
        if aborts and random_.random() < 0.3:
            victim = random_.choice(sent)
            if engine.abort(victim):
                aborted.append(victim)
        assert engine.running <= spec.max_num_seqs
        assert 0 <= engine.kv_cache_usage <= 1
    steps += drain(engine)
    finished = [each for step in steps for each in step.finished]
    assert len(finished) == len(set(finished)) == len(sent) - len(aborted)
    assert not set(finished) & set(aborted)
    assert engine.kv_cache_usage == 0
    if not aborts:
        made = sum(sum(step.made) for step in steps)
        assert made == sum(each.output_tokens for each in sent)
    assert all(step.end_s > step.start_s for step in steps)
    for each in finished:
        assert each.first_at_s is not None
        assert each.finished_at_s is not None
        assert each.submitted_at_s < each.first_at_s <= each.finished_at_s


def _run(calls: int, seed: int) -> Samples:
    return World(steady(15, 300, seed), EngineSpec()).run(StaticCap(calls))


@pytest.mark.parametrize(
    ("calls", "p50_ms", "p95_ms", "gap_p95_ms"),
    [pytest.param(0, 72, 92, 24, id="alone"), pytest.param(NAIVE_CALLS, 278, 597, 66, id="naive")],
)
def test_the_engine_is_calibrated_to_the_measured_one(
    calls: int, p50_ms: float, p95_ms: float, gap_p95_ms: float
) -> None:
    runs = [_run(calls, seed) for seed in range(1, 6)]
    # The first seconds, when the engine fills up, are no part of a measurement.
    ttfts = [
        ttft for run in runs for at, ttft in zip(run.arrived, run.ttfts, strict=True) if at > 20
    ]
    gaps = [gap for run in runs for gap in run.gaps]
    assert percentile(ttfts, 0.5) * 1e3 == pytest.approx(p50_ms, rel=0.15)
    assert percentile(ttfts, 0.95) * 1e3 == pytest.approx(p95_ms, rel=0.15)
    assert weighted_percentile(gaps, 0.95) * 1e3 == pytest.approx(gap_p95_ms, rel=0.15)


def test_the_same_seed_gives_the_same_run() -> None:
    first, second = _run(32, 7), _run(32, 7)
    assert first == second
    assert first != _run(32, 8)
