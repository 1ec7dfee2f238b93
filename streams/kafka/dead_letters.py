"""Where records go that can't be read, and the brake that stops when there are too many.

A bad deploy must not drain a topic into its dead-letter topic, so a long run of bad records, or
a large share of them, ends the process instead.
"""

from __future__ import annotations

from collections import deque

import structlog

from schemas.headers import (
    DLQ_ERROR,
    DLQ_OFFSET,
    DLQ_PARTITION,
    DLQ_REASON,
    DLQ_TOPIC,
    DLQReason,
)
from schemas.metrics import DEAD_LETTERS, Metrics
from schemas.topics import DLQ_SUFFIX
from streams.kafka.errors import TooManyDeadLetters
from streams.kafka.producer import RecordProducer

log = structlog.get_logger(__name__)

#: So many bad records in a row are this process's fault.
RUN_LIMIT = 50
#: So is this share of the last SHARE_WINDOW records, once a window is full.
SHARE_LIMIT = 0.1
SHARE_WINDOW = 1000


class Brake:
    """Counts good and bad records and trips on a run or a share of bad ones."""

    def __init__(
        self, run_limit: int = RUN_LIMIT, share: float = SHARE_LIMIT, window: int = SHARE_WINDOW
    ) -> None:
        self._run_limit = run_limit
        self._share_limit = share * window
        self._window = window
        self._seen = 0
        self._run = 0
        #: When each bad record of the window came, counted in records.
        self._bad: deque[int] = deque()

    def good(self) -> None:
        """Notes a record that could be read."""
        self._seen += 1
        self._run = 0

    def bad(self) -> None:
        """Notes a bad one. Raises TooManyDeadLetters when there are too many."""
        self._seen += 1
        self._run += 1
        self._bad.append(self._seen)
        while self._bad[0] <= self._seen - self._window:
            self._bad.popleft()
        if self._run > self._run_limit:
            raise TooManyDeadLetters(f"{self._run} records in a row could not be read.")
        if self._seen >= self._window and len(self._bad) > self._share_limit:
            raise TooManyDeadLetters(
                f"{len(self._bad)} of the last {self._window} records could not be read."
            )


class DeadLetters:
    """Moves bad records to `<topic>.dlq`, key, value and headers verbatim, with the reason."""

    def __init__(self, producer: RecordProducer, metrics: Metrics) -> None:
        self._producer = producer
        self._metrics = metrics
        self._brake = Brake()

    def good(self) -> None:
        """Notes a record that could be read, for the brake."""
        self._brake.good()

    async def bury(
        self,
        *,
        full_name: str,
        partition: int,
        offset: int,
        key: bytes | None,
        value: bytes | None,
        headers: tuple[tuple[str, bytes], ...],
        reason: DLQReason,
        error: str,
    ) -> None:
        """Awaits the broker's ack of the dead letter. Raises TooManyDeadLetters, SendFailed.

        error: what went wrong, without any of the record's content.
        """
        self._brake.bad()
        await self._producer.send_raw(
            full_name + DLQ_SUFFIX,
            None,
            key,
            value,
            (
                *headers,
                (DLQ_REASON, reason.value.encode()),
                (DLQ_ERROR, error.encode()),
                (DLQ_TOPIC, full_name.encode()),
                (DLQ_PARTITION, str(partition).encode()),
                (DLQ_OFFSET, str(offset).encode()),
            ),
        )
        self._metrics.counter(DEAD_LETTERS).labels(full_name, reason.value).inc()
        log.error(
            "Moved a record that can't be read to the dead-letter topic.",
            action="dead_lettered",
            topic=full_name,
            partition=partition,
            offset=offset,
            reason=reason.value,
            error=error,
        )
