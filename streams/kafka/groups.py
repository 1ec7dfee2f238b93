"""What a consumer group is called, and how far it has committed."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    NotCoordinatorForGroupError,
)
from aiokafka.structs import OffsetAndMetadata

from schemas.topics import Topic
from streams.kafka.connection import NO_ANSWER, admin_client, partition_counts
from streams.settings import Settings

#: A fresh cluster makes its offsets topic at the first question about a group; that takes seconds.
_COORDINATOR_TIMEOUT_S = 30.0
_RETRY_S = 0.2
_COORDINATOR_MOVES = (
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    NotCoordinatorForGroupError,
)


def group_name(settings: Settings, role: str) -> str:
    """The consumer group of a role, which is also its Faust app's id."""
    return f"{settings.topic_prefix}-{role}"


def member_name(settings: Settings, role: str) -> str:
    """The static member id of this process in its role's group."""
    return f"{group_name(settings, role)}-{settings.instance}"


async def committed_offsets(settings: Settings, group: str, topic: Topic) -> dict[int, int]:
    """The group's next offset by partition; -1 where it has committed none.

    Raises BrokerUnreachable, TopicMissing.
    """
    full_name = topic.full_name(settings.topic_prefix)
    counts = await partition_counts(settings, {topic.name: full_name})
    # Some brokers can't list a group's partitions by themselves, so they are named.
    wanted = [TopicPartition(full_name, p) for p in counts[topic.name]]
    found = await committed_marks(settings, group, wanted)
    return {tp.partition: entry.offset for tp, entry in found.items()}


async def committed_marks(
    settings: Settings, group: str, wanted: Collection[TopicPartition]
) -> dict[TopicPartition, OffsetAndMetadata]:
    """The group's commits; offset -1 where it has committed none. Raises BrokerUnreachable."""
    if not wanted:
        return {}
    async with admin_client(settings) as admin:
        async with asyncio.timeout(_COORDINATOR_TIMEOUT_S):
            return await _ask_coordinator(admin, group, list(wanted))


async def _ask_coordinator(
    admin: AIOKafkaAdminClient, group: str, wanted: list[TopicPartition]
) -> dict[TopicPartition, OffsetAndMetadata]:
    while True:
        # The broker that is asked, or named as the coordinator, may be one that has just died.
        with suppress(*_COORDINATOR_MOVES, *NO_ANSWER):
            found = dict(await admin.list_consumer_group_offsets(group, partitions=wanted))
            # A coordinator that still loads answers nothing, and aiokafka passes over its reason.
            if len(found) == len(wanted):
                return found
        await asyncio.sleep(_RETRY_S)
