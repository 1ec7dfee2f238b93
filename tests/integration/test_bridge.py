"""Batches from a tenant's topic, on a real broker: kills between the steps, and hostile records."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from api.bridge.inbound import Inbound, Parts
from api.bridge.kafka import ReadAgain, ReadMade, TenantTopics
from schemas.headers import OP
from schemas.metrics import Metrics
from schemas.records import BatchCreate, FileRecord, ObjectRef
from schemas.topics import BATCH_COMMAND, BATCH_IN, FILE
from streams.adapters.object_store import open_store
from streams.domain.clock import SystemClock
from streams.kafka.admin import apply_topics
from streams.kafka.producer import RecordProducer
from streams.kafka.reader import TopicReader
from streams.settings import Settings
from tests.support.bridge import SEAL, Results, line, make_topics, results, service
from tests.support.lines import exit_code
from tests.support.strangers import bomb, newer_snappy, with_bad_name, write
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kafka, pytest.mark.real_kafka]


def run(settings: Settings, folder: Path, failpoint: str = "") -> subprocess.Popen[bytes]:
    env = {
        **os.environ,
        "BACKHAUL_KAFKA": settings.kafka,
        "BACKHAUL_TOPIC_PREFIX": settings.topic_prefix,
        "BACKHAUL_DATA_DIR": str(settings.data_dir),
        "BACKHAUL_FAILPOINT": failpoint,
    }
    with (folder / "bridge.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", "api.bridge"], env=env, stderr=log)


@asynccontextmanager
async def bridge(settings: Settings) -> AsyncIterator[Inbound]:
    """The bridge's reading half in this process."""
    submissions, again = TenantTopics(settings), ReadAgain(settings)
    producer = RecordProducer(settings)
    await producer.start()
    await submissions.start()
    inbound = Inbound(
        Parts(
            submissions=submissions,
            again=again,
            made=ReadMade(settings, again, Metrics()),
            producer=producer,
            telling=producer,
            store=open_store(settings.resolved_store_url),
            clock=SystemClock(),
            settings=settings,
            metrics=Metrics(),
        )
    )
    running = asyncio.create_task(inbound.run())
    try:
        yield inbound
        assert not running.done() or running.result() is None
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        for part in (submissions, again, producer):
            await part.stop()


async def written(settings: Settings) -> tuple[list[BatchCreate], list[FileRecord]]:
    """All commands and file records on the log."""
    reader = TopicReader(settings, [BATCH_COMMAND, FILE])
    await reader.start("beginning")
    try:
        ends, found = await reader.ends(), []
        while any(reader.positions()[place] < end for place, end in ends.items()):
            found += [read.record for read in await reader.poll()]
    finally:
        await reader.stop()
    creates = [r for r in found if isinstance(r, BatchCreate)]
    return creates, [r for r in found if isinstance(r, FileRecord)]


async def test_a_bridge_killed_between_any_two_steps_makes_each_batch_once(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    steps = ("file_stored", "file_recorded", "batch_created", "accepted_told")
    await apply_topics(kafka_settings)
    await make_topics(kafka_settings)
    process: subprocess.Popen[bytes] | None = None
    try:
        async with service(kafka_settings) as tenant, results(kafka_settings) as told:
            # An older batch stays open, so that every start reads all the others again.
            await tenant.send(b"slow", line(0))
            for number, step in enumerate(steps):
                process = run(kafka_settings, tmp_path, f"bridge.{step}")
                await tenant.submit(b"quick", [line(number), line(number + 1)])
                assert await exit_code(process) == 137
            process = run(kafka_settings, tmp_path)
            await tenant.submit(b"slow", [line(9)], priority=3)
            await eventually(lambda: accepted(told, b"slow"), 30)
            quick, slow = await accepted(told, b"quick"), await accepted(told, b"slow")
    finally:
        if process is not None:
            process.kill()
            process.wait()
    creates, files = await written(kafka_settings)
    # What was created before the kill is not created again, nor is its file.
    assert sorted(c.batch_id for c in creates) == sorted({*quick, *slow})
    assert len(files) == len(creates) + 1
    assert len(quick) == len(steps)
    assert len(slow) == 1
    for create in creates:
        assert [c for c in creates if c.batch_id == create.batch_id and c != create] == []
        assert [
            f for f in files if f.file_id == create.input_file_id and f.object != create.input
        ] == []
    by_id = {c.batch_id: c for c in creates}
    assert [await stored(kafka_settings, by_id[b]) for b in quick] == [
        [line(n), line(n + 1)] for n in range(len(steps))
    ]
    made = by_id[slow[0]]
    assert (made.priority, made.kafka_key, made.tenant) == (3, "slow", "acme")
    assert await stored(kafka_settings, made) == [line(0), line(9)]


async def accepted(told: Results, key: bytes) -> list[str]:
    """The ids of the batches told as accepted, each once, in order."""
    await told.more()
    return list(dict.fromkeys(v["id"] for kind, v in told.of(key) if kind == "accepted"))


async def stored(settings: Settings, create: BatchCreate) -> list[bytes]:
    """The lines of the batch's input file."""
    assert create.input is not None
    data = await open_store(settings.resolved_store_url).get(create.input.key)
    assert len(data) == create.input.size_bytes
    return data.splitlines()


async def test_a_file_is_known_as_deleted_by_its_record_and_by_its_tombstone(
    kafka_settings: Settings,
) -> None:
    await apply_topics(kafka_settings, topics=[FILE])
    again, producer = ReadAgain(kafka_settings), RecordProducer(kafka_settings)
    made = ReadMade(kafka_settings, again, Metrics())
    now_ms = SystemClock().now_ms()
    file = FileRecord(
        file_id="file-1",
        tenant="acme",
        object=ObjectRef(key="k", size_bytes=1),
        filename="f",
        purpose="batch",
        created_at_ms=now_ms,
        expires_at_ms=None,
    )
    await producer.start()
    try:
        assert not await made.deleted("file-1", now_ms)
        known = []
        for record in (file, msgspec.structs.replace(file, deleted_at_ms=now_ms), None):
            await producer.send(FILE, "file-1", record)
            known.append(await made.deleted("file-1", now_ms))
        assert known == [False, True, True]
        assert not await made.deleted("file-2", now_ms)
    finally:
        await producer.stop()
        await again.stop()


#: By the record's key; b"\\xff" is no text.
_REFUSED = {
    None: "invalid_key",
    b"a": "invalid_op",
    b"b": "empty_batch",
    b"c": "file_too_large",
    b"d": "invalid_file_format",
    b"e": "invalid_value",
    b"f": "lines_missing",
    b"g": "unknown_parameter",
    b"h": "invalid_type",
}


async def test_hostile_records_are_told_and_stop_nobody(kafka_settings: Settings) -> None:
    settings = kafka_settings.model_copy(update={"max_batch_file_bytes": 2000})
    await apply_topics(settings)
    await make_topics(settings)
    async with bridge(settings):
        # A tenant whose topics are made while the bridge runs.
        await make_topics(settings, "late")
        async with (
            service(settings) as evil,
            service(settings, "late") as late,
            results(settings) as told,
            results(settings, "late") as late_told,
        ):
            await evil.send(None, b"no key")
            await evil.send(b"\xff", b"no text")
            await evil.send(b"a", b"{}", b"explode")
            await evil.send(b"b", b"{}", b"seal")
            await evil.send(b"c", b"x" * 3000)
            await evil.submit(b"d", [b"no json"])
            await evil.submit(b"e", [line(1)], completion_window="1s")
            await evil.submit(b"f", [line(1)], lines=2)
            await evil.submit(b"g", [line(1)], input_file_id="file-of-another")
            await evil.send(b"h", line(1))
            await evil.send(b"h", b"[1]", b"seal")
            await evil.submit(b"i", [line(1)])
            await late.submit(b"i", [line(2)])
            await eventually(lambda: accepted(late_told, b"i"), 30)
            # Partitions are read side by side: what was sent last is not what is told last.
            await eventually(lambda: all_told(told, b"abcdefghi"), 30)
            codes = {key: [refusal(v) for _, v in told.of(key)] for key in _REFUSED}
            assert codes == {key: [code] for key, code in _REFUSED.items()}
            assert {k for k, _ in late_told.of(b"i")} == {"accepted"}
    creates, _ = await written(settings)
    assert sorted((c.tenant, c.kafka_key) for c in creates) == [("acme", "i"), ("late", "i")]


async def test_records_that_the_client_cannot_read_stop_nobody_and_not_the_next_start(
    kafka_settings: Settings,
) -> None:
    await apply_topics(kafka_settings)
    await make_topics(kafka_settings, "evil")
    await make_topics(kafka_settings)
    topic = BATCH_IN.of("evil").full_name(kafka_settings.topic_prefix)
    seal = json.dumps(SEAL).encode()
    spoilt = with_bad_name(b"spoilt", [line(0), line(1)])
    for partition in range(BATCH_IN.partitions):
        for raw in (spoilt, with_bad_name(b"spoilt", [seal], [(OP, b"seal")])):
            await write(kafka_settings.kafka, topic, partition, raw)
        # A broker that unpacks for its topics would need these 700 MB itself, and has 512.
        for raw in (bomb(700 << 20), newer_snappy()):
            await write(kafka_settings.kafka, topic, partition, raw)
    async with (
        service(kafka_settings) as tenant,
        results(kafka_settings) as told,
        results(kafka_settings, "evil") as evil_told,
    ):
        for key in (b"first", b"second"):
            async with bridge(kafka_settings):
                await tenant.submit(key, [line(2)])
                await eventually(lambda key=key: accepted(told, key), 30)  # type: ignore[misc]
                await eventually(lambda: accepted(evil_told, b"spoilt"), 30)
    creates, _ = await written(kafka_settings)
    assert {(c.tenant, c.kafka_key) for c in creates} == {
        ("evil", "spoilt"),
        ("acme", "first"),
        ("acme", "second"),
    }


async def all_told(told: Results, keys: bytes) -> bool:
    """Whether something was told of each of these one-letter keys, and of no key."""
    await told.more()
    return all(told.of(bytes([key])) for key in keys) and bool(told.of(None))


def refusal(value: Any) -> str:
    """The code of a `rejected` record."""
    return str(value["error"]["code"])
