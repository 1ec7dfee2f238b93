"""Tells a tenant, on its own topic, what became of what it submitted.

A topic that takes nothing is tried for a while (patience.py), which only its tenant's partition
waits for. Then the answer is passed over, and so are the next ones, of which one a minute is tried.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import structlog

from api.bridge.patience import Patience
from api.bridge.ports import Producer
from api.errors import ApiError, InvalidRequest
from schemas.errors import SUBMISSION_MESSAGES
from schemas.headers import BATCH_ID, KIND, Kind
from schemas.metrics import BRIDGE_UNTOLD, SUBMISSIONS, Metrics
from schemas.partitions import partition_for
from schemas.records import BatchCreate
from schemas.topics import BATCH_OUT
from streams.domain.bridge.inbox import Reject
from streams.kafka.errors import KafkaBaseError
from streams.kafka.producer import Headers
from streams.settings import Settings

log = structlog.get_logger(__name__)

#: A try may take 20 s, for which the tenant's next batch waits.
_SILENT_S = 60.0


class Told:
    """Writes `accepted` and `rejected` records of one partition of a tenant's topic."""

    def __init__(
        self, producer: Producer, settings: Settings, metrics: Metrics, tenant: str
    ) -> None:
        """producer: one that gives up in time what a topic doesn't take."""
        self._producer = producer
        self._prefix = settings.topic_prefix
        self._metrics = metrics
        self._tenant = tenant
        self._patience = Patience()
        #: When the topic is tried again after an answer was given up; None if the last was taken.
        self._silent_until: float | None = None

    async def accepted(self, create: BatchCreate, lines: int) -> None:
        """The batch is created."""
        key = (create.kafka_key or "").encode()
        said = {"id": create.batch_id, "input_file_id": create.input_file_id, "lines": lines}
        await self._tell(key, Kind.ACCEPTED, create.batch_id, said)

    async def rejected(self, reject: Reject) -> None:
        """Something of the topic became no batch."""
        message = SUBMISSION_MESSAGES[reject.code]
        error = InvalidRequest(message, code=reject.code.value)
        await self.refused(reject.key, reject.batch_id, error)

    async def refused(self, key: bytes | None, batch_id: str | None, error: ApiError) -> None:
        """A seal can't be carried out; what HTTP would answer."""
        said = msgspec.json.decode(error.body())
        await self._tell(key, Kind.REJECTED, batch_id, {"id": batch_id, **said})

    async def _tell(self, key: bytes | None, kind: Kind, batch_id: str | None, said: Any) -> None:
        headers = [(KIND, kind.value.encode())]
        if batch_id is not None:
            headers.append((BATCH_ID, batch_id.encode()))
        self._metrics.counter(SUBMISSIONS).labels(kind.value).inc()
        value = msgspec.json.encode(said)
        if self._silent_until is not None and _now() < self._silent_until:
            self._metrics.counter(BRIDGE_UNTOLD).inc()
            return
        while True:
            try:
                await self._send(key, value, headers)
            except KafkaBaseError as error:
                self._patience.failed(error)
                if self._patience.gives_up is not None or self._silent_until is not None:
                    self._give_up(error)
                    return
                await asyncio.sleep(self._patience.pause())
            else:
                self._patience.delivered()
                self._silent_until = None
                return

    async def _send(self, key: bytes | None, value: bytes, headers: Headers) -> None:
        topic = BATCH_OUT.of(self._tenant)
        # As the results of the batch are sent, so that they stay behind this.
        text = (key or b"").decode("utf-8", "replace")
        partition = partition_for(text, await self._producer.partitions(topic))
        name = topic.full_name(self._prefix)
        await self._producer.send_raw(name, partition, key, value, headers)

    def _give_up(self, error: KafkaBaseError) -> None:
        # Whoever took the topic away doesn't want to be told; the batch is made all the same.
        self._patience.given_up()
        self._silent_until = _now() + _SILENT_S
        self._metrics.counter(BRIDGE_UNTOLD).inc()
        log.warning(
            "A tenant's topic for results takes no answers.",
            action="answer_given_up",
            tenant=self._tenant,
            error=type(error).__name__,
            why=str(error),
        )


def _now() -> float:
    return asyncio.get_running_loop().time()
