"""Puts the bridge together, and runs it: the only module of it that knows the real adapters."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, AsyncExitStack

import structlog

from api.bridge.delivery import Sender
from api.bridge.inbound import Inbound, Parts
from api.bridge.kafka import ReadAgain, ReadMade, TenantTopics
from api.bridge.lane_out import LaneParts
from api.bridge.outbound import Outbound
from api.process import cancelled, until_stopped
from schemas.metrics import Metrics
from schemas.topics import BATCH_STATUS
from streams.adapters.object_store import open_store
from streams.domain.clock import SystemClock
from streams.kafka.exact import part_sender
from streams.kafka.group_reader import GroupReader, TopicPart
from streams.kafka.health import HealthServer
from streams.kafka.producer import RecordProducer
from streams.ports.object_store import ObjectStore
from streams.settings import Settings

log = structlog.get_logger(__name__)

#: The part of its group's name that stands for the half that writes results.
RESULTS_ROLE = "bridge-out"


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Runs the bridge until `stop` is set. Raises KafkaBaseError, ObjectStoreError, OSError."""
    store = open_store(settings.resolved_store_url)
    metrics = Metrics().with_process()
    ready = asyncio.Event()
    async with AsyncExitStack() as stack:
        health = HealthServer(settings, metrics, lambda: None if ready.is_set() else "kafka")
        stack.push_async_callback(health.stop)
        await health.start()
        producer = RecordProducer(settings, metrics=metrics)
        stack.push_async_callback(producer.stop)
        await producer.start()
        telling = RecordProducer(_giving_up(settings), metrics=metrics)
        stack.push_async_callback(telling.stop)
        await telling.start()
        submissions = TenantTopics(settings)
        stack.push_async_callback(submissions.stop)
        await submissions.start()
        again = ReadAgain(settings)
        stack.push_async_callback(again.stop)
        inbound = Inbound(
            Parts(
                submissions=submissions,
                again=again,
                made=ReadMade(settings, again, metrics),
                producer=producer,
                telling=telling,
                store=store,
                clock=SystemClock(),
                settings=settings,
                metrics=metrics,
            )
        )
        taking = asyncio.create_task(inbound.run(), name="inbound")
        stack.push_async_callback(cancelled, taking)
        statuses = GroupReader(
            settings, RESULTS_ROLE, topics=[BATCH_STATUS.full_name(settings.topic_prefix)]
        )
        stack.push_async_callback(statuses.stop)
        await statuses.start()
        outbound = Outbound(statuses, lane_parts(settings, again, store, metrics))
        giving = asyncio.create_task(outbound.run(), name="outbound")
        stack.push_async_callback(cancelled, giving)
        ready.set()
        log.info("The bridge reads tenants' topics.", action="bridge_ready")
        await until_stopped(stop, taking, giving)
        log.info("The bridge stops.", action="bridge_stopping")


def _giving_up(settings: Settings) -> Settings:
    """Settings of a producer whose sends end in time, also where a topic takes nothing.

    An idempotent one would try for ever, and what it gave up would break its sequence.
    """
    return settings.model_copy(update={"kafka_idempotence": False})


def lane_parts(
    settings: Settings, again: ReadAgain, store: ObjectStore, metrics: Metrics
) -> LaneParts:
    """What the writing half's lanes are made of, on a real broker."""

    def sender(part: TopicPart, tenant: str) -> AbstractAsyncContextManager[Sender]:
        return part_sender(settings, f"{RESULTS_ROLE}-{tenant}", part)

    return LaneParts(again=again, open=sender, store=store, clock=SystemClock(), metrics=metrics)
