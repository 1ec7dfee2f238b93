"""The broker that tests run on: an existing one, Docker, the JVM, or (not in CI) memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from aiokafka.admin import AIOKafkaAdminClient

from api.up.broker import ABILITIES, Abilities, Broker, BrokerError
from api.up.docker import DockerBroker
from api.up.external import ExternalBroker
from api.up.ladder import LADDER, start_best
from streams.settings import Settings

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine from a fixture without touching pytest-asyncio's event loop."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(coroutine)


@dataclass(frozen=True, slots=True)
class TestBroker:
    """A running broker and what it can do."""

    __test__ = False
    broker: Broker

    @property
    def bootstrap(self) -> str:
        """Its address."""
        return self.broker.bootstrap

    @property
    def abilities(self) -> Abilities:
        """What it can do."""
        return self.broker.abilities


async def start_test_broker(folder: Path) -> TestBroker:
    """Climbs the ladder. Raises BrokerError where CI has no real Kafka."""
    named = os.environ.get("BACKHAUL_KAFKA")
    if named:
        broker = ExternalBroker(Settings(kafka=named))
        await broker.start()
        return TestBroker(broker)
    kinds = [k for k in LADDER if ABILITIES[k].real] if os.environ.get("CI") else LADDER
    try:
        climb = await start_best(folder, lambda _: None, kinds)
    except BrokerError as error:
        if os.environ.get("CI"):
            raise BrokerError(
                f"CI must test on a real Apache Kafka. {error} "
                "(The in-memory broker does not count in CI.)"
            ) from error
        raise
    return TestBroker(climb.broker)


async def stop_test_broker(started: TestBroker) -> None:
    """Ends it at once: nobody needs its data."""
    if isinstance(started.broker, DockerBroker):
        await started.broker.forget()
    started.broker.kill()


async def delete_topics(bootstrap: str, prefix: str) -> None:
    """Deletes the topics of one test, changelogs included."""
    client = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await client.start()
    try:
        names = [
            n for n in await client.list_topics() if n.startswith((f"{prefix}.", f"{prefix}-"))
        ]
        if names:
            await client.delete_topics(names)
    finally:
        await client.close()
