"""The real-time lane from end to end: processes, Kafka, the official SDK, kill -9."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from openai import APIConnectionError, APIError, APIStatusError, AsyncOpenAI, OpenAI

from schemas.records import LineUsage, UsageRecorded
from schemas.topics import REALTIME_REQUEST, USAGE_RECORDED
from streams.domain.billing.prices.book import REALTIME
from streams.kafka.reader import TopicReader
from streams.settings import Settings
from tests.support.lines import all_committed
from tests.support.stack import Simulator, Stack, running, start_simulator, start_stack
from tests.support.waiting import deadline_in, eventually

pytestmark = pytest.mark.kafka

TOKENS = 40
#: Far longer than any worker or gateway takes to notice that another is gone.
_NOTICED_S = 30.0
#: Enough for a minute and more, in which a process that was killed is back.
_RETRIES = 20


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    simulator = start_simulator(
        *("--latency", "0.05", "--token-time-s", "0.01", "--completion-tokens", str(TOKENS)),
        *("--model", "slow", "--model-config", 'slow={"token_time_s": 1.0}'),
        *("--model", "hangs", "--model-config", 'hangs={"hang": true}'),
    )
    with running(simulator):
        yield simulator


@pytest.fixture(scope="module")
def stack(
    simulator: Simulator, kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    stack = start_stack(
        tmp_path_factory.mktemp("realtime"),
        *("--kafka", kafka_bootstrap, "--upstream", simulator.base_url),
        env={"BACKHAUL_TOPIC_PREFIX": f"rt{uuid4().hex[:10]}"},
    )
    with running(stack):
        yield stack


@pytest.fixture
def client(stack: Stack) -> Iterator[OpenAI]:
    with OpenAI(base_url=stack.base_url, api_key=stack.api_key, max_retries=0) as client:
        yield client


@pytest.fixture
def calm(client: OpenAI) -> OpenAI:
    """A client as people use it: the SDK tries again while no worker is there, or a slow one."""
    return client.with_options(max_retries=_RETRIES)


@pytest.fixture
async def patient(stack: Stack) -> Any:
    """The same, asynchronous."""
    async with AsyncOpenAI(
        base_url=stack.base_url, api_key=stack.api_key, max_retries=_RETRIES
    ) as client:
        yield client


def _settings(stack: Stack) -> Settings:
    prefix = stack.env["BACKHAUL_TOPIC_PREFIX"]
    return Settings(kafka=stack.info["kafka"], topic_prefix=prefix)


def _messages(text: str = "Tell me of the sea.") -> Any:
    return [{"role": "user", "content": text}]


def _ends(simulator: Simulator, key: str) -> dict[str, int]:
    """How the calls of a request key ended at the upstream."""
    met: dict[str, Any] = simulator.requests()["keys"].get(key, {})
    ends: dict[str, int] = met.get("statuses", {})
    return ends


def _runs(simulator: Simulator, key: str) -> bool:
    """Whether a call of a request key is at the upstream now."""
    met: dict[str, Any] = simulator.requests()["keys"].get(key, {})
    return bool(met.get("open"))


async def test_each_request_is_billed_once_streamed_or_not(stack: Stack, patient: Any) -> None:
    """With the tokens that the upstream told, also where the client didn't ask for them."""
    reader = TopicReader(_settings(stack), [USAGE_RECORDED])
    await reader.start("end")
    before_ms = time.time_ns() // 1_000_000
    for stream in (False, True, True):
        answer = await patient.chat.completions.create(
            model="sim", messages=_messages(), stream=stream
        )
        if stream:
            assert [part async for part in answer if not part.choices] == []
    lines: list[LineUsage] = []

    async def billed() -> bool:
        for read in await reader.poll():
            if isinstance(read.record, UsageRecorded) and read.record.at_ms >= before_ms:
                assert read.record.completion_window == REALTIME
                lines.extend(read.record.lines)
        return len(lines) >= 3

    await eventually(billed, 20)
    await reader.stop()
    assert [(line.usage.output_tokens, line.usage_flag) for line in lines] == [(TOKENS, "")] * 3
    assert all(line.usage.input_tokens for line in lines)


def test_every_endpoint_answers_whole_and_as_a_stream(calm: OpenAI) -> None:
    chat = calm.chat.completions.create(model="sim", messages=_messages())
    assert chat.usage
    assert chat.usage.completion_tokens == TOKENS
    words = [
        part.choices[0].delta.content or ""
        for part in calm.chat.completions.create(
            model="sim", messages=_messages(), stream=True, stream_options={"include_usage": True}
        )
        if part.choices
    ]
    assert "".join(words) == chat.choices[0].message.content
    text = calm.completions.create(model="sim", prompt="x").choices[0].text
    parts = calm.completions.create(model="sim", prompt="x", stream=True)
    assert "".join(part.choices[0].text for part in parts if part.choices) == text
    assert len(calm.embeddings.create(model="sim", input=["a", "b"]).data) == 2
    response = calm.responses.create(model="sim", input="x")
    with calm.responses.stream(model="sim", input="x") as events:
        assert events.get_final_response().output_text == response.output_text


def test_many_answers_at_once_are_each_ones_own(stack: Stack) -> None:
    async def ask() -> None:
        gate = asyncio.Semaphore(40)
        async with AsyncOpenAI(
            base_url=stack.base_url, api_key=stack.api_key, max_retries=_RETRIES
        ) as client:

            async def one(number: int) -> None:
                async with gate:
                    # The answer's usage tells how long this request was.
                    answer = await client.chat.completions.create(
                        model="sim", messages=_messages("x" * 4 * (number + 1)), max_tokens=1
                    )
                assert answer.usage
                assert answer.usage.prompt_tokens == number + 1

            await asyncio.gather(*(one(n) for n in range(300)))

    asyncio.run(ask())


def test_a_stored_prompt_is_rendered_in_real_time(client: OpenAI, simulator: Simulator) -> None:
    client.post(
        "/prompts",
        cast_to=object,
        body={
            "slug": "greet",
            "messages": [{"role": "user", "content": "{% if name %}Hello {{ name }}{% endif %}"}],
            "model_config": {"model": "sim"},
        },
    )
    client.post("/prompts/greet/publish", cast_to=object, body={"version": 1})
    ours: dict[str, Any] = {"prompt_slug": "greet", "variables": {"name": "world"}}
    plain = client.post("/chat/completions", cast_to=object, body=ours)
    assert plain["usage"]["prompt_tokens"] == len("Hello world") // 4  # type: ignore[index]
    form: Any = {"id": "greet", "variables": {"name": "world"}}
    assert client.responses.create(model="sim", prompt=form).usage
    for body, param in (
        ({"prompt_slug": "nobody's"}, "prompt_slug"),
        ({"prompt_slug": "greet", "variables": {}}, "variables.name"),
        ({"prompt_slug": "greet", "prompt_version": 7, "variables": {}}, "prompt_version"),
        ({"prompt_slug": "greet", "messages": []}, "messages"),
    ):
        with pytest.raises(APIStatusError) as caught:
            client.post("/chat/completions", cast_to=object, body=body)
        assert (caught.value.status_code, caught.value.param) == (400, param)


async def test_a_client_that_goes_away_ends_the_call_at_the_upstream(
    patient: AsyncOpenAI, simulator: Simulator
) -> None:
    asking = asyncio.create_task(
        patient.chat.completions.create(model="hangs", messages=_messages(), user="leaves")
    )
    stream = await patient.chat.completions.create(
        model="slow", messages=_messages(), user="leaves-a-stream", stream=True
    )
    await anext(aiter(stream))
    await eventually(lambda: _runs(simulator, "leaves"), 15.0)
    asking.cancel()
    await stream.close()
    await eventually(lambda: _ends(simulator, "leaves") == {"gone": 1}, 15.0)
    await eventually(lambda: _ends(simulator, "leaves-a-stream") == {"gone": 1}, 15.0)


def test_a_rate_limit_passes_with_its_retry_after(client: OpenAI) -> None:
    with pytest.raises(APIStatusError) as caught:
        client.chat.completions.create(
            model="sim", messages=_messages(), metadata={"key": "limited", "sim": "429:3"}
        )
    assert caught.value.status_code == 429
    assert caught.value.response.headers["Retry-After"] == "3"


@pytest.mark.parametrize(
    ("step", "status"), [("cut", 503), ("garbage", 502), ("html", 502), ("truncated", 502)]
)
def test_an_upstream_that_fails_is_an_error_and_never_a_hang(
    client: OpenAI, step: str, status: int
) -> None:
    steps = ",".join([step] * 4)
    with pytest.raises(APIStatusError) as caught:
        client.chat.completions.create(
            model="sim", messages=_messages(), metadata={"key": f"bad-{step}", "sim": steps}
        )
    assert caught.value.status_code == status


def test_a_stream_that_the_upstream_cuts_ends_with_an_error(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="sim",
        messages=_messages(),
        metadata={"key": "cut-stream", "sim": "cut_mid"},
        stream=True,
    )
    with pytest.raises(APIError, match="broke off"):
        list(stream)


def test_a_client_that_does_not_read_harms_no_other(stack: Stack, calm: OpenAI) -> None:
    with socket.create_connection(("127.0.0.1", int(stack.base_url.split(":")[2][:-3]))) as lazy:
        body = b'{"model": "slow", "messages": [{"role": "user", "content": "x"}], "stream": true}'
        lazy.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (stack.api_key.encode(), len(body), body)
        )
        assert calm.chat.completions.create(model="sim", messages=_messages()).usage


async def test_a_killed_workers_clients_get_an_error_and_the_next_ones_an_answer(
    stack: Stack, patient: AsyncOpenAI, simulator: Simulator
) -> None:
    once = patient.with_options(max_retries=0)
    stream = await once.chat.completions.create(
        model="slow", messages=_messages(), user="killed", stream=True
    )
    parts = aiter(stream)
    await anext(parts)
    waiting = asyncio.create_task(
        once.chat.completions.create(model="hangs", messages=_messages(), user="killed-too")
    )
    await eventually(lambda: _runs(simulator, "killed-too"), 15.0)
    # Killed before, the worker that comes after may take it anew, and it would hang there.
    await all_committed(_settings(stack), "realtime-worker", REALTIME_REQUEST)
    stack.kill("realtime-worker")
    with pytest.raises(APIError, match="is gone"):
        async for _ in parts:
            pass
    with pytest.raises(APIStatusError) as caught:
        await waiting
    assert (caught.value.status_code, caught.value.code) == (503, "worker_lost")
    assert (await patient.chat.completions.create(model="sim", messages=_messages())).usage


async def test_a_killed_gateway_leaves_no_call_running(
    stack: Stack, patient: AsyncOpenAI, simulator: Simulator
) -> None:
    once = patient.with_options(max_retries=0)
    asking = asyncio.create_task(
        once.chat.completions.create(model="hangs", messages=_messages(), user="orphan")
    )
    await eventually(lambda: _runs(simulator, "orphan"), 15.0)
    stack.kill("gateway")
    with pytest.raises(APIConnectionError):
        await asking
    # The gateway that comes after says so.
    await eventually(lambda: _ends(simulator, "orphan") == {"gone": 1}, _NOTICED_S)
    assert (await patient.chat.completions.create(model="sim", messages=_messages())).usage


async def test_under_load_and_kills_every_client_gets_an_answer_or_an_error(
    stack: Stack, patient: AsyncOpenAI
) -> None:
    once = patient.with_options(max_retries=0, timeout=_NOTICED_S)
    ends: dict[int, str] = {}
    gate = asyncio.Semaphore(20)

    async def one(number: int) -> None:
        try:
            stream = await once.chat.completions.create(
                model="sim", messages=_messages(), stream=True
            )
            ends[number] = "answer" if [part async for part in stream] else "empty"
        except APIError:
            ends[number] = "error"
        finally:
            gate.release()

    async def load(clients: asyncio.TaskGroup, first: int) -> int:
        """Starts clients from a number on until ten of them have an answer; the next number."""
        deadline, number = deadline_in(20.0), first
        while sum(n >= first and end == "answer" for n, end in ends.items()) < 10:
            assert time.monotonic() < deadline, "answers stay away"
            await gate.acquire()
            clients.create_task(one(number))
            number += 1
            await asyncio.sleep(0.05)
        return number

    async with asyncio.TaskGroup() as clients:
        killed = await load(clients, 0)
        stack.kill("realtime-worker")
        started = await load(clients, killed)
    assert len(ends) == started
    assert set(ends.values()) <= {"answer", "error"}


def test_without_a_worker_there_is_an_error_that_says_when_to_come_back(
    stack: Stack, client: OpenAI
) -> None:
    stopped = threading.Event()

    def keep_killing() -> None:
        while not stopped.is_set():
            for number in range(len(stack.pids("realtime-worker"))):
                try:
                    stack.kill("realtime-worker", number)
                except (IndexError, ProcessLookupError):
                    continue
            time.sleep(0.05)

    killer = threading.Thread(target=keep_killing)
    killer.start()
    try:
        time.sleep(1.0)
        with pytest.raises(APIStatusError) as caught:
            client.chat.completions.create(model="sim", messages=_messages())
    finally:
        stopped.set()
        killer.join()
    assert (caught.value.status_code, caught.value.code) == (503, "no_worker")
    assert int(caught.value.response.headers["Retry-After"]) >= 1
