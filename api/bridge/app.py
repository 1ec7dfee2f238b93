"""Puts the bridge together, and runs it: the only module of it that knows the real adapters."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import structlog

from api.bridge.inbound import Inbound, Parts
from api.bridge.kafka import ReadAgain, TenantTopics
from api.process import cancelled, until_stopped
from schemas.metrics import Metrics
from streams.adapters.object_store import open_store
from streams.domain.clock import SystemClock
from streams.kafka.health import HealthServer
from streams.kafka.producer import RecordProducer
from streams.settings import Settings

log = structlog.get_logger(__name__)


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
        submissions = TenantTopics(settings)
        stack.push_async_callback(submissions.stop)
        await submissions.start()
        again = ReadAgain(settings)
        stack.push_async_callback(again.stop)
        inbound = Inbound(
            Parts(
                submissions=submissions,
                again=again,
                producer=producer,
                store=store,
                clock=SystemClock(),
                settings=settings,
                metrics=metrics,
            )
        )
        taking = asyncio.create_task(inbound.run(), name="inbound")
        stack.push_async_callback(cancelled, taking)
        ready.set()
        log.info("The bridge reads tenants' topics.", action="bridge_ready")
        await until_stopped(stop, taking)
        log.info("The bridge stops.", action="bridge_stopping")
