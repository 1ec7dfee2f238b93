"""Batch-worker and realtime-worker as processes on a real broker: one makes way for the other."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.records import PoolLoad, RealtimeCancel, RealtimeRequest, WorkerLoad
from schemas.topics import REALTIME_CANCEL, REALTIME_REQUEST
from streams.batch_worker.pool_gate import LISTEN_S
from streams.domain.clock import SystemClock
from streams.settings import Settings
from tests.support.lines import CHAT, FAR_MS, Lines, running_lines, running_upstream
from tests.support.waiting import eventually

pytestmark = pytest.mark.kafka

MOST = 8
BURST = 30


class Lane:
    """Real-time requests that stay in flight until they are taken back."""

    def __init__(self, lines: Lines) -> None:
        self._producer = lines.producer

    async def burst(self) -> None:
        """So many at once."""
        now_ms = SystemClock().now_ms()
        for number in range(BURST):
            body = json.dumps({"model": "hang", "batch": "lane", "n": number}).encode()
            request = RealtimeRequest(
                request_id=f"req_{number}",
                tenant="t",
                gateway="g",
                reply_partition=0,
                at_ms=now_ms,
                accept_by_ms=now_ms + 30_000,
                deadline_ms=FAR_MS,
                endpoint=CHAT,
                pool="a",
                model="hang",
                stream=False,
                body=body,
            )
            await self._producer.send(REALTIME_REQUEST, request.request_id, request)

    async def end(self) -> None:
        """All their clients go away."""
        now_ms = SystemClock().now_ms()
        for number in range(BURST):
            request_id = f"req_{number}"
            cancel = RealtimeCancel(request_id=request_id, gateway="g", at_ms=now_ms)
            await self._producer.send(REALTIME_CANCEL, request_id, cancel)


async def _load(lines: Lines, when: Callable[[PoolLoad], bool], what: str) -> PoolLoad:
    """The batch-worker's next load of pool a that is so."""
    start = len(lines.loads)

    async def heard() -> bool:
        await lines.read()
        return bool(found())

    def found() -> list[PoolLoad]:
        loads = [load for load in lines.loads[start:] if load.partitions]
        return [load.pools[0] for load in loads if when(load.pools[0])]

    await eventually(heard, 30, what)
    return found()[0]


async def _silence(lines: Lines) -> None:
    """Some seconds without a real-time call."""
    until_ms = lines.loads[-1].at_ms + 2500

    async def over() -> bool:
        await lines.read()
        return lines.loads[-1].at_ms > until_ms

    await eventually(over, 10)


async def _limits(lines: Lines, worker: str, seconds: float) -> set[int]:
    """What a batch-worker that starts now allows itself on pool a in its first seconds."""

    def loads() -> list[WorkerLoad]:
        return [load for load in lines.loads if load.worker == worker]

    async def long_enough() -> bool:
        await lines.read()
        found = loads()
        return bool(found) and found[-1].at_ms - found[0].at_ms > 1000 * seconds

    await eventually(long_enough, 30, "the worker has spoken for a while")
    return {load.pools[0].limit for load in loads()}


async def test_a_burst_takes_credits_and_running_calls_and_its_end_gives_them_back(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    async with (
        running_upstream() as upstream,
        running_lines(
            kafka_settings, tmp_path, {"a": upstream.url}, {"abort": True, "floor": 2}
        ) as lines,
    ):
        realtime = lines.run("realtime-worker")
        lines.run("batch-worker")
        lane = Lane(lines)
        await lines.release("b1", range(MOST), model="hang")
        full = await _load(lines, lambda p: p.in_flight == MOST, "the pool is full")
        assert (full.limit, full.reason) == (MOST, "silence")
        assert full.credits > MOST
        # The first call after some silence may cut batch calls.
        await _silence(lines)

        await lane.burst()
        less = await _load(lines, lambda p: p.in_flight <= 4, "calls were cut")
        assert less.limit <= 4
        assert less.credits < full.credits
        assert less.held == MOST, "lines that were cut are held as before"
        await eventually(lambda: upstream.cut >= 4)
        assert lines.done == []

        await lane.end()
        back = await _load(lines, lambda p: p.in_flight == MOST, "they run again")
        assert back.limit == MOST

        realtime.send_signal(signal.SIGKILL)
        blind = await _load(lines, lambda p: p.reason == "stale", "the lane is missed")
        assert blind.limit == 2
        # Whoever starts now has only heard of it.
        lines.run("batch-worker", instance="1")
        assert max(await _limits(lines, "batch-worker-1", LISTEN_S + 2.0)) <= 2
        lines.run("realtime-worker")
        again = await _load(lines, lambda p: p.limit == MOST, "the lane is back")
        assert again.reason != "stale"


async def test_calls_that_only_the_engine_knows_of_are_yielded_to_as_well(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    async with running_upstream() as upstream:
        metrics_url = f"{upstream.url.removesuffix('/v1')}/metrics"
        yields = {"abort": True, "metrics_url": metrics_url}
        async with running_lines(kafka_settings, tmp_path, {"a": upstream.url}, yields) as lines:
            lines.run("batch-worker")
            await lines.release("b1", range(MOST), model="hang")
            full = await _load(lines, lambda p: p.in_flight == MOST, "the pool is full")
            assert (full.limit, full.reason) == (MOST, "silence"), "its own calls are no strangers"
            await _silence(lines)
            assert upstream.cut == 0

            upstream.strangers = BURST
            less = await _load(lines, lambda p: p.in_flight <= 4, "calls were cut")
            assert less.limit <= 4
            upstream.strangers = 0
            await _load(lines, lambda p: p.in_flight == MOST, "they run again")
