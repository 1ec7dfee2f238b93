"""What InferenceClient.open promises, on the fake and on the real one against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from streams.adapters.inference import HTTPInferenceClient
from streams.adapters.inference_fake import (
    Behaviour,
    CutOff,
    Events,
    FakeInferenceClient,
    Hang,
    Reply,
    Script,
)
from streams.domain.upstreams import ModelLimits, Upstream
from streams.ports.inference import (
    BlipError,
    InferenceClient,
    TimedOutError,
    TooLargeError,
    UnreachableError,
)
from tests.support.waiting import eventually

PATH = "/v1/chat/completions"
LIMIT = 4096
TIMEOUT_S = 2.0


@dataclass
class Server:
    """An upstream that follows a script; running: the calls that it works on now."""

    script: Script
    running: int = 0
    accepts: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.accepts.append(request.headers["Accept"])
        self.running += 1
        try:
            return await self._behave(request, self.script(request.path, await request.read()))
        finally:
            self.running -= 1

    async def _behave(self, request: web.Request, behaviour: Behaviour) -> web.StreamResponse:
        match behaviour:
            case Reply():
                return web.Response(
                    status=behaviour.status, body=behaviour.body, headers=behaviour.headers
                )
            case Events():
                return await self._events(request, behaviour)
            case CutOff():
                return await self._events(request, Events((b"{",), cut=True))
            case _:
                await asyncio.Event().wait()
                raise AssertionError

    async def _events(self, request: web.Request, events: Events) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": f"{events.content_type}; x=y"})
        await response.prepare(request)
        for chunk in events.chunks:
            await asyncio.sleep(events.pause_s)
            await response.write(chunk)
        if events.cut:
            assert request.transport is not None
            await asyncio.sleep(0.05)
            request.transport.abort()
        return response


@asynccontextmanager
async def _real(script: Script) -> AsyncIterator[tuple[InferenceClient, Callable[[], int]]]:
    server = Server(script)
    app = web.Application()
    app.router.add_post(PATH, server.answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    upstream = Upstream(
        name="one",
        base_url=f"http://127.0.0.1:{runner.addresses[0][1]}/v1",
        models={"*": ModelLimits()},
        request_timeout_s=TIMEOUT_S,
        max_response_bytes=LIMIT,
    )
    client = HTTPInferenceClient(upstream, 8, {})
    try:
        yield client, lambda: server.running
    finally:
        await client.close()
        await runner.cleanup()
    assert all("text/event-stream" in accepted for accepted in server.accepts)


@asynccontextmanager
async def _fake(script: Script) -> AsyncIterator[tuple[InferenceClient, Callable[[], int]]]:
    client = FakeInferenceClient(script, request_timeout_s=TIMEOUT_S, max_response_bytes=LIMIT)
    yield client, lambda: client.running


Open = Callable[[Script], AbstractAsyncContextManager[tuple[InferenceClient, Callable[[], int]]]]


@pytest.fixture(params=[_fake, _real], ids=["fake", "real"])
def upstream(request: pytest.FixtureRequest) -> Open:
    """Opens a client of an upstream that follows a script, and counts the calls that run."""
    opened: Open = request.param
    return opened


def _always(behaviour: Behaviour) -> Script:
    return lambda _path, _body: behaviour


async def test_chunks_arrive_as_they_are_made(upstream: Open) -> None:
    told = Events((b"data: 1\n\n", b"data: 2\n\n"), pause_s=0.1)
    async with upstream(_always(told)) as (client, _), client.open(PATH, b"{}") as stream:
        assert (stream.status, stream.content_type) == (200, "text/event-stream")
        assert [chunk async for chunk in stream.chunks()] == list(told.chunks)


async def test_an_answer_that_is_whole_can_be_read_as_well(upstream: Open) -> None:
    told = Reply(429, b'{"error": {}}', {"Retry-After": "7", "Content-Type": "application/json"})
    async with upstream(_always(told)) as (client, _), client.open(PATH, b"{}") as stream:
        assert (stream.status, stream.content_type) == (429, "application/json")
        assert (stream.retry_after, stream.retry_after_ms) == ("7", "")
        assert b"".join([chunk async for chunk in stream.chunks()]) == told.body


async def test_an_answer_that_is_cut_in_the_middle_says_so(upstream: Open) -> None:
    for told in (Events((b"data: 1\n\n",), cut=True), CutOff()):
        async with upstream(_always(told)) as (client, _):
            with pytest.raises(UnreachableError):
                await _read(client)


async def test_a_stream_above_the_limit_is_refused(upstream: Open) -> None:
    told = Events((b"x" * LIMIT, b"y"), pause_s=0.02)
    async with upstream(_always(told)) as (client, _):
        with pytest.raises(TooLargeError):
            await _read(client)


async def test_the_time_out_holds_for_the_first_byte_and_for_the_last(upstream: Open) -> None:
    async with upstream(_always(Hang())) as (client, _):
        with pytest.raises(TimedOutError):
            await _read(client)


async def test_leaving_early_ends_the_call_at_the_upstream(upstream: Open) -> None:
    endless = Events(tuple(b"x" for _ in range(1000)), pause_s=0.01)
    async with upstream(_always(endless)) as (client, running):
        async with client.open(PATH, b"{}") as stream:
            await anext(aiter(stream.chunks()))
            assert running() == 1
        await eventually(lambda: running() == 0)


async def test_cancelling_ends_the_call_at_the_upstream(upstream: Open) -> None:
    async with upstream(_always(Hang())) as (client, running):
        asking = asyncio.create_task(_read(client))
        await eventually(lambda: running() == 1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await eventually(lambda: running() == 0)


async def test_a_server_that_is_not_there_is_a_blip() -> None:
    upstream = Upstream(name="one", base_url="http://127.0.0.1:1/v1", models={"*": ModelLimits()})
    client = HTTPInferenceClient(upstream, 8, {})
    with pytest.raises(BlipError):
        await _read(client)
    await client.close()


async def _read(client: InferenceClient) -> bytes:
    async with client.open(PATH, b"{}") as stream:
        return b"".join([chunk async for chunk in stream.chunks()])
