"""What tests of the bridge share: a producer as a tenant's service would write it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord

from schemas.headers import KIND, OP
from schemas.topics import BATCH_IN, BATCH_OUT
from streams.kafka.admin import apply_topics
from streams.settings import Settings

TENANT = "acme"
SEAL = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}


def line(number: int) -> bytes:
    """A line of a batch."""
    messages = [{"role": "user", "content": f"Hello {number}"}]
    body = {"model": "sim", "messages": messages}
    return json.dumps(
        {"custom_id": f"c-{number}", "method": "POST", "url": SEAL["endpoint"], "body": body}
    ).encode()


async def make_topics(settings: Settings, tenant: str = TENANT) -> None:
    """As `backhaul topics tenant` does."""
    await apply_topics(settings, topics=[BATCH_IN.of(tenant), BATCH_OUT.of(tenant)])


class Service:
    """A tenant's service that speaks Kafka and nothing else."""

    def __init__(self, producer: AIOKafkaProducer, prefix: str, tenant: str) -> None:
        self._producer = producer
        self._topic = BATCH_IN.of(tenant).full_name(prefix)

    async def send(self, key: bytes | None, value: bytes | None, op: bytes | None = None) -> None:
        """One record."""
        headers = [] if op is None else [(OP, op)]
        await self._producer.send_and_wait(self._topic, value, key=key, headers=headers)

    async def submit(self, key: bytes, texts: Sequence[bytes], /, **seal: Any) -> None:
        """A whole batch."""
        for text in texts:
            await self.send(key, text)
        await self.send(key, json.dumps(SEAL | seal).encode(), b"seal")


@asynccontextmanager
async def service(settings: Settings, tenant: str = TENANT) -> AsyncIterator[Service]:
    """A connected Service."""
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka)
    await producer.start()
    try:
        yield Service(producer, settings.topic_prefix, tenant)
    finally:
        await producer.stop()


class Results:
    """What the tenant is told, in the order of reading. records: all so far."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer
        self.records: list[ConsumerRecord] = []

    async def more(self) -> list[ConsumerRecord]:
        """All, with what is new."""
        for records in (await self._consumer.getmany(timeout_ms=100)).values():
            self.records += records
        return self.records

    def of(self, key: bytes | None) -> list[tuple[str, Any]]:
        """Kind and value of the records with this key."""
        return [(kind_of(r), json.loads(r.value)) for r in self.records if r.key == key]


def kind_of(record: ConsumerRecord) -> str:
    """The record's kind."""
    return str(dict(record.headers)[KIND].decode())


@asynccontextmanager
async def results(settings: Settings, tenant: str = TENANT) -> AsyncIterator[Results]:
    """A reader of the tenant's results, from their beginning."""
    consumer = AIOKafkaConsumer(
        BATCH_OUT.of(tenant).full_name(settings.topic_prefix),
        bootstrap_servers=settings.kafka,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    await consumer.start()
    try:
        yield Results(consumer)
    finally:
        await consumer.stop()
