"""The simulated model server, asked by the real openai SDK as a model server would be."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from streams.simulator.server import Simulator, SimulatorOptions
from tests.support.waiting import eventually

HELLO: Any = [{"role": "user", "content": "Say hello to the world."}]
PROMPT_TOKENS = len("Say hello to the world.") // 4
COMPLETION_TOKENS = 8 + len("Say hello to the world.") % 25


@pytest.fixture
async def simulator(tmp_path: Path) -> AsyncIterator[Simulator]:
    async with Simulator(SimulatorOptions(log=tmp_path / "served.jsonl")) as running:
        yield running


@pytest.fixture
async def client(simulator: Simulator) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=simulator.base_url, api_key="any", max_retries=0, timeout=60
    ) as client:
        yield client


async def sim(simulator: Simulator, method: str, path: str, body: Any = None) -> Any:
    root = simulator.base_url.removesuffix("/v1")
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, root + path, json=body) as response,
    ):
        return await response.json()


class TestEndpoints:
    async def test_chat(self, client: openai.AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(model="m", messages=HELLO, user="line-1")
        assert answer.model == "m"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].message.content == "[line-1] " + " ".join(
            ["word"] * COMPLETION_TOKENS
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == PROMPT_TOKENS
        assert answer.usage.completion_tokens == COMPLETION_TOKENS
        assert answer.usage.total_tokens == PROMPT_TOKENS + COMPLETION_TOKENS
        assert answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens == PROMPT_TOKENS // 4

    async def test_max_tokens_and_n(self, client: openai.AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(
            model="m", messages=HELLO, max_completion_tokens=3, n=2
        )
        assert [c.finish_reason for c in answer.choices] == ["length", "length"]
        assert answer.choices[1].message.content == "word word word"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 6

    async def test_streamed_chat_is_the_same_answer(self, client: openai.AsyncOpenAI) -> None:
        whole = await client.chat.completions.create(model="m", messages=HELLO, user="a b")
        stream = await client.chat.completions.create(
            model="m",
            messages=HELLO,
            user="a b",
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage is not None
        assert chunks[-1].usage == whole.usage
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"

    async def test_tokens_are_streamed_as_they_become_ready(
        self, simulator: Simulator, client: openai.AsyncOpenAI
    ) -> None:
        simulator.fleet.configure({"token_time_s": 0.001})
        stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
        texts = [c.choices[0].delta.content async for c in stream if c.choices[0].delta.content]
        assert len(texts) == COMPLETION_TOKENS
        assert "".join(texts) == " ".join(["word"] * COMPLETION_TOKENS)

    async def test_completions(self, client: openai.AsyncOpenAI) -> None:
        answer = await client.completions.create(model="m", prompt=["one", "two"], max_tokens=2)
        assert [c.text for c in answer.choices] == ["word word"] * 2
        stream = await client.completions.create(model="m", prompt="one", max_tokens=2, stream=True)
        assert "".join([c.choices[0].text async for c in stream]) == "word word"

    async def test_embeddings(self, client: openai.AsyncOpenAI) -> None:
        packed = await client.embeddings.create(model="m", input=["one", "three"], dimensions=5)
        plain = await client.embeddings.create(
            model="m", input=["one", "three"], dimensions=5, encoding_format="float"
        )
        assert [len(d.embedding) for d in packed.data] == [5, 5]
        assert packed.data[0].embedding != packed.data[1].embedding
        for one, other in zip(packed.data, plain.data, strict=True):
            assert one.embedding == pytest.approx(other.embedding, abs=1e-5)
        assert packed.usage.total_tokens == packed.usage.prompt_tokens == 2

    async def test_responses(self, client: openai.AsyncOpenAI) -> None:
        answer = await client.responses.create(model="m", input="hello", max_output_tokens=4)
        assert answer.output_text == "word word word word"
        assert answer.usage is not None
        assert answer.usage.output_tokens == 4
        async with client.responses.stream(model="m", input="hello", max_output_tokens=4) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        assert kinds[0] == "response.created"
        assert kinds[-1] == "response.completed"
        assert final.output_text == answer.output_text
        assert final.usage == answer.usage

    async def test_models(self, client: openai.AsyncOpenAI) -> None:
        assert "sim-chat" in [m.id async for m in client.models.list()]
        assert (await client.models.retrieve("any/model")).id == "any/model"

    async def test_unknown_route_and_bad_json(self, simulator: Simulator) -> None:
        assert "error" in await sim(simulator, "GET", "/v1/nope")
        assert "error" in await sim(simulator, "POST", "/v1/chat/completions", ["x"])

    async def test_only_named_models_and_keys_are_served(self) -> None:
        options = SimulatorOptions(models=("good",), api_key="secret")
        async with (
            Simulator(options) as simulator,
            openai.AsyncOpenAI(base_url=simulator.base_url, api_key="secret") as client,
        ):
            await client.chat.completions.create(model="good", messages=HELLO)
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(model="other", messages=HELLO)
            with pytest.raises(openai.AuthenticationError):
                await client.with_options(api_key="no").chat.completions.create(
                    model="good", messages=HELLO
                )


class TestFaults:
    @pytest.mark.parametrize(
        ("step", "error"),
        [
            ("400", openai.BadRequestError),
            ("429:3", openai.RateLimitError),
            ("503", openai.InternalServerError),
            ("html", openai.InternalServerError),
            ("cut", openai.APIConnectionError),
            ("cut_mid", openai.APIConnectionError),
            ("garbage", ValueError),
            ("truncated", ValueError),
            ("empty", ValueError),
        ],
    )
    async def test_a_fault_reaches_the_caller_once_and_then_it_succeeds(
        self, client: openai.AsyncOpenAI, step: str, error: type[Exception]
    ) -> None:
        metadata = {"sim": f"{step},ok"}
        with pytest.raises(error) as caught:
            await client.chat.completions.create(
                model="m", messages=HELLO, user="k", metadata=metadata
            )
        if isinstance(caught.value, openai.RateLimitError):
            assert caught.value.response.headers["retry-after"] == "3"
        answer = await client.chat.completions.create(
            model="m", messages=HELLO, user="k", metadata=metadata
        )
        assert answer.usage is not None

    @pytest.mark.parametrize("step", ["drip", "huge"])
    async def test_slow_and_huge_answers_are_right_answers(
        self, simulator: Simulator, client: openai.AsyncOpenAI, step: str
    ) -> None:
        simulator.fleet.configure({"drip_s": 0.05, "huge_bytes": 3_000_000})
        answer = await client.chat.completions.create(
            model="m", messages=HELLO, metadata={"sim": step}
        )
        assert answer.usage is not None
        content = answer.choices[0].message.content
        assert content is not None
        assert len(content) > (3_000_000 if step == "huge" else 10)
        vectors = await client.embeddings.create(
            model="m",
            input="x",
            encoding_format="float",
            extra_body={"metadata": {"sim": step}},
        )
        assert len(vectors.data[0].embedding) == 8

    @pytest.mark.parametrize("step", ["no_usage", "absurd_usage"])
    async def test_odd_usage_is_told_as_none_in_the_log(
        self, client: openai.AsyncOpenAI, tmp_path: Path, step: str
    ) -> None:
        answer = await client.chat.completions.create(
            model="m", messages=HELLO, metadata={"sim": step}
        )
        assert answer.usage is None or answer.usage.prompt_tokens == -1
        line = json.loads((tmp_path / "served.jsonl").read_text())
        assert line["ok"]
        assert "usage" not in line

    async def test_a_stream_can_break_in_the_middle(self, client: openai.AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(
            model="m", messages=HELLO, stream=True, metadata={"sim": "cut_mid"}
        )
        with pytest.raises(openai.APIConnectionError):
            async for _ in stream:
                pass

    async def test_a_hang_ends_with_the_caller(
        self, simulator: Simulator, client: openai.AsyncOpenAI
    ) -> None:
        with pytest.raises(openai.APITimeoutError):
            await client.with_options(timeout=2).chat.completions.create(
                model="m", messages=HELLO, user="k", metadata={"sim": "hang"}
            )

        async def statuses() -> bool:
            report = await sim(simulator, "GET", "/sim/requests")
            return bool(report["keys"]["k"]["statuses"] == {"gone": 1})

        await eventually(statuses)


class TestSteering:
    async def test_counts_are_those_of_what_was_served(
        self, simulator: Simulator, client: openai.AsyncOpenAI, tmp_path: Path
    ) -> None:
        tokens = 0
        for key, times in (("a", 1), ("b", 3)):
            for _ in range(times):
                answer = await client.chat.completions.create(model="m", messages=HELLO, user=key)
                assert answer.usage is not None
                tokens += answer.usage.total_tokens
        report = await sim(simulator, "GET", "/sim/requests")
        assert {k: (c["attempts"], c["ok"]) for k, c in report["keys"].items()} == {
            "a": (1, 1),
            "b": (3, 3),
        }
        totals = report["totals"]
        assert (totals["attempts"], totals["ok"], totals["by_model"]) == (4, 4, {"m": 4})
        assert totals["prompt_tokens"] + totals["completion_tokens"] == tokens
        log = [json.loads(line) for line in (tmp_path / "served.jsonl").read_text().splitlines()]
        assert [(line["key"], line["attempt"]) for line in log] == [
            ("a", 1),
            ("b", 1),
            ("b", 2),
            ("b", 3),
        ]
        assert sum(line["usage"]["total_tokens"] for line in log) == tokens
        repeated = await sim(simulator, "GET", "/sim/requests?at_least=2")
        assert list(repeated["keys"]) == ["b"]
        await sim(simulator, "POST", "/sim/reset")
        assert (await sim(simulator, "GET", "/sim/requests"))["totals"]["attempts"] == 0

    async def test_bodies_are_recorded_as_they_came_when_asked_for(self, tmp_path: Path) -> None:
        path = tmp_path / "bodies.jsonl"
        script = {"sim": "503,ok"}
        text = '{"model": "m",  "messages": [{"content": "caf\u00e9 \\n {{x}} \U0001f600"}]}'
        async with (
            Simulator(SimulatorOptions(bodies=path, api_key="secret")) as simulator,
            openai.AsyncOpenAI(
                base_url=simulator.base_url, api_key="secret", max_retries=1
            ) as client,
            aiohttp.ClientSession(headers={"Authorization": "Bearer secret"}) as session,
        ):
            await client.responses.create(model="m", input="hi", user="k", metadata=script)
            for data in (text.encode(), b"not \xff JSON"):
                await (
                    await session.post(f"{simulator.base_url}/chat/completions", data=data)
                ).read()
            await client.models.list()
            lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [(line["number"], line["key"], line["attempt"], line["path"]) for line in lines] == [
            (1, "k", 1, "/v1/responses"),
            (2, "k", 2, "/v1/responses"),
            (3, None, 1, "/v1/chat/completions"),
            (None, None, None, "/v1/chat/completions"),
        ]
        assert json.loads(lines[0]["body"])["input"] == "hi"
        assert lines[2]["body"] == text
        assert lines[3]["body"] == "not \\xff JSON"

    async def test_the_request_log_has_no_bodies(
        self, client: openai.AsyncOpenAI, tmp_path: Path
    ) -> None:
        secret = "only between us"
        await client.responses.create(model="m", input=secret)
        logged = (tmp_path / "served.jsonl").read_text()
        assert '"/v1/responses"' in logged
        assert secret not in logged

    async def test_one_model_hangs_while_another_answers(
        self, simulator: Simulator, client: openai.AsyncOpenAI
    ) -> None:
        await sim(simulator, "POST", "/sim/config", {"models": {"bad": {"hang": True}}})
        stuck = asyncio.ensure_future(client.chat.completions.create(model="bad", messages=HELLO))
        await client.chat.completions.create(model="good", messages=HELLO)
        assert not stuck.done()
        await sim(simulator, "POST", "/sim/config", {"models": {"bad": {"hang": False}}})
        assert (await stuck).model == "bad"

    async def test_slots_bound_how_many_run_at_once(
        self, simulator: Simulator, client: openai.AsyncOpenAI
    ) -> None:
        simulator.fleet.configure({"slots": 2, "queue": 1, "hang": True})
        calls = [
            asyncio.ensure_future(client.chat.completions.create(model="m", messages=HELLO))
            for _ in range(3)
        ]
        await eventually(lambda: simulator.fleet.gauges()["*"] == {"running": 2, "waiting": 1})
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model="m", messages=HELLO)
        simulator.fleet.configure({"hang": False})
        assert len(await asyncio.gather(*calls)) == 3

    async def test_a_wrong_option_is_refused_by_name(self, simulator: Simulator) -> None:
        answer = await sim(simulator, "POST", "/sim/config", {"latencyy": "1"})
        assert "latencyy" in answer["error"]["message"]
        assert (await sim(simulator, "GET", "/sim/config"))["latency"] == "0"

    async def test_the_same_seed_gives_the_same_run(self) -> None:
        async def run() -> dict[str, Any]:
            config = {"seed": 5, "errors": {"500": 0.3}, "faults": {"cut": 0.2}, "max_failures": 2}
            async with (
                Simulator(SimulatorOptions(config=config)) as simulator,
                openai.AsyncOpenAI(
                    base_url=simulator.base_url, api_key="x", max_retries=0
                ) as client,
            ):
                for key in (f"k{n}" for n in range(20)):
                    await ask_until_answered(client, key)
                keys = (await sim(simulator, "GET", "/sim/requests"))["keys"]
                return {key: count["statuses"] for key, count in keys.items()}

        first = await run()
        assert any(len(statuses) > 1 for statuses in first.values())
        assert first == await run()


async def ask_until_answered(client: openai.AsyncOpenAI, key: str) -> None:
    for _ in range(3):
        with contextlib.suppress(openai.APIConnectionError, openai.InternalServerError):
            await client.chat.completions.create(model="m", messages=HELLO, user=key)
            return
    raise AssertionError("failed more often than max_failures")


class TestEngine:
    """With `--engine` a model of continuous batching decides when tokens come."""

    @pytest.fixture
    async def engine(self) -> AsyncIterator[Simulator]:
        config = {"engine": {}, "completion_tokens": "100000"}
        async with Simulator(SimulatorOptions(models=("gpt",), config=config)) as running:
            yield running

    async def test_streams_and_whole_answers_share_its_steps(self, engine: Simulator) -> None:
        async with openai.AsyncOpenAI(base_url=engine.base_url, api_key="any") as client:
            stream = await client.chat.completions.create(
                model="gpt", messages=HELLO, max_tokens=200, stream=True
            )
            whole = await client.chat.completions.create(
                model="gpt", messages=HELLO, max_tokens=200, extra_body={"priority": 3}
            )
            pieces = [c.choices[0].delta.content or "" async for c in stream if c.choices]
        assert "".join(pieces) == whole.choices[0].message.content
        assert len([piece for piece in pieces if piece]) > 5

    async def test_a_client_that_hangs_up_leaves_the_engine(self, engine: Simulator) -> None:
        async with openai.AsyncOpenAI(base_url=engine.base_url, api_key="any") as client:
            stream = await client.chat.completions.create(
                model="gpt", messages=HELLO, max_tokens=50_000, stream=True
            )
            await anext(aiter(stream))
            assert await _running(engine) == 1
            await stream.close()

        async def left() -> bool:
            return await _running(engine) == 0

        await eventually(left)

    async def test_the_metrics_page_is_one_that_prometheus_reads(self, engine: Simulator) -> None:
        url = engine.base_url.removesuffix("/v1") + "/metrics"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            assert response.content_type == "text/plain"
            page = await response.text()
        assert 'vllm:num_requests_waiting{model_name="gpt"} 0.0' in page.splitlines()


async def _running(simulator: Simulator) -> int:
    report = await sim(simulator, "GET", "/sim/requests?keys=0")
    return int(report["engines"]["gpt"]["running"])
