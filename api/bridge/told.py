"""Tells a tenant, on its own topic, what became of what it submitted."""

from __future__ import annotations

from typing import Any

import msgspec
import structlog

from api.bridge.ports import Producer
from api.errors import ApiError, InvalidRequest
from schemas.errors import SUBMISSION_MESSAGES
from schemas.headers import BATCH_ID, KIND, Kind
from schemas.metrics import SUBMISSIONS, Metrics
from schemas.partitions import partition_for
from schemas.records import BatchCreate
from schemas.topics import BATCH_OUT
from streams.domain.bridge.inbox import Reject
from streams.kafka.errors import TopicMissing
from streams.settings import Settings

log = structlog.get_logger(__name__)


class Told:
    """Writes `accepted` and `rejected` records."""

    def __init__(self, producer: Producer, settings: Settings, metrics: Metrics) -> None:
        self._producer = producer
        self._prefix = settings.topic_prefix
        self._metrics = metrics

    async def accepted(self, create: BatchCreate, lines: int) -> None:
        """The batch is created. Raises SendFailed."""
        key = (create.kafka_key or "").encode()
        said = {"id": create.batch_id, "input_file_id": create.input_file_id, "lines": lines}
        await self._tell(create.tenant, key, Kind.ACCEPTED, create.batch_id, said)

    async def rejected(self, tenant: str, reject: Reject) -> None:
        """Something of the topic became no batch. Raises SendFailed."""
        message = SUBMISSION_MESSAGES[reject.code]
        error = InvalidRequest(message, code=reject.code.value)
        await self.refused(tenant, reject.key, reject.batch_id, error)

    async def refused(
        self, tenant: str, key: bytes | None, batch_id: str | None, error: ApiError
    ) -> None:
        """A seal can't be carried out; what HTTP would answer. Raises SendFailed."""
        said = msgspec.json.decode(error.body())
        await self._tell(tenant, key, Kind.REJECTED, batch_id, {"id": batch_id, **said})

    async def _tell(
        self, tenant: str, key: bytes | None, kind: Kind, batch_id: str | None, said: Any
    ) -> None:
        topic = BATCH_OUT.of(tenant)
        headers = [(KIND, kind.value.encode())]
        if batch_id is not None:
            headers.append((BATCH_ID, batch_id.encode()))
        self._metrics.counter(SUBMISSIONS).labels(kind.value).inc()
        try:
            # As the results of the batch are sent, so that they stay behind this.
            text = (key or b"").decode("utf-8", "replace")
            partition = partition_for(text, await self._producer.partitions(topic))
            value = msgspec.json.encode(said)
            name = topic.full_name(self._prefix)
            await self._producer.send_raw(name, partition, key, value, headers)
        except TopicMissing:
            # Whoever took the topic away doesn't want to be told; the batch is made all the same.
            log.warning(
                "A tenant has no topic for results.", action="no_results_topic", tenant=tenant
            )
