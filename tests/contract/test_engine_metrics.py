"""What every EngineMetrics promises, on the fake and on the real one against a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from api.up.upstreams import metrics_at, write_url_table
from streams.adapters.engine_metrics import HTTPEngineMetrics
from streams.adapters.engine_metrics_fake import FakeEngineMetrics
from streams.ports.engine_metrics import EngineMetrics, EngineMetricsError
from streams.settings import Settings, load_upstreams
from tests.support.engine_pages import READING, VLLM
from tests.support.waiting import eventually

LIMIT = 4096
Show = Callable[[str | None], None]
Engine = tuple[EngineMetrics, Show]


class PageServer:
    """An HTTP/1.1 server that answers every request with the bytes that it is told; then it hangs
    if it is to. Keeps the heads that it was sent.
    """

    def __init__(self) -> None:
        self.answer = b""
        self.hang = False
        self.heads: list[str] = []
        self.open = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.root = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return f"{self.root}/metrics"

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.open += 1
        try:
            self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
            writer.write(self.answer)
            await writer.drain()
            if self.hang:
                await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            writer.close()


def http(page: str, status: str = "200 OK", more: str = "") -> bytes:
    """A whole answer."""
    return (
        f"HTTP/1.1 {status}\r\nContent-Length: {len(page)}\r\nConnection: close\r\n{more}\r\n{page}"
    ).encode()


@pytest.fixture
async def server() -> AsyncIterator[tuple[PageServer, HTTPEngineMetrics]]:
    made = PageServer()
    url = await made.start()
    engine = HTTPEngineMetrics(url, timeout_s=2, max_bytes=LIMIT)
    yield made, engine
    await engine.close()
    await made.stop()


@pytest.fixture(params=["fake", "http"])
def engine(request: pytest.FixtureRequest, server: tuple[PageServer, HTTPEngineMetrics]) -> Engine:
    if request.param == "fake":
        fake = FakeEngineMetrics(max_bytes=LIMIT)
        return fake, lambda page: setattr(fake, "page", page)
    made, real = server

    def show(page: str | None) -> None:
        made.answer = b"" if page is None else http(page)

    return real, show


async def test_a_page_is_read_each_time_anew(engine: Engine) -> None:
    metrics, show = engine
    show(VLLM)
    assert await metrics.read() == READING
    show(VLLM.replace(" 17.0", " 18.0"))
    assert (await metrics.read()).running == 18


@pytest.mark.parametrize("page", [None, "", "up 1\n", VLLM + "# x\n" * LIMIT])
async def test_what_is_no_page_of_an_engine_is_one_error_and_not_the_last(
    engine: Engine, page: str | None
) -> None:
    metrics, show = engine
    show(page)
    with pytest.raises(EngineMetricsError):
        await metrics.read()
    show(VLLM)
    assert await metrics.read() == READING


async def test_closing_twice_is_fine(engine: Engine) -> None:
    metrics, _ = engine
    await metrics.close()
    await metrics.close()


@pytest.mark.parametrize(
    "answer",
    [
        http(VLLM, "500 No"),
        http(VLLM, "302 Found", "Location: /metrics\r\n"),
        b"\x16\x03\x01 what?\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\nvllm",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (LIMIT + 1),
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
    ],
)
@pytest.mark.parametrize("hang", [False, True])
async def test_a_hostile_server_is_survived(
    server: tuple[PageServer, HTTPEngineMetrics], answer: bytes, hang: bool
) -> None:
    made, engine = server
    made.answer, made.hang = answer, hang
    with pytest.raises(EngineMetricsError):
        await asyncio.wait_for(engine.read(), 30)
    await eventually(lambda: made.open == 0)
    made.answer, made.hang = http(VLLM), False
    assert await engine.read() == READING


async def test_a_server_that_is_gone_is_one_error() -> None:
    made = PageServer()
    url = await made.start()
    await made.stop()
    engine = HTTPEngineMetrics(url, timeout_s=0.5)
    with pytest.raises(EngineMetricsError):
        await engine.read()
    await engine.close()


async def test_no_key_is_sent_and_nothing_compressed_is_taken(
    server: tuple[PageServer, HTTPEngineMetrics],
) -> None:
    made, engine = server
    made.answer = http(VLLM)
    await engine.read()
    (head,) = made.heads
    assert "authorization" not in head.lower()
    assert "Accept-Encoding: identity" in head


async def test_up_finds_the_page_beside_the_api_and_writes_it_into_the_table(
    server: tuple[PageServer, HTTPEngineMetrics], tmp_path: Path
) -> None:
    made, _ = server
    made.answer = http(VLLM)
    table = tmp_path / "upstreams.yaml"
    await write_url_table(table, f"{made.root}/some/v1")
    (pool,) = load_upstreams(Settings(upstreams_file=table)).pools.values()
    assert pool.yields is not None
    assert pool.yields.metrics_url == f"{made.root}/some/metrics"
    assert pool.yields.abort
    assert any(head.startswith("GET /some/metrics ") for head in made.heads)


async def test_a_server_without_such_a_page_is_left_as_it_is(
    server: tuple[PageServer, HTTPEngineMetrics], tmp_path: Path
) -> None:
    made, _ = server
    made.answer = http("up 1\n")
    assert await metrics_at(f"{made.root}/v1") is None
    table = tmp_path / "upstreams.yaml"
    await write_url_table(table, f"{made.root}/v1")
    (pool,) = load_upstreams(Settings(upstreams_file=table)).pools.values()
    assert pool.yields is not None
    assert (pool.yields.metrics_url, pool.yields.abort) == (None, False)
