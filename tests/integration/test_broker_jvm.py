"""Apache Kafka on the local JVM keeps its data and its address over kill -9."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from api.up.broker import BrokerUnavailableError
from api.up.jars import jars_available, java_binary
from api.up.jvm import JvmBroker


@pytest.fixture
def _jvm() -> None:
    """Where Java or Maven is missing these tests skip; CI has both and must run them."""
    try:
        java_binary()
        jars_available()
    except BrokerUnavailableError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


async def _write(bootstrap: str, topic: str, value: bytes) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, 1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True, acks="all")
    await producer.start()
    await producer.send_and_wait(topic, value)
    await producer.stop()


async def _read(bootstrap: str, topic: str) -> bytes:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    consumer.assign([TopicPartition(topic, 0)])
    record = await consumer.getone()
    await consumer.stop()
    assert isinstance(record.value, bytes)
    return record.value


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("_jvm")
async def test_a_killed_broker_comes_back_at_its_port_with_its_records(tmp_path: Path) -> None:
    first = JvmBroker(tmp_path)
    await first.start()
    try:
        await _write(first.bootstrap, "kept", b"still here")
    finally:
        first.kill()
    second = JvmBroker(tmp_path)
    await second.start()
    try:
        assert second.bootstrap == first.bootstrap
        assert await _read(second.bootstrap, "kept") == b"still here"
    finally:
        await second.stop(30)
    assert not second.running


@pytest.mark.usefixtures("_jvm")
async def test_without_cached_jars_and_maven_the_jvm_is_not_to_be_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    java = java_binary()
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "mvn" else str(java))
    monkeypatch.setenv("XDG_CACHE_HOME", "/nonexistent")
    with pytest.raises(BrokerUnavailableError, match="mvn"):
        jars_available()
