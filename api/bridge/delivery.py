"""Writes the results of one ended batch to its tenant's topic.

output file ┐
            ├─► a record per line, in the order of the lines ─► the `end` record
error file  ┘        committed in pieces, each with how far the batch is delivered
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Protocol

import msgspec

from api import views
from api.files.stored_lines import stored_lines
from schemas.errors import Undelivered
from schemas.headers import BATCH_ID, KIND, LINE, Kind
from schemas.metrics import BRIDGE_INCOMPLETE, BRIDGE_RESULTS, Metrics
from schemas.partitions import partition_for
from schemas.records import BatchSnapshot, ObjectRef
from schemas.topics import BATCH_OUT, Topic
from streams.domain.bridge.delivered import Delivered
from streams.domain.bridge.results import Result, results, too_large
from streams.kafka.group_reader import Mark
from streams.kafka.producer import MAX_VALUE_BYTES, Headers
from streams.ports.object_store import ObjectNotFoundError, ObjectStore, ObjectStoreError

#: What is committed at once: readers see it when it is complete, so it is no more than they would
#: wait for, and far less than what takes as long as a transaction may be open.
_PIECE_LINES = 1000
_PIECE_BYTES = 8 * 1024 * 1024
#: A longer custom id is left out where a line's record says only where the line is.
_MAX_CUSTOM_ID_BYTES = 4096


class Sender(Protocol):
    """What sends for one partition of batch.status. Every method may raise KafkaBaseError."""

    async def mark(self) -> Mark | None:
        """How far the partition was committed; None if it never was."""
        ...

    async def partitions(self, topic: Topic) -> int:
        """How many partitions the topic has. Raises TopicMissing."""
        ...

    async def send(
        self, topic: Topic, partition: int, key: bytes, value: bytes, headers: Headers
    ) -> None:
        """Hands a record over."""
        ...

    async def commit(self, mark: Mark) -> None:
        """What was sent since the last time is there, and the partition was read so far."""
        ...


class Delivery:
    """One ended batch, whose snapshot stands at `offset`, on its way to its tenant."""

    def __init__(
        self, sender: Sender, metrics: Metrics, batch: BatchSnapshot, offset: int, done: Delivered
    ) -> None:
        """done: what was delivered before; the batch itself may be half done."""
        self._sender, self._metrics = sender, metrics
        self._batch, self._offset = batch, offset
        self._progress = done.begun(batch.batch_id)
        self._topic = BATCH_OUT.of(batch.tenant)
        self._key = (batch.kafka_key or "").encode()
        self._partition = 0
        self._even_if_unreadable = False
        self._lost: Undelivered | None = None
        #: Of the piece that is not committed yet.
        self._kinds: Counter[Kind] = Counter()
        self._bytes = 0

    async def run(self, store: ObjectStore, *, even_if_unreadable: bool) -> Delivered:
        """Delivers it; what is delivered then. Raises KafkaBaseError, ObjectStoreError.

        even_if_unreadable: to end the batch without what can't be read.
        """
        partitions = await self._sender.partitions(self._topic)
        self._partition = partition_for(self._key.decode(), partitions)
        self._even_if_unreadable = even_if_unreadable
        await self._lines(store)
        why = None
        if self._progress.sent < self._batch.total:
            why = self._lost or Undelivered.LINES_MISSING
        await self._send(Kind.END, end(self._batch, self._progress.sent, why))
        return await self._ended(why)

    async def give_up(self, why: Undelivered) -> Delivered:
        """Passes the batch over, so that others come to their turn. Raises KafkaBaseError."""
        return await self._ended(why)

    async def _lines(self, store: ObjectStore) -> None:
        batch = self._batch
        async with (
            aclosing(self._file(store, batch.output)) as output,
            aclosing(self._file(store, batch.error)) as error,
            aclosing(results(batch.batch_id, batch.total, output, error)) as found,
        ):
            async for result in found:
                if result.number >= self._progress.next:
                    await self._line(result)

    async def _file(self, store: ObjectStore, ref: ObjectRef | None) -> AsyncGenerator[bytes, None]:
        """The lines of one of the files, as far as they can be read."""
        if ref is None:
            return
        try:
            async with aclosing(stored_lines(store, ref)) as lines:
                async for line in lines:
                    yield line
        except ObjectNotFoundError:
            self._lost = Undelivered.FILE_GONE
        except ObjectStoreError:
            if not self._even_if_unreadable:
                raise
            self._lost = Undelivered.FILE_UNREADABLE

    async def _line(self, result: Result) -> None:
        number = b"%d" % result.number
        if len(result.line) > MAX_VALUE_BYTES:
            await self._send(Kind.TOO_LARGE, _where(self._batch, result), number)
        else:
            await self._send(result.kind, result.line, number)
        self._progress = self._progress.after(result.number, self._progress.sent + 1)
        if self._kinds.total() >= _PIECE_LINES or self._bytes >= _PIECE_BYTES:
            await self._commit(Mark(self._offset, self._progress.note()))

    async def _send(self, kind: Kind, value: bytes, line: bytes | None = None) -> None:
        headers = [(KIND, kind.value.encode()), (BATCH_ID, self._batch.batch_id.encode())]
        if line is not None:
            headers.append((LINE, line))
        await self._sender.send(self._topic, self._partition, self._key, value, headers)
        self._kinds[kind] += 1
        self._bytes += len(value)

    async def _ended(self, why: Undelivered | None) -> Delivered:
        done = self._progress.ended()
        await self._commit(Mark(self._offset + 1, done.note()))
        if why is not None:
            self._metrics.counter(BRIDGE_INCOMPLETE).labels(why.value).inc()
        return done

    async def _commit(self, mark: Mark) -> None:
        await self._sender.commit(mark)
        for kind, count in self._kinds.items():
            self._metrics.counter(BRIDGE_RESULTS).labels(kind.value).inc(count)
        self._kinds.clear()
        self._bytes = 0


def end(batch: BatchSnapshot, sent: int, why: Undelivered | None) -> bytes:
    """The value of an `end` record: how the batch ended, and whether all its results precede."""
    said = {
        "id": batch.batch_id,
        "object": "batch",
        "status": batch.status.value,
        "request_counts": views.counts(batch),
        "usage": views.usage(batch.usage),
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "errors": views.errors(batch.errors),
        "results": {
            "sent": sent,
            "missing": batch.total - sent,
            "reason": None if why is None else why.value,
        },
    }
    return msgspec.json.encode(said)


def _where(batch: BatchSnapshot, result: Result) -> bytes:
    line_id, custom_id = too_large(result)
    if len(msgspec.json.encode(custom_id)) > _MAX_CUSTOM_ID_BYTES:
        custom_id = None
    output = result.kind is Kind.OUTPUT
    said: dict[str, Any] = {
        "id": line_id,
        "custom_id": custom_id,
        "size_bytes": len(result.line),
        "file_id": batch.output_file_id if output else batch.error_file_id,
    }
    return msgspec.json.encode(said)
