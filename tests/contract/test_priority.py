"""Priorities from the upstream table at an engine that has them: the simulator's."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from streams.adapters.inference import HTTPInferenceClient
from streams.domain.upstreams import Lane, Rewrite, parse_upstreams
from streams.simulator.server import Simulator, SimulatorOptions
from tests.support.waiting import eventually

CHAT = "/v1/chat/completions"


async def _engine(simulator: Simulator) -> dict[str, Any]:
    url = simulator.base_url.removesuffix("/v1") + "/sim/requests?keys=0"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        engine: dict[str, Any] = (await response.json())["engines"]["m"]
        return engine


async def test_a_real_time_call_goes_before_batch_calls_that_wait() -> None:
    engine = {"speed": 5.0, "max_num_seqs": 1, "priority": True}
    config = {"engine": engine, "completion_tokens": "100000"}
    async with Simulator(SimulatorOptions(models=("m",), config=config)) as simulator:
        upstream = {"name": "u", "base_url": simulator.base_url, "models": ["m"], "priorities": {}}
        parsed = parse_upstreams({"upstreams": [upstream]}).upstreams["u"]
        client = HTTPInferenceClient(parsed, 10, {})
        batch, realtime = (Rewrite(parsed, lane) for lane in (Lane.BATCH, Lane.REALTIME))
        ended: list[str] = []

        async def call(name: str, rewrite: Rewrite, body: bytes) -> None:
            answer = await client.send(CHAT, rewrite.body(body, "m"))
            assert answer.status == 200
            ended.append(name)

        async def waiting(calls: int) -> None:
            async def so_many() -> bool:
                return bool((await _engine(simulator))["waiting"] == calls)

            await eventually(so_many)

        message = b'"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":%d'
        async with asyncio.TaskGroup() as calls:
            for number in range(4):
                # Each line tries to go first; one has the only slot for a while.
                line = b'{%b,"priority":-100}' % (message % (10 if number else 2000))
                calls.create_task(call(f"line {number}", batch, line))
            await waiting(3)
            calls.create_task(call("real-time", realtime, b"{%b}" % (message % 10)))
        await client.close()
        assert ended.index("real-time") == 1
