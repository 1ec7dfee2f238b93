"""The batch-worker's CPU per line against a bare aiohttp loop, both to an answer-at-once server.

    python -m tests.bench.bench_worker [LINES] [--profile]

Kafka's part is left out: slices come from memory and outcomes are encoded but not sent. So this
shows what the worker itself costs; `make bench` measures the roles with everything.
"""

from __future__ import annotations

import asyncio
import cProfile
import json
import pstats
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

import aiohttp
import uvloop

from schemas.codec import decode_as, encode
from schemas.records import ClaimCheck, DoneLines, ReadyLine, ReadyLines
from streams.adapters.inference import HTTPInferenceClient
from streams.adapters.object_store_fake import FakeObjectStore
from streams.batch_worker.caller import Caller
from streams.batch_worker.prompt_line import PromptRequests
from streams.batch_worker.prompts import PromptCache
from streams.batch_worker.worker import Worker
from streams.domain.clock import SystemClock
from streams.domain.prompts.pins import Pin, encode_pins
from streams.domain.upstreams import ModelLimits, Upstream, UpstreamTable

CONCURRENCY = 64
SLICE = 16
LINES = 20_000
_PLAN = "batches/batch_1/plan/1"


def _broken(error: BaseException) -> None:
    raise error


class NoRenderer:
    """In the place of the processes that render what is not plain."""

    async def render(
        self, sources: Sequence[str], variables: bytes, *, fair_key: str
    ) -> list[bytes]:
        raise NotImplementedError("only plain templates are measured here")


def _line(number: int) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": "Say something. " * 20}]}
    line = {"custom_id": f"r-{number}", "method": "POST", "url": "/v1/chat/completions"}
    return json.dumps({**line, "body": body}).encode()


@contextmanager
def server() -> Iterator[str]:
    """The base URL of an upstream that answers at once, in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.answer_at_once"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    port = int(process.stdout.readline())
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


async def bare(base_url: str, lines: list[bytes]) -> int:
    """The yardstick: parse, post, read, render, nothing else."""
    todo = iter(lines)
    done: list[bytes] = []
    connector = aiohttp.TCPConnector(limit=CONCURRENCY)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def one() -> None:
            for raw in todo:
                line = json.loads(raw)
                url = f"{base_url}/chat/completions"
                async with session.post(url, json=line["body"]) as answer:
                    body = await answer.json()
                result = {"custom_id": line["custom_id"], "response": body}
                done.append(json.dumps(result).encode())

        await asyncio.gather(*(one() for _ in range(CONCURRENCY)))
    return len(done)


async def worker(base_url: str, lines: list[bytes], pin: Pin | None = None) -> int:
    """The same lines through a Worker, in slices and with credits as a dispatcher would.

    pin: the prompt version that all of them name, if they do.
    """
    upstream = Upstream(
        name="u", base_url=base_url, models={"*": ModelLimits()}, max_in_flight=CONCURRENCY
    )
    clock = SystemClock()
    client = HTTPInferenceClient(upstream, CONCURRENCY, {})
    store = FakeObjectStore()
    pins = encode_pins([pin]) if pin else b""
    await store.put(_PLAN, pins)
    caller = Caller(
        upstream,
        client,
        store,
        clock,
        PromptRequests(PromptCache(store, clock), NoRenderer(), clock),
        claim_check_bytes=256 * 1024,
        random=lambda: 0.5,
    )
    outcomes = 0
    free, finished = asyncio.Event(), asyncio.Event()

    async def send(record: DoneLines) -> None:
        nonlocal outcomes
        encode(record)
        outcomes += len(record.outcomes)
        if outcomes == len(lines):
            finished.set()
        await asyncio.sleep(0)

    run = Worker("w", UpstreamTable((upstream,)), {"u": caller}, send, clock, free.set, _broken)
    pool = run.pools["u"]
    slices = [encode(_slice(lines, at, len(pins))) for at in range(0, len(lines), SLICE)]
    for raw in slices:
        while pool.held + SLICE > pool.credits():
            free.clear()
            await free.wait()
        run.take(decode_as(raw, ReadyLines), 0, lambda: None)
    while outcomes < len(lines):  # noqa: ASYNC110 - an event per line would be measured too
        await asyncio.sleep(0.005)
    await run.stop(5.0)
    await client.close()
    return outcomes


def _slice(lines: list[bytes], at: int, pins_bytes: int) -> ReadyLines:
    claim = ClaimCheck(key=_PLAN, offset=0, length=pins_bytes)
    return ReadyLines(
        batch_id="batch_1",
        tenant="t",
        at_ms=0,
        endpoint="/v1/chat/completions",
        pool="u",
        deadline_ms=1 << 50,
        created_at_ms=0,
        pins=claim if pins_bytes else None,
        lines=tuple(
            ReadyLine(line=at + i, attempt=1, raw=raw, pin=1 if pins_bytes else 0)
            for i, raw in enumerate(lines[at : at + SLICE])
        ),
    )


def measure(
    run: Callable[[str, list[bytes]], Awaitable[int]], url: str, lines: list[bytes]
) -> float:
    """CPU milliseconds a line."""

    async def go() -> int:
        return await run(url, lines)

    began = time.process_time()
    assert uvloop.run(go()) == len(lines)
    return (time.process_time() - began) * 1000 / len(lines)


def main(count: int = LINES, profile: bool = False) -> dict[str, float]:
    """Prints and returns CPU milliseconds a line of both, and their ratio."""
    lines = [_line(n) for n in range(count)]
    with server() as url:
        measure(bare, url, lines[:2000])
        bare_ms = min(measure(bare, url, lines) for _ in range(2))
        worker_ms = min(measure(worker, url, lines) for _ in range(2))
        if profile:
            profiler = cProfile.Profile()
            profiler.enable()
            measure(worker, url, lines)
            profiler.disable()
            pstats.Stats(profiler).sort_stats("tottime").print_stats(45)
    figures = {"bare_ms": bare_ms, "worker_ms": worker_ms, "ratio": worker_ms / bare_ms}
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))
    return figures


if __name__ == "__main__":
    numbers = [int(a) for a in sys.argv[1:] if a.isdigit()]
    main(numbers[0] if numbers else LINES, profile="--profile" in sys.argv)
