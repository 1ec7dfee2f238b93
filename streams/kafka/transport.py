"""Faust's aiokafka transport with what it gets wrong put right.

Transport
├── consumer.GroupConsumer           reads in batches, commits only what is finished
│   └── consumer_thread.ConsumerThread   our connection, sticky partitions, fence
└── changelog.ChangelogProducer      idempotent, and a flush that drains
"""

from __future__ import annotations

from typing import cast

from faust.transport.consumer import Fetcher
from faust.transport.drivers import aiokafka as driver
from mode import Service

from streams.kafka.changelog import ChangelogProducer
from streams.kafka.consumer import GroupConsumer


class _Fetcher(Fetcher):
    """Runs the consumer's reading; a stop in mid-rebalance is no crash."""

    mundane_level = "debug"

    @Service.task
    async def _fetcher(self) -> None:
        try:
            await cast("GroupConsumer", self.app.consumer)._drain_messages(self)
        finally:
            self.set_shutdown()


class Transport(driver.Transport):
    """Makes our consumer and producer for a RoleApp."""

    Consumer = GroupConsumer
    Producer = ChangelogProducer
    Fetcher = _Fetcher
