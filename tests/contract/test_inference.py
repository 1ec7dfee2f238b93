"""What every InferenceClient promises, on the fake and on the real one against a real socket."""

from __future__ import annotations

import asyncio
import gzip
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from streams.adapters.inference import HTTPInferenceClient
from streams.adapters.inference_fake import (
    Babble,
    Behaviour,
    CutOff,
    FakeInferenceClient,
    Hang,
    Reply,
    Reset,
    Script,
)
from streams.domain.failures import FailureReason
from streams.domain.upstreams import ModelLimits, Upstream, UpstreamTableError
from streams.ports.inference import (
    BadAnswerError,
    BlipError,
    InferenceClient,
    InferenceError,
    TimedOutError,
    TooLargeError,
    UnreachableError,
)

PATH = "/v1/chat/completions"
LIMIT = 4096
TIMEOUT_S = 2.0


class RawServer:
    """An HTTP/1.1 server of twenty lines that can also behave badly; keeps what it was asked."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.heads: list[dict[str, str]] = []

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}/v1"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = {k.lower(): v for k, _, v in (h.partition(": ") for h in head[1:] if h)}
        self.heads.append({**fields, ":path": head[0].split()[1]})
        body = await reader.readexactly(int(fields["content-length"]))
        match self._script(PATH, body):
            case Reply() as reply:
                await asyncio.sleep(reply.delay_s)
                writer.write(_head(reply) + reply.body)
            case Hang():
                await asyncio.sleep(60)
            case Babble():
                writer.write(b"\x16\x03\x01 what? \r\n\r\n\r\n")
            case CutOff():
                writer.write(_head(Reply(body=b"x" * 100)) + b"{")
                await writer.drain()
                return False
            case Reset():
                raw = writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
        await writer.drain()
        return True


def _head(reply: Reply) -> bytes:
    fields = {"Content-Length": str(len(reply.body)), **reply.headers}
    lines = [f"HTTP/1.1 {reply.status} x", *(f"{k}: {v}" for k, v in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _upstream(base_url: str, **changes: object) -> Upstream:
    fields = {
        "name": "one",
        "models": {"*": ModelLimits()},
        "request_timeout_s": TIMEOUT_S,
        "connect_timeout_s": 0.3,
        "max_response_bytes": LIMIT,
    }
    return Upstream(base_url=base_url, **{**fields, **changes})  # type: ignore[arg-type]


@asynccontextmanager
async def _real(script: Script) -> AsyncIterator[InferenceClient]:
    server = RawServer(script)
    client = HTTPInferenceClient(_upstream(await server.start()), 8, {})
    try:
        yield client
    finally:
        await client.close()
        await server.stop()


@asynccontextmanager
async def _fake(script: Script) -> AsyncIterator[InferenceClient]:
    yield FakeInferenceClient(script, request_timeout_s=TIMEOUT_S, max_response_bytes=LIMIT)


Open = Callable[[Script], AbstractAsyncContextManager[InferenceClient]]


@pytest.fixture(params=[_fake, _real], ids=["fake", "real"])
def upstream(request: pytest.FixtureRequest) -> Open:
    """Opens a client of an upstream that follows a script."""
    opened: Open = request.param
    return opened


def _always(behaviour: Behaviour) -> Script:
    return lambda _path, _body: behaviour


async def test_an_answer_arrives_whole_with_its_status(upstream: Open) -> None:
    async with upstream(_always(Reply(body=b'{"a":1}', headers={"X-Request-Id": "req_9"}))) as c:
        answer = await c.send(PATH, b"{}")
    assert (answer.status, answer.body, answer.request_id) == (200, b'{"a":1}', "req_9")


async def test_the_body_is_sent_as_it_is(upstream: Open) -> None:
    seen: list[bytes] = []

    def script(_path: str, body: bytes) -> Behaviour:
        seen.append(body)
        return Reply()

    async with upstream(script) as client:
        await client.send(PATH, '{"messages":"é \\u00e9"}'.encode())
    assert seen == ['{"messages":"é \\u00e9"}'.encode()]


@pytest.mark.parametrize("status", [201, 302, 400, 404, 429, 500, 503])
async def test_every_status_is_an_answer_and_not_an_error(upstream: Open, status: int) -> None:
    headers = {"Location": "http://127.0.0.1:9/", "Retry-After": "7", "retry-after-ms": "1500"}
    async with upstream(_always(Reply(status, b"no", headers))) as client:
        answer = await client.send(PATH, b"{}")
    assert (answer.status, answer.body) == (status, b"no")
    asked = ("7", "1500") if status >= 400 else ("", "")
    assert (answer.retry_after, answer.retry_after_ms) == asked


async def test_an_answer_as_large_as_allowed_is_taken(upstream: Open) -> None:
    async with upstream(_always(Reply(body=b"x" * LIMIT))) as client:
        assert len((await client.send(PATH, b"{}")).body) == LIMIT


async def test_a_larger_answer_is_refused(upstream: Open) -> None:
    async with upstream(_always(Reply(body=b"x" * (LIMIT + 1)))) as client:
        with pytest.raises(TooLargeError):
            await client.send(PATH, b"{}")


@pytest.mark.parametrize(
    ("behaviour", "error", "reason"),
    [
        (Hang(), TimedOutError, FailureReason.TIMEOUT),
        (Reply(delay_s=TIMEOUT_S * 2), TimedOutError, FailureReason.TIMEOUT),
        (Reset(), BlipError, FailureReason.UNREACHABLE),
        (CutOff(), UnreachableError, FailureReason.UNREACHABLE),
        (Babble(), BadAnswerError, FailureReason.INVALID_RESPONSE),
    ],
    ids=["hang", "late", "reset", "cut off", "babble"],
)
async def test_each_failure_has_its_error(
    upstream: Open, behaviour: Behaviour, error: type[InferenceError], reason: FailureReason
) -> None:
    async with upstream(_always(behaviour)) as client:
        with pytest.raises(InferenceError) as caught:
            await client.send(PATH, b"{}")
    assert type(caught.value) is error
    assert caught.value.reason is reason
    assert str(caught.value) == ""


async def test_a_call_that_hangs_does_not_hold_up_another(upstream: Open) -> None:
    def script(_path: str, body: bytes) -> Behaviour:
        return Hang() if body == b"{1}" else Reply()

    async with upstream(script) as client:
        hanging = asyncio.ensure_future(client.send(PATH, b"{1}"))
        answer = await client.send(PATH, b"{2}")
        assert answer.status == 200
        assert not hanging.done()
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)


async def test_a_refused_connection_is_a_blip() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        client = HTTPInferenceClient(_upstream(f"http://127.0.0.1:{port}/v1"), 8, {})
        with pytest.raises(BlipError):
            await client.send(PATH, b"{}")
        await client.close()


async def test_connections_are_kept_and_used_again() -> None:
    server = RawServer(_always(Reply()))
    client = HTTPInferenceClient(_upstream(await server.start()), 8, {})
    for _ in range(5):
        await client.send(PATH, b"{}")
    await client.close()
    await server.stop()
    assert server.connections == 1


async def test_an_endless_answer_is_cut_at_the_limit() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                writer.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
                await writer.drain()
        except ConnectionError:
            writer.close()

    server = await asyncio.start_server(endless, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = HTTPInferenceClient(_upstream(f"http://127.0.0.1:{port}/v1"), 8, {})
    with pytest.raises(TooLargeError):
        await client.send(PATH, b"{}")
    await client.close()
    server.close()


async def test_an_answer_that_is_compressed_unasked_is_read_and_bounded_unpacked() -> None:
    async def send(content: bytes) -> bytes:
        packed = Reply(body=content, headers={"Content-Encoding": "gzip"})
        async with _real(_always(packed)) as client:
            return (await client.send(PATH, b"{}")).body

    assert await send(gzip.compress(b'{"a":1}')) == b'{"a":1}'
    with pytest.raises(TooLargeError):
        await send(gzip.compress(b"x" * 3_000_000))
    with pytest.raises(BadAnswerError):
        await send(b"not gzip at all")


@pytest.mark.parametrize(
    ("suffix", "expected"),
    [
        ("/v1", "/v1/chat/completions"),
        ("/v1/", "/v1/chat/completions"),
        ("", "/v1/chat/completions"),
        ("/openai/v3", "/openai/v3/chat/completions"),
    ],
)
async def test_the_path_follows_the_base_url(suffix: str, expected: str) -> None:
    server = RawServer(_always(Reply()))
    base = (await server.start()).removesuffix("/v1")
    client = HTTPInferenceClient(_upstream(base + suffix), 8, {})
    await client.send(PATH, b"{}")
    await client.close()
    await server.stop()
    assert server.heads[0][":path"] == expected


async def test_the_key_comes_from_the_named_variable_and_proxies_are_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    server = RawServer(_always(Reply()))
    upstream = _upstream(await server.start(), api_key_env="UPSTREAM_KEY")
    client = HTTPInferenceClient(upstream, 8, {"UPSTREAM_KEY": " sk-1 "})
    await client.send(PATH, b"{}")
    await client.close()
    await server.stop()
    assert server.heads[0]["authorization"] == "Bearer sk-1"
    assert server.heads[0]["accept-encoding"] == "identity"


async def test_a_missing_key_is_named_at_start() -> None:
    with pytest.raises(UpstreamTableError, match="UPSTREAM_KEY"):
        HTTPInferenceClient(_upstream("http://127.0.0.1:1/v1", api_key_env="UPSTREAM_KEY"), 8, {})
