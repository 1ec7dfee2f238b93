"""The webhook-worker as a process on a real broker: retries, and a kill between send and row."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from schemas.records import BatchEnded, BatchStatus, DeliveryState, WebhookDelivery
from schemas.topics import WEBHOOK, WEBHOOK_DELIVERY, WEBHOOK_EVENT
from streams.domain.webhooks.events import event_id
from streams.kafka.admin import apply_topics
from streams.kafka.errors import TopicMissing
from streams.kafka.producer import RecordProducer
from streams.kafka.reader import TopicReader
from streams.settings import Settings
from tests.support.lines import exit_code
from tests.support.waiting import eventually
from tests.support.webhooks import endpoint, receiving

pytestmark = pytest.mark.kafka


def run(settings: Settings, folder: Path, failpoint: str = "") -> subprocess.Popen[bytes]:
    env = {
        **os.environ,
        "BACKHAUL_KAFKA": settings.kafka,
        "BACKHAUL_KAFKA_REPLICAS": "1",
        "BACKHAUL_KAFKA_IDEMPOTENCE": str(settings.kafka_idempotence),
        "BACKHAUL_SESSION_TIMEOUT_S": str(settings.session_timeout_s),
        "BACKHAUL_TOPIC_PREFIX": settings.topic_prefix,
        "BACKHAUL_DATA_DIR": str(settings.data_dir),
        "BACKHAUL_FAILPOINT": failpoint,
        "BACKHAUL_WEBHOOK_ALLOW_PRIVATE": "true",
        "BACKHAUL_WEBHOOK_RETRY_AFTER_S": "[0.2, 0.2, 0.2, 0.2]",
    }
    with (folder / "webhook-worker.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "streams", "webhook-worker"], env=env, stderr=log
        )


async def test_an_event_is_tried_until_taken_and_has_one_id_through_a_kill(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    settings = kafka_settings.model_copy(update={"session_timeout_s": 6.0})
    await apply_topics(settings, {})
    producer, reader = RecordProducer(settings), TopicReader(settings, [WEBHOOK_DELIVERY])
    await producer.start()

    async def started() -> bool:
        try:
            await reader.start("beginning")
        except TopicMissing:
            return False
        return True

    await eventually(started, 10, "the broker knows the new topics")
    log: dict[str, WebhookDelivery] = {}

    async def ended(batch_id: str) -> bool:
        for read in await reader.poll():
            if isinstance(read.record, WebhookDelivery):
                log[read.record.object_id] = read.record
        return batch_id in log and log[batch_id].state is not DeliveryState.PENDING

    async def end(batch_id: str) -> None:
        event = BatchEnded(
            batch_id=batch_id,
            tenant="acme",
            status=BatchStatus.COMPLETED,
            at_ms=time.time_ns() // 1_000_000,
        )
        await producer.send(WEBHOOK_EVENT, "acme", event)

    processes = []
    try:
        async with receiving(500, 500) as receiver:
            await producer.send(WEBHOOK, "we_1", endpoint(receiver.url))
            await end("batch_1")
            # The third attempt is taken; the fourth POST, of another batch, is the worker's last.
            processes.append(run(settings, tmp_path, "webhook.sent:4"))
            await eventually(lambda: ended("batch_1"), 40)
            first = event_id("batch_1", "batch.completed")
            assert receiver.got == [(first, "batch.completed", "batch_1")] * 3
            assert log["batch_1"].state is DeliveryState.DELIVERED
            assert (log["batch_1"].attempts, log["batch_1"].status_code) == (3, 200)

            await end("batch_2")
            assert await exit_code(processes[0]) == 137
            processes.append(run(settings, tmp_path))
            await eventually(lambda: ended("batch_2"), 40)
            second = event_id("batch_2", "batch.completed")
            assert receiver.accepted == [first, second, second], "the same id, for who counts"
            assert log["batch_2"].attempts == 1, "nobody wrote the attempt that was cut off"
    finally:
        for process in processes:
            process.kill()
            process.wait()
        await producer.stop()
        await reader.stop()
