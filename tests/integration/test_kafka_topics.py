"""Topics, offsets and identities on a real broker."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka.admin import NewTopic

from schemas.records import BatchCancel, FileRecord, ObjectRef
from schemas.topics import BATCH_COMMAND, BATCH_EVENT, FILE, LINE_READY, TOPICS
from streams.kafka.admin import apply_topics, ensure_changelog, show_topics
from streams.kafka.connection import admin_client, partition_counts
from streams.kafka.errors import RecordTooLarge, SendFailed, TopicMissing, TopicsDiffer
from streams.kafka.groups import committed_offsets
from streams.kafka.identity import cluster_identity
from streams.kafka.producer import MAX_VALUE_BYTES, RecordProducer
from streams.kafka.reader import ReadRecord, TopicReader
from streams.settings import Settings
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kafka, pytest.mark.real_kafka]


def _file(file_id: str, filename: str = "f") -> FileRecord:
    return FileRecord(
        file_id=file_id,
        tenant="t",
        object=ObjectRef(key="k", size_bytes=1),
        filename=filename,
        purpose="batch",
        created_at_ms=1,
    )


async def _read_to_end(reader: TopicReader) -> list[ReadRecord]:
    ends = await reader.ends()
    found: list[ReadRecord] = []

    async def at_end() -> bool:
        found.extend(await reader.poll())
        return reader.positions() == ends

    await eventually(at_end)
    return found


async def test_topics_are_made_once_and_then_as_the_table_wants_them(
    kafka_settings: Settings,
) -> None:
    assert len(await apply_topics(kafka_settings)) == len(await show_topics(kafka_settings))
    assert await apply_topics(kafka_settings) == []
    assert [s for s in await show_topics(kafka_settings) if s.drift] == []


async def test_before_they_are_made_all_topics_are_shown_as_missing(
    kafka_settings: Settings,
) -> None:
    assert {s.drift for s in await show_topics(kafka_settings)} == {("missing",)}
    with pytest.raises(TopicMissing, match="backhaul topics apply"):
        await partition_counts(kafka_settings, {"x": FILE.full_name(kafka_settings.topic_prefix)})


async def test_processes_that_apply_at_once_do_not_disturb_each_other(
    kafka_settings: Settings,
) -> None:
    changes = await asyncio.gather(*(apply_topics(kafka_settings) for _ in range(3)))
    assert len({c for some in changes for c in some}) == sum(map(len, changes))


async def test_an_unkeyed_topic_grows_and_a_keyed_one_is_refused(kafka_settings: Settings) -> None:
    await apply_topics(kafka_settings)
    changes = await apply_topics(kafka_settings, {LINE_READY.name: 12})
    assert "from 8 to 12 partitions" in changes[0]
    with pytest.raises(TopicsDiffer, match="can't change"):
        await apply_topics(kafka_settings, {BATCH_EVENT.name: 12})


async def test_drift_of_settings_is_reported_and_not_changed(kafka_settings: Settings) -> None:
    full_name = FILE.full_name(kafka_settings.topic_prefix)
    async with admin_client(kafka_settings) as admin:
        await admin.create_topics(
            [NewTopic(full_name, FILE.partitions, 1, topic_configs={"cleanup.policy": "delete"})]
        )
    for _ in range(2):
        await apply_topics(kafka_settings)
        (state,) = [s for s in await show_topics(kafka_settings) if s.wanted.topic is FILE]
        assert "cleanup.policy=delete, not compact" in state.drift


async def test_a_changelog_with_another_count_than_its_source_is_refused(
    kafka_settings: Settings,
) -> None:
    name = f"{kafka_settings.topic_prefix}-x-changelog"
    await ensure_changelog(kafka_settings, name, 3)
    await ensure_changelog(kafka_settings, name, 3)
    with pytest.raises(TopicsDiffer, match="must be equal"):
        await ensure_changelog(kafka_settings, name, 4)


async def test_a_topic_made_anew_has_another_identity(kafka_settings: Settings) -> None:
    await apply_topics(kafka_settings)
    before = await cluster_identity(kafka_settings, TOPICS)
    assert before.cluster_id
    assert set(before.topic_ids) == {t.name for t in TOPICS}
    assert len(set(before.topic_ids.values())) == len(TOPICS)
    full_name = FILE.full_name(kafka_settings.topic_prefix)
    async with admin_client(kafka_settings) as admin:
        await admin.delete_topics([full_name])

        async def gone() -> bool:
            return full_name not in await admin.list_topics()

        await eventually(gone)
    await apply_topics(kafka_settings)
    after = await cluster_identity(kafka_settings, TOPICS)
    changed = {n for n in before.topic_ids if before.topic_ids[n] != after.topic_ids[n]}
    assert changed == {FILE.name}


async def test_what_was_sent_is_read_with_its_key_its_place_and_its_end(
    kafka_settings: Settings,
) -> None:
    await apply_topics(kafka_settings)
    producer = RecordProducer(kafka_settings)
    await producer.start()
    place = await producer.send(FILE, "file-1", _file("file-1"))
    end = await producer.send(FILE, "file-1", None)
    assert (end.partition, end.offset) == (place.partition, place.offset + 1)
    full_name = FILE.full_name(kafka_settings.topic_prefix)
    await producer.send_raw(full_name, place.partition, b"k", b"not ours")
    reader = TopicReader(kafka_settings, [FILE])
    await reader.start()
    first, second = await _read_to_end(reader)
    assert (first.key, first.record, first.offset) == ("file-1", _file("file-1"), place.offset)
    assert (second.record, second.offset) == (None, end.offset)
    positions = reader.positions()
    await reader.stop()
    await producer.send(FILE, "file-2", _file("file-2"))
    await reader.start(positions)
    assert [r.key for r in await _read_to_end(reader)] == ["file-2"]
    await reader.stop()
    await producer.stop()


@pytest.mark.real_kafka
async def test_reading_may_begin_at_a_time(kafka_settings: Settings) -> None:
    await apply_topics(kafka_settings)
    producer, reader = RecordProducer(kafka_settings), TopicReader(kafka_settings, [FILE])
    await producer.start()
    for number in range(20):
        await producer.send(FILE, f"file-{number}", _file(f"file-{number}"))
        await asyncio.sleep(0.001)
    await reader.start()
    found = await _read_to_end(reader)
    for at_ms in (found[0].timestamp_ms, found[-1].timestamp_ms, found[-1].timestamp_ms + 1000):
        await reader.go_to(at_ms)
        wanted = {read.key for read in found if read.timestamp_ms >= at_ms}
        assert {read.key for read in await _read_to_end(reader)} == wanted
    await reader.stop()
    await producer.stop()


async def test_the_largest_record_fits_and_a_larger_one_is_refused_before_it_is_sent(
    kafka_settings: Settings,
) -> None:
    await apply_topics(kafka_settings)
    producer = RecordProducer(kafka_settings)
    await producer.start()
    await producer.send(FILE, "f", _file("f", "x" * (MAX_VALUE_BYTES - 200)))
    with pytest.raises(RecordTooLarge):
        await producer.send(FILE, "f", _file("f", "x" * MAX_VALUE_BYTES))
    await producer.send(FILE, "f", _file("f"))
    await producer.stop()
    with pytest.raises(SendFailed):
        await producer.send(FILE, "f", _file("f"))


async def test_a_partition_that_does_not_exist_is_an_error_not_a_hang(
    kafka_settings: Settings,
) -> None:
    await apply_topics(kafka_settings)
    producer = RecordProducer(kafka_settings)
    await producer.start()
    cancel = BatchCancel(command_id="c", batch_id="b", tenant="t", at_ms=1)
    with pytest.raises(SendFailed):
        await producer.send_to(BATCH_COMMAND, 99, cancel)
    await producer.stop()


async def test_a_group_that_never_committed_has_no_offsets(kafka_settings: Settings) -> None:
    await apply_topics(kafka_settings)
    found = await committed_offsets(kafka_settings, f"{kafka_settings.topic_prefix}-none", FILE)
    assert found == dict.fromkeys(range(FILE.partitions), -1)
