"""Creates the topics of the topic table and reports where a cluster differs from it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from schemas.topics import (
    DLQ_RETENTION_S,
    DLQ_SUFFIX,
    GROUP_TOPICS,
    MAX_RECORD_BYTES,
    TOPICS,
    Cleanup,
    Topic,
)
from streams.kafka.connection import admin_client
from streams.kafka.errors import KafkaBaseError, TopicsDiffer
from streams.settings import Settings

log = structlog.get_logger(__name__)

#: A changelog is not compacted for so long, so that recovery can compare rows (tables.py).
CHANGELOG_COMPACTION_LAG_S = 3600
#: Kafka compacts closed segments only, and whoever starts reads everything: with its defaults of
#: a gigabyte and a week that would be mostly what was overwritten since.
_COMPACTED_SEGMENT_BYTES = 64 * 1024 * 1024
_COMPACTED_SEGMENT_S = 6 * 3600
#: A read model that was away for longer than tombstones live must be rebuilt.
TOMBSTONE_LIFE_S = 24 * 3600
#: How long a new topic may take until all brokers know it.
_VISIBLE_WITHIN_S = 30.0
_VISIBLE_POLL_S = 0.05
#: With this many replicas or more, a write needs two of them.
_REPLICAS_FOR_TWO = 2


@dataclass(frozen=True, kw_only=True)
class TopicWanted:
    """A topic as it should be on the cluster."""

    topic: Topic
    full_name: str
    partitions: int
    replicas: int
    configs: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class TopicState:
    """A topic as it should be, as it is, and the differences in words.

    partitions, replicas: None where the topic doesn't exist. drift: empty when all is well.
    """

    wanted: TopicWanted
    partitions: int | None
    replicas: int | None
    drift: tuple[str, ...]


def wanted_topics(
    settings: Settings,
    partitions: Mapping[str, int] | None = None,
    topics: Sequence[Topic] = TOPICS,
) -> tuple[TopicWanted, ...]:
    """Each topic, with its dead-letter topic if it has one; `partitions` overrides by its name."""
    overrides = partitions or {}
    found: list[TopicWanted] = []
    for topic in topics:
        count = overrides.get(topic.name, topic.partitions)
        found.append(_wanted(settings, topic, count))
        if topic in GROUP_TOPICS:
            found.append(_wanted(settings, dead_letter_topic(topic), 1))
    return tuple(found)


def dead_letter_topic(topic: Topic) -> Topic:
    """The topic that takes `topic`'s undecodable records, key, value and headers verbatim."""
    return replace(
        topic,
        name=topic.name + DLQ_SUFFIX,
        key="",
        partitions=1,
        cleanup=Cleanup.DELETE,
        retention_s=DLQ_RETENTION_S,
        compaction_lag_s=None,
        why=f"Records of {topic.name} that could not be read, with the reason in their headers.",
    )


def _wanted(settings: Settings, topic: Topic, partitions: int) -> TopicWanted:
    configs = _common_configs(settings, topic.cleanup)
    if topic.retention_s is not None:
        configs["retention.ms"] = str(topic.retention_s * 1000)
    if topic.compaction_lag_s is not None:
        configs["min.compaction.lag.ms"] = str(topic.compaction_lag_s * 1000)
    if topic.stamped:
        configs["message.timestamp.type"] = "LogAppendTime"
    return TopicWanted(
        topic=topic,
        full_name=topic.full_name(settings.topic_prefix),
        partitions=partitions,
        replicas=settings.kafka_replicas,
        configs=configs,
    )


async def show_topics(
    settings: Settings, partitions: Mapping[str, int] | None = None
) -> list[TopicState]:
    """The state of every topic of the table. Raises BrokerUnreachable."""
    async with admin_client(settings) as admin:
        return await _states(admin, wanted_topics(settings, partitions))


async def apply_topics(
    settings: Settings,
    partitions: Mapping[str, int] | None = None,
    topics: Sequence[Topic] = TOPICS,
) -> list[str]:
    """Creates what is missing and grows unkeyed topics; says what it did, in words.

    Settings of topics that exist are not touched: `show_topics` reports them, and an operator
    may have had reasons. Raises TopicsDiffer, before any change, if a keyed topic has another
    partition count than wanted, since its keys' partitions would move.
    """
    async with admin_client(settings) as admin:
        states = await _states(admin, wanted_topics(settings, partitions, topics))
        _refuse_moved_keys(states)
        missing = [s.wanted for s in states if s.partitions is None]
        changes = await _create(admin, missing)
        for state in states:
            if state.partitions is not None and state.partitions < state.wanted.partitions:
                await _grow(admin, state.wanted)
                changes.append(
                    f"grew {state.wanted.full_name} from {state.partitions} to "
                    f"{state.wanted.partitions} partitions"
                )
        if changes or missing:
            wanted = [s.wanted for s in states]
            await _until_led(admin, {t.full_name: t.partitions for t in wanted})
    for change in changes:
        log.info("A topic was changed.", action="topic_changed", change=change)
    return changes


async def ensure_changelog(settings: Settings, full_name: str, partitions: int) -> None:
    """Creates a table's changelog if it is missing. Raises TopicsDiffer, BrokerUnreachable."""
    configs = _common_configs(settings, Cleanup.COMPACT) | {
        "min.compaction.lag.ms": str(CHANGELOG_COMPACTION_LAG_S * 1000),
    }
    new = NewTopic(full_name, partitions, settings.kafka_replicas, topic_configs=configs)
    async with admin_client(settings) as admin:
        await _send_create(admin, [new])
        (found,) = (await _until_led(admin, {full_name: 1})).values()
    if found != partitions:
        raise TopicsDiffer(
            f"{full_name} has {found} partitions, but the topic that the table follows has "
            f"{partitions}; they must be equal."
        )


def _refuse_moved_keys(states: list[TopicState]) -> None:
    moved = [
        f"{s.wanted.full_name} has {s.partitions} partitions, not {s.wanted.partitions}"
        for s in states
        if s.wanted.topic.keyed and s.partitions not in (None, s.wanted.partitions)
    ]
    if moved:
        raise TopicsDiffer(
            f"{'; '.join(moved)}. A keyed topic's partition count can't change, since keys would "
            "move: keep the count, or drain into a new version of the topic."
        )


def _common_configs(settings: Settings, cleanup: Cleanup) -> dict[str, str]:
    configs = {"cleanup.policy": cleanup.value, "max.message.bytes": str(MAX_RECORD_BYTES)}
    if cleanup is Cleanup.COMPACT:
        configs |= {
            "segment.bytes": str(_COMPACTED_SEGMENT_BYTES),
            "segment.ms": str(_COMPACTED_SEGMENT_S * 1000),
            "delete.retention.ms": str(TOMBSTONE_LIFE_S * 1000),
        }
    if settings.kafka_replicas >= _REPLICAS_FOR_TWO:
        configs["min.insync.replicas"] = "2"
    return configs


async def _create(admin: AIOKafkaAdminClient, wanted: list[TopicWanted]) -> list[str]:
    if not wanted:
        return []
    new = [
        NewTopic(t.full_name, t.partitions, t.replicas, topic_configs=dict(t.configs))
        for t in wanted
    ]
    return [f"created {full_name}" for full_name in await _send_create(admin, new)]


async def _send_create(admin: AIOKafkaAdminClient, new: list[NewTopic]) -> list[str]:
    """Creates topics; the names of those that did not exist before."""
    answer = await admin.create_topics(new)
    created = []
    for full_name, code, *reason in answer.topic_errors:
        error = for_code(code)
        if code == 0:
            created.append(full_name)
        # Another process that creates the same topic at the same time is welcome.
        elif error is not TopicAlreadyExistsError:
            raise KafkaBaseError(
                f"{full_name} could not be created: {reason[0] if reason else error.__name__}"
            )
    return created


async def _until_led(admin: AIOKafkaAdminClient, wanted: Mapping[str, int]) -> dict[str, int]:
    """Waits until brokers know these topics, with at least so many led partitions; how many.

    A topic's creation is answered before every broker has heard of it.
    """
    give_up = time.monotonic() + _VISIBLE_WITHIN_S
    while True:
        described = await admin.describe_topics(list(wanted))
        led = {
            t["topic"]: len(t["partitions"])
            for t in described
            if t["partitions"] and all(p["leader"] >= 0 for p in t["partitions"])
        }
        if all(led.get(name, 0) >= count for name, count in wanted.items()):
            return led
        if time.monotonic() > give_up:
            waiting = sorted(n for n, count in wanted.items() if led.get(n, 0) < count)
            raise KafkaBaseError(f"The brokers do not show these topics: {', '.join(waiting)}.")
        await asyncio.sleep(_VISIBLE_POLL_S)


async def _grow(admin: AIOKafkaAdminClient, wanted: TopicWanted) -> None:
    # With Kafka's placement of the new replicas.
    await admin.create_partitions({wanted.full_name: NewPartitions(wanted.partitions, None)})


async def _states(admin: AIOKafkaAdminClient, wanted: tuple[TopicWanted, ...]) -> list[TopicState]:
    existing = {t["topic"]: t["partitions"] for t in await admin.describe_topics()}
    present = [t.full_name for t in wanted if t.full_name in existing]
    configs = await _configs(admin, present)
    states = []
    for topic in wanted:
        found = existing.get(topic.full_name)
        count = None if found is None else len(found)
        replicas = None if found is None else min(len(p["replicas"]) for p in found)
        drift = _drift(topic, count, replicas, configs.get(topic.full_name))
        states.append(TopicState(wanted=topic, partitions=count, replicas=replicas, drift=drift))
    return states


def _drift(
    wanted: TopicWanted,
    partitions: int | None,
    replicas: int | None,
    configs: Mapping[str, str] | None,
) -> tuple[str, ...]:
    if partitions is None:
        return ("missing",)
    found = []
    if partitions != wanted.partitions:
        found.append(f"{partitions} partitions, not {wanted.partitions}")
    if replicas is not None and replicas < wanted.replicas:
        found.append(f"{replicas} replicas, not {wanted.replicas}")
    for name, value in wanted.configs.items():
        if configs is not None and configs.get(name) != value:
            found.append(f"{name}={configs.get(name)}, not {value}")
    return tuple(found)


async def _configs(admin: AIOKafkaAdminClient, full_names: list[str]) -> dict[str, dict[str, str]]:
    """The settings of these topics by full name; empty where the broker can't tell."""
    if not full_names:
        return {}
    try:
        answers = await admin.describe_configs(
            [ConfigResource(ConfigResourceType.TOPIC, name) for name in full_names]
        )
    # The in-memory broker's answer doesn't decode; then only the partitions are compared.
    except (KafkaError, ValueError, NotImplementedError) as error:
        log.warning(
            "The broker doesn't tell its topics' settings; they are not compared.",
            action="topic_configs_unknown",
            error=type(error).__name__,
        )
        return {}
    return {
        resource[3]: {entry[0]: entry[1] for entry in resource[4]}
        for answer in answers
        for resource in answer.resources
        if resource[0] == 0
    }
