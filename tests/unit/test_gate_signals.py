"""The readers of the gates' signals: each tells what it can, and what it can't grows old."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import pytest
from msgspec.structs import replace

from schemas.records import ReadyLine, ReadyLines, RealtimeLoad, Record, WorkerLoad
from schemas.topics import CAPACITY
from streams.adapters.engine_metrics_fake import FakeEngineMetrics
from streams.batch_worker.line import Held, Line
from streams.batch_worker.signals import engine as engine_module
from streams.batch_worker.signals.capacity import CapacityFollower
from streams.batch_worker.signals.engine import EngineReader
from streams.batch_worker.signals.lag import LagReader
from streams.domain.gate.signals import EngineLoad
from streams.kafka.errors import BrokerUnreachable
from streams.kafka.reader import ReadRecord
from tests.support.gates import Site
from tests.support.waiting import eventually

LOAD = RealtimeLoad(worker="r", process="p", at_ms=1, in_flight=0, oldest_wait_ms=0, pools=())


class Reads:
    """A reader with these answers; after them it fails, or has nothing more."""

    def __init__(self, *answers: list[Record | None] | Exception, end: int = 0) -> None:
        """end: what the topic holds at first."""
        self._answers = list(answers)
        self._end = end
        self._position = 0

    async def ends(self) -> Mapping[tuple[str, int], int]:
        return {(CAPACITY.name, 0): self._end}

    def positions(self) -> Mapping[tuple[str, int], int]:
        return {(CAPACITY.name, 0): self._position}

    async def poll(self, timeout_s: float = 0.2) -> list[ReadRecord]:
        await asyncio.sleep(0)
        if not self._answers:
            await asyncio.sleep(60)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        self._position += len(answer)
        return [ReadRecord(CAPACITY, 0, n, 0, "k", record) for n, record in enumerate(answer)]


def _remember(_past: Iterable[RealtimeLoad]) -> None:
    pass


async def test_of_the_past_only_each_lanes_last_word_counts_and_it_comes_before_any_load() -> None:
    batch = WorkerLoad(worker="b", at_ms=1, partitions=(), pools=())
    other, bye = replace(LOAD, worker="r2"), replace(LOAD, at_ms=2, stopping=True)
    heard: list[object] = []
    reader = Reads([LOAD, batch, None], [other, bye], [batch, LOAD], end=5)

    def remember(past: Iterable[RealtimeLoad]) -> None:
        heard.append(list(past))

    task = asyncio.create_task(CapacityFollower(reader, remember, heard.append).run())
    await eventually(lambda: len(heard) == 3)
    task.cancel()
    assert heard == [[bye, other], batch, LOAD]


async def test_loads_are_passed_on_tombstones_are_not_and_a_failure_is_not_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streams.batch_worker.signals.capacity._RETRY_S", 0.0)
    heard: list[object] = []
    reader = Reads([LOAD, None], BrokerUnreachable("gone"), [LOAD])
    task = asyncio.create_task(CapacityFollower(reader, _remember, heard.append).run())
    await eventually(lambda: heard == [LOAD, LOAD])
    task.cancel()


class FakeOffsets:
    """Offsets that are set by hand."""

    def __init__(self) -> None:
        self.end: dict[int, int] = {}
        self.done: dict[int, int] = {}
        self.error: Exception | None = None
        self.hangs = False

    async def ends(self) -> Mapping[int, int]:
        return dict(self.end)

    async def committed(self) -> Mapping[int, int]:
        if self.hangs:
            await asyncio.sleep(60)
        if self.error is not None:
            raise self.error
        return dict(self.done)


async def test_requests_wait_that_were_there_a_period_ago_and_are_not_taken_yet() -> None:
    offsets, heard = FakeOffsets(), list[int]()
    reader = LagReader(offsets, heard.append)
    steps: list[Any] = [
        ({0: 5, 1: 7}, {0: 5, 1: 7}),
        ({0: 9, 1: 7}, {0: 5, 1: 7}),
        ({0: 12, 1: 7}, {0: 9, 1: 7}),
        ({0: 20, 1: 9}, {0: 9, 1: 7}),
        ({0: 20, 1: 9}, {0: 9, 1: 8}),
    ]
    for offsets.end, offsets.done in steps:
        await reader.step()
    assert heard == [0, 0, 0, 3, 12]


async def test_a_group_that_has_committed_nothing_is_no_group() -> None:
    offsets, heard = FakeOffsets(), list[int]()
    reader = LagReader(offsets, heard.append)
    offsets.end = {0: 500}
    await reader.step()
    await reader.step()
    assert heard == [0, 0]


async def test_a_lag_that_can_not_be_had_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.batch_worker.signals.lag.TIMEOUT_S", 0.01)
    offsets, heard = FakeOffsets(), list[int]()
    reader = LagReader(offsets, heard.append)
    offsets.error = BrokerUnreachable("gone")
    await reader.step()
    offsets.error, offsets.hangs = None, True
    await reader.step()
    assert heard == []
    offsets.hangs = False
    await reader.step()
    assert heard == [0]


PAGE = "vllm:num_requests_running {}\nvllm:num_requests_waiting 0\n"


async def test_an_engine_is_read_and_a_page_that_fails_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_module, "SETTLE_S", 0.0)
    engine, heard = FakeEngineMetrics(PAGE.format(3)), list[EngineLoad]()
    reader = EngineReader("http://h", engine, heard.append, lambda: 7.0, lambda: 0.0)
    await reader.step()
    engine.page = None
    await reader.step()
    engine.page = PAGE.format("NaN")
    task = asyncio.create_task(reader.run())
    await eventually(lambda: len(heard) > 1)
    task.cancel()
    assert [(load.at_s, load.running) for load in heard[:2]] == [(7.0, 3), (7.0, -1)]


async def test_the_time_that_a_reading_takes_is_part_of_the_time_between_two() -> None:
    # The clock of this test goes on by a second with each look at it.
    clock = iter(range(1_000_000))
    engine, asked = FakeEngineMetrics(PAGE.format(3)), list[float]()
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 6:
            raise asyncio.CancelledError

    def hear(load: EngineLoad) -> None:
        asked.append(load.at_s)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streams.batch_worker.signals.engine.asyncio.sleep", pause)
        reader = EngineReader("http://h", engine, hear, lambda: next(clock), lambda: 10.0)
        with pytest.raises(asyncio.CancelledError):
            await reader.run()
    settled, waited = pauses[0::2], pauses[1::2]
    assert settled == [engine_module.SETTLE_S] * 3
    # From the first look to the last it took two seconds.
    assert waited == [8.0] * 3
    assert len(asked) == 3


def engine_says(site: Site, running: int, waiting: int = 0) -> None:
    now_s = site.worker.gates.now_s()
    site.worker.gates.hear_engine(["u"], EngineLoad(now_s, waiting, running))


def test_calls_past_the_lane_are_yielded_to_by_the_engines_word_alone() -> None:
    site = Site(metrics_url="http://h/metrics", abort=True)
    for _ in range(30):
        site.run(0.1)
        engine_says(site, 0)
    assert (site.worker.part, site.worker.reason) == (16, "silence")
    for _ in range(10):
        site.run(0.1)
        engine_says(site, 40)
    assert site.worker.part <= 4
    for _ in range(50):
        site.run(0.1)
        engine_says(site, 0)
    assert site.worker.part == 16


async def test_short_calls_of_our_own_that_the_engine_has_just_shown_are_no_strangers() -> None:
    site = Site(metrics_url="http://h/metrics")
    for _ in range(20):
        site.run(0.1)
        now_s = site.worker.gates.now_s()
        with ExitStack() as calls:
            for line in _lines(12):
                calls.enter_context(site.worker.pool.calls.one(line))
        # They came and went between two looks at the worker.
        site.worker.gates.hear_engine(["u"], EngineLoad(now_s, 0, 12))
        assert site.worker.reason != "yield"
    assert (site.worker.part, site.worker.reason) == (16, "silence")


def _lines(count: int) -> list[Line]:
    items = tuple(ReadyLine(line=n, attempt=1, raw=b"") for n in range(count))
    ready = ReadyLines(
        batch_id="b",
        tenant="t",
        at_ms=0,
        endpoint="",
        pool="u",
        deadline_ms=0,
        created_at_ms=0,
        lines=items,
    )
    return Held().take(ready, 0, lambda: None)


def test_an_engine_that_was_promised_and_is_not_heard_means_the_floor() -> None:
    site = Site(metrics_url="http://h/metrics")
    site.run(3.0, lane=0)
    assert (site.worker.part, site.worker.reason) == (2, "stale")
    engine_says(site, 0)
    site.run(1.0, lane=0)
    assert site.worker.part == 16
    engine_says(site, -1)
    assert (site.worker.part, site.worker.reason) == (2, "invalid")


def test_requests_that_wait_in_kafka_hold_batch_back() -> None:
    site = Site()
    site.run(3.0, lane=0)
    site.worker.gates.hear_lag(7)
    site.run(0.2, lane=0)
    assert (site.worker.part, site.worker.reason) == (2, "queue")
    site.run(4.0, lane=0)
    assert site.worker.part == 16, "old news are none"
