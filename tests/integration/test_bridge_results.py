"""Results of batches that came through Kafka, on a real broker: each once, whatever is killed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from api.bridge.app import RESULTS_ROLE, lane_parts
from api.bridge.kafka import ReadAgain
from api.bridge.outbound import Outbound
from schemas.headers import LINE
from schemas.metrics import Metrics
from schemas.topics import BATCH_OUT, BATCH_STATUS
from streams.adapters.object_store import open_store
from streams.kafka.admin import apply_topics
from streams.kafka.group_reader import GroupReader
from streams.kafka.groups import committed_offsets, group_name
from streams.kafka.producer import RecordProducer
from streams.settings import Settings
from tests.support.bridge import Results, kind_of, make_topics, results
from tests.support.brokers import delete_topics
from tests.support.lines import exit_code
from tests.support.results import ended_batch, result_line
from tests.support.waiting import eventually

pytestmark = pytest.mark.kafka

_LARGE = 4 * 1024 * 1024


def run(settings: Settings, folder: Path, failpoint: str = "") -> subprocess.Popen[bytes]:
    env = {
        **os.environ,
        "BACKHAUL_KAFKA": settings.kafka,
        "BACKHAUL_KAFKA_IDEMPOTENCE": str(settings.kafka_idempotence),
        "BACKHAUL_SESSION_TIMEOUT_S": str(settings.session_timeout_s),
        "BACKHAUL_TOPIC_PREFIX": settings.topic_prefix,
        "BACKHAUL_DATA_DIR": str(settings.data_dir),
        "BACKHAUL_FAILPOINT": failpoint,
    }
    with (folder / "bridge.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", "api.bridge"], env=env, stderr=log)


@pytest.fixture
async def producer(kafka_settings: Settings) -> AsyncIterator[RecordProducer]:
    await apply_topics(kafka_settings)
    await make_topics(kafka_settings)
    producer = RecordProducer(kafka_settings)
    await producer.start()
    yield producer
    await producer.stop()


@asynccontextmanager
async def outbound(settings: Settings, instance: str = "0") -> AsyncIterator[Metrics]:
    """The bridge's writing half in this process."""
    settings = settings.model_copy(update={"instance": instance})
    metrics = Metrics()
    topics = [BATCH_STATUS.full_name(settings.topic_prefix)]
    statuses = GroupReader(settings, RESULTS_ROLE, topics=topics)
    await statuses.start()
    store = open_store(settings.resolved_store_url)
    again = ReadAgain(settings)
    parts = lane_parts(settings, again, store, metrics)
    running = asyncio.create_task(Outbound(statuses, parts).run())
    try:
        yield metrics
        assert not running.done() or running.result() is None
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await again.stop()
        await statuses.stop()


def told(found: Results, key: bytes) -> list[tuple[str, int | None]]:
    """Kind and line number of the records with this key, in their order."""
    return [
        (kind_of(r), int(line) if (line := dict(r.headers).get(LINE)) is not None else None)
        for r in found.records
        if r.key == key
    ]


async def has_ended(found: Results, key: bytes) -> bool:
    await found.more()
    return ("end", None) in told(found, key)


async def all_ended(found: Results, names: list[str]) -> bool:
    await found.more()
    return all(("end", None) in told(found, name.encode()) for name in names)


@pytest.mark.real_kafka
async def test_a_bridge_killed_between_any_two_steps_delivers_each_result_once(
    kafka_settings: Settings, producer: RecordProducer, tmp_path: Path
) -> None:
    store = open_store(kafka_settings.resolved_store_url)
    batch = await ended_batch(store, "batch_a", 3500, failed=range(0, 3500, 7))
    expected = [("error" if n % 7 == 0 else "output", n) for n in range(3500)]
    process: subprocess.Popen[bytes] | None = None
    try:
        async with results(kafka_settings) as found:
            await producer.send(BATCH_STATUS, batch.batch_id, batch)
            for step in ("taken:2", "offset_sent", "committed", "taken:2"):
                process = run(kafka_settings, tmp_path, f"sender.{step}")
                assert await exit_code(process, 60) == 137
            process = run(kafka_settings, tmp_path)
            await eventually(lambda: has_ended(found, b"nightly"), 60)
            # As a controller does that is killed after it told how the batch ended.
            other = await ended_batch(store, "batch_b", 1, key="last")
            await producer.send(BATCH_STATUS, batch.batch_id, batch)
            await producer.send(BATCH_STATUS, batch.batch_id, other)
            await eventually(lambda: has_ended(found, b"last"), 30)
            assert told(found, b"nightly") == [*expected, ("end", None)]
    finally:
        if process is not None:
            process.kill()
            process.wait()


async def test_results_too_large_and_tenants_without_a_topic_stop_nobody(
    kafka_settings: Settings, producer: RecordProducer
) -> None:
    store = open_store(kafka_settings.resolved_store_url)
    batches = [
        await ended_batch(store, "batch_gone", 3, tenant="gone", key="k"),
        await ended_batch(store, "batch_large", 3, sizes={1: _LARGE}, failed=[2], key="k"),
        await ended_batch(store, "batch_http", 3, key=None),
        await ended_batch(store, "batch_last", 1, key="last"),
    ]
    await make_topics(kafka_settings, "gone")
    await delete_topics(
        kafka_settings.kafka, BATCH_OUT.of("gone").full_name(kafka_settings.topic_prefix)[:-3]
    )
    async with results(kafka_settings) as found:
        for batch in batches:
            # All to one partition, so that one stands behind the other.
            await producer.send(BATCH_STATUS, "batch", batch)
        async with outbound(kafka_settings) as metrics:
            await eventually(lambda: has_ended(found, b"last"), 60)
            gone = 'incomplete_total{reason="topic_missing"} 1.0'
            await eventually(lambda: gone in metrics.exposition().decode(), 30)
    assert told(found, b"k") == [("output", 0), ("too_large", 1), ("error", 2), ("end", None)]
    values = dict(found.of(b"k"))
    assert values["too_large"] == {
        "id": values["too_large"]["id"],
        "custom_id": "c-1",
        "size_bytes": len(result_line("batch_large", 1, _LARGE)),
        "file_id": batches[1].output_file_id,
    }
    assert values["end"]["results"] == {"sent": 3, "missing": 0, "reason": None}
    assert {r.key for r in found.records} == {b"k", b"last"}


@pytest.mark.parametrize("without_transactions", [False, True])
async def test_two_bridges_share_the_work_and_note_how_far_they_came(
    kafka_settings: Settings,
    producer: RecordProducer,
    monkeypatch: pytest.MonkeyPatch,
    without_transactions: bool,
) -> None:
    monkeypatch.setattr("api.bridge.outbound._COMMIT_S", 0.5)
    if without_transactions:
        kafka_settings = kafka_settings.model_copy(update={"kafka_idempotence": False})
    store = open_store(kafka_settings.resolved_store_url)
    async with (
        results(kafka_settings) as found,
        outbound(kafka_settings, "a"),
        outbound(kafka_settings, "b"),
    ):
        names = [f"batch_{n}" for n in range(8)]
        for name in names:
            batch = await ended_batch(store, name, 5, key=name)
            await producer.send(BATCH_STATUS, name, batch)
        await eventually(lambda: all_ended(found, names), 60)
        for name in names:
            expected = [*(("output", n) for n in range(5)), ("end", None)]
            assert told(found, name.encode()) == expected
        # What is read again after a restart, and what is not delivered again.
        for role in (RESULTS_ROLE, f"{RESULTS_ROLE}-acme"):
            group = group_name(kafka_settings, role)
            await eventually(lambda group=group: committed(kafka_settings, group, len(names)))  # type: ignore[misc]


async def committed(settings: Settings, group: str, records: int) -> bool:
    """Whether the group has committed so many records of batch.status."""
    marks = await committed_offsets(settings, group, BATCH_STATUS)
    return sum(mark for mark in marks.values() if mark > 0) == records
