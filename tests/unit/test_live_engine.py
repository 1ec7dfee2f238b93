"""The engine's model behind the live server: who gets tokens when, and what it shows."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from streams.simulator.behaviour import RefusedError
from streams.simulator.call import BadRequestError, Call, Endpoint, parse_call
from streams.simulator.conduct import Conduct, ConductError, EngineConduct, conduct_from
from streams.simulator.engine import Engine, EngineRequest, EngineSpec, Lane
from streams.simulator.fleet import Fleet
from streams.simulator.live_engine import EngineBehaviour, spec_of
from streams.simulator.metrics_page import metrics_page
from tests.support.waiting import eventually


def a_call(tokens: int = 40, *, chars: int = 400, stream: bool = True, priority: int = 0) -> Call:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "x" * chars}],
        "stream": stream,
        "max_tokens": tokens,
        "priority": priority,
    }
    call = parse_call(Endpoint.CHAT, json.dumps(body).encode())
    call.count_tokens(100_000, 100_000)
    return call


def a_behaviour(**options: Any) -> EngineBehaviour:
    engine = EngineConduct(**{"speed": 50.0, **options})
    return EngineBehaviour(Conduct(engine=engine), engine)


async def tokens_of(behaviour: EngineBehaviour, call: Call) -> list[int]:
    async with aclosing(behaviour.tokens(call)) as tokens:
        return [ready async for ready in tokens]


def test_without_options_it_is_the_calibrated_engine() -> None:
    assert spec_of(EngineConduct()) == replace(EngineSpec(), front_s=0.0)


async def test_a_stream_gets_every_token() -> None:
    assert sum(await tokens_of(a_behaviour(), a_call(40))) == 40


async def test_a_stream_gets_its_tokens_step_by_step_and_the_hidden_ones_with_the_first() -> None:
    async with aclosing(a_behaviour(speed=1.0).tokens(a_call(50_000))) as tokens:
        pieces = [await anext(tokens) for _ in range(6)]
    assert pieces[0] > EngineSpec().hidden_tokens
    assert min(pieces) > 0


async def test_a_whole_answer_wakes_its_caller_once() -> None:
    assert await tokens_of(a_behaviour(), a_call(40, stream=False)) == [40]


async def test_an_embedding_ends_with_its_prompt() -> None:
    body = json.dumps({"model": "m", "input": "some text"}).encode()
    call = parse_call(Endpoint.EMBEDDINGS, body)
    call.count_tokens(8, 8)
    assert await tokens_of(a_behaviour(), call) == []


async def test_a_caller_that_leaves_frees_its_slot_and_memory_at_once() -> None:
    behaviour = a_behaviour(speed=1.0)
    tokens = behaviour.tokens(a_call(10_000))
    await anext(tokens)
    assert behaviour.gauges()["running"] == 1
    await tokens.aclose()
    assert behaviour.gauges() == {"running": 0, "waiting": 0, "kv_cache_usage": 0.0}


@pytest.mark.parametrize(("priority", "order"), [(True, [2, 1]), (False, [1, 2])])
async def test_priorities_count_where_the_engine_has_them(priority: bool, order: list[int]) -> None:
    clock = [0.0]
    engine = EngineConduct(max_num_seqs=1, priority=priority)
    behaviour = EngineBehaviour(Conduct(engine=engine), engine, lambda: clock[0])
    ended: list[int] = []

    async def run(name: int, call: Call) -> None:
        await tokens_of(behaviour, call)
        ended.append(name)

    async with asyncio.TaskGroup() as calls:
        calls.create_task(run(0, a_call(200)))
        await eventually(lambda: behaviour.gauges()["running"] == 1)
        calls.create_task(run(1, a_call(20, priority=5)))
        await eventually(lambda: behaviour.gauges()["waiting"] == 1)
        calls.create_task(run(2, a_call(20, priority=-5)))
        await eventually(lambda: behaviour.gauges()["waiting"] == 2)
        clock[0] = 1000.0
    assert ended == [0, *order]


async def test_a_prompt_that_the_cache_can_not_hold_is_refused() -> None:
    with pytest.raises(BadRequestError, match="maximum context length is 100 tokens"):
        await tokens_of(a_behaviour(kv_cache_tokens=100), a_call(60, chars=400))


async def test_no_more_calls_wait_than_the_queue_holds() -> None:
    engine = EngineConduct(max_num_seqs=1)
    behaviour = EngineBehaviour(Conduct(engine=engine, queue=1), engine)
    async with asyncio.TaskGroup() as calls:
        running = [calls.create_task(tokens_of(behaviour, a_call(5000))) for _ in range(2)]
        await eventually(
            lambda: behaviour.gauges()["running"] == behaviour.gauges()["waiting"] == 1
        )
        with pytest.raises(RefusedError):
            await tokens_of(behaviour, a_call(5))
        for task in running:
            task.cancel()


async def test_a_server_that_was_held_up_catches_up_without_drift() -> None:
    clock = [0.0]
    engine = EngineConduct()
    behaviour = EngineBehaviour(Conduct(engine=engine), engine, lambda: clock[0])
    answer = asyncio.create_task(tokens_of(behaviour, a_call(300)))
    await eventually(lambda: behaviour.gauges()["running"] == 1)
    clock[0] = 1000.0
    assert sum(await answer) == 300
    model = Engine(spec_of(engine))
    model.submit(EngineRequest(Lane.REALTIME, 100, 300), 0.0)
    gaps = [s.end_s - s.start_s for s in model.advance(1000.0) for _ in range(sum(s.gaps))]
    assert behaviour.counts.gaps.sum == pytest.approx(sum(gaps))
    assert behaviour.counts.gaps.count == len(gaps)


async def test_the_metrics_page_tells_what_the_engine_did() -> None:
    fleet = Fleet(("gpt",), {"engine": {"speed": 50.0}})
    behaviour = fleet.engines()["gpt"].behaviour
    assert isinstance(behaviour, EngineBehaviour)
    await tokens_of(behaviour, a_call(40))
    families = text_string_to_metric_families(metrics_page(fleet).decode())
    shown = {
        (sample.name, sample.labels.get("le", "")): sample.value
        for family in families
        for sample in family.samples
        if sample.labels["model_name"] == "gpt"
    }
    assert shown["vllm:num_requests_running", ""] == 0
    assert shown["vllm:num_requests_waiting", ""] == 0
    assert shown["vllm:kv_cache_usage_perc", ""] == 0
    assert shown["vllm:prompt_tokens_total", ""] == 100
    assert shown["vllm:generation_tokens_total", ""] == 40
    assert shown["vllm:request_success_total", ""] == 1
    assert shown["vllm:time_to_first_token_seconds_count", ""] == 1
    assert shown["vllm:inter_token_latency_seconds_count", ""] == 36
    assert shown["vllm:inter_token_latency_seconds_bucket", "+Inf"] == 36
    assert shown["vllm:inter_token_latency_seconds_sum", ""] == pytest.approx(36 * 0.0071, rel=0.1)


def test_a_server_without_an_engine_shows_how_many_run_and_wait() -> None:
    page = metrics_page(Fleet((), {})).decode()
    assert 'vllm:num_requests_running{model_name="*"} 0.0' in page
    assert "inter_token" not in page


def test_an_engine_and_a_latency_exclude_each_other() -> None:
    with pytest.raises(ConductError, match="engine"):
        conduct_from({"engine": {}, "latency": "1"})
    with pytest.raises(ConductError, match="max_num_sequences"):
        conduct_from({"engine": {"max_num_sequences": 3}})
