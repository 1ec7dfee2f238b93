"""Which cluster this is and which incarnation of each topic, so that a read model notices when
its stored offsets belong to something else.

aiokafka's Metadata request stops at version 5; topic ids came with version 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from uuid import UUID

from aiokafka.errors import IncompatibleBrokerVersion
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from schemas.topics import Topic
from streams.kafka.connection import admin_client
from streams.settings import Settings

_METADATA = 3
_TOPIC_IDS_SINCE = 10
_UUID_BYTES = 16


@dataclass(frozen=True, slots=True)
class ClusterIdentity:
    """cluster_id: '' where the broker has none. topic_ids: by Topic.name; '' where unknown."""

    cluster_id: str
    topic_ids: dict[str, str]


class _Uuid:
    """Kafka's 16-byte UUID, as a protocol type of aiokafka's."""

    @staticmethod
    def encode(value: UUID) -> bytes:
        return value.bytes

    @staticmethod
    def decode(data: BytesIO) -> UUID:
        return UUID(bytes=data.read(_UUID_BYTES))

    @staticmethod
    def repr(value: UUID) -> str:
        return str(value)


class _MetadataResponseV10(Response):  # type: ignore[misc]  # aiokafka has no types
    API_KEY = _METADATA
    API_VERSION = _TOPIC_IDS_SINCE
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _MetadataRequestV10(RequestStruct):  # type: ignore[misc]  # aiokafka has no types
    API_KEY = _METADATA
    API_VERSION = _TOPIC_IDS_SINCE
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _MetadataResponseV10
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(
                ("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields)
            ),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _TopicIdRequest(Request[_MetadataRequestV10]):  # type: ignore[misc]
    API_KEY = _METADATA

    def __init__(self, full_names: Sequence[str]) -> None:
        self._full_names = full_names

    def build(self, request_struct_class: type[_MetadataRequestV10]) -> Any:
        topics: list[Any] = [(UUID(int=0), name, {}) for name in self._full_names]
        return request_struct_class(topics, False, False, False, {})


async def cluster_identity(settings: Settings, topics: Sequence[Topic]) -> ClusterIdentity:
    """The ids of the cluster and of these topics. Raises BrokerUnreachable."""
    names = {topic.full_name(settings.topic_prefix): topic.name for topic in topics}
    async with admin_client(settings) as admin:
        try:
            answer = await admin._send_request(_TopicIdRequest(list(names)))
        # A broker older than Kafka 2.8 knows no topic ids; the cluster's must do.
        except (IncompatibleBrokerVersion, NotImplementedError):
            cluster = await admin.describe_cluster()
            return ClusterIdentity(
                cluster.get("cluster_id") or "", dict.fromkeys(names.values(), "")
            )
    ids = {t[1]: str(t[2]) for t in answer.topics if t[0] == 0}
    return ClusterIdentity(
        answer.cluster_id or "", {name: ids.get(full, "") for full, name in names.items()}
    )
