"""aiokafka's record layer, made fit for records that strangers wrote.

A broker takes records that aiokafka can't read: it raises then, for whichever partition the
process asked, at every start again, and what it had fetched of other partitions is lost. So one
tenant that may write to its own topic could stop the reading of all.
"""

from __future__ import annotations

import itertools
import re
import struct
import time
from collections.abc import Iterator
from typing import Any

import structlog
from aiokafka.consumer import fetcher
from aiokafka.record.memory_records import MemoryRecords

from streams.kafka.record_batch import read_batch
from streams.kafka.unpack import limit_unpacking

log = structlog.get_logger(__name__)

_MAGIC = 2
_LENGTH_AT = 8
_BEFORE_LENGTH_COUNTS = 12
_QUIET_S = 60.0
#: Once so much came out of one fetch that isn't seen in its size, its rest is fetched again later.
_ENOUGH_BYTES = 4 * 1024 * 1024
#: What Python needs for a header, whatever is in it.
_HEADER_BYTES = 64
#: There isn't room for much in a batch of this size, unless it is compressed.
_SMALL_BYTES = 64 * 1024


#: Which topics strangers write: patterns of full names. What can't be read of these is passed over;
#: of our own topics it is an error, as passing over would lose it.
_strange: set[str] = set()
_told_at = -_QUIET_S


def read_strangers(pattern: str | None = None) -> None:
    """Makes all readers of this process stand what strangers write to these topics. Idempotent.

    In any topic header names are read with U+FFFD where they aren't UTF-8, and nothing unpacks to
    more than `unpack.MAX_UNPACKED_BYTES`.
    """
    if pattern is not None:
        _strange.add(pattern)
    limit_unpacking()
    fetcher.MemoryRecords = _Fetched
    fetcher.PartitionRecords = _Partition


class _Fetched:
    """What one fetch brought of a partition; aiokafka's MemoryRecords in Python's clothes."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._records = MemoryRecords(data)
        self._next = 0
        self.topic = ""
        self.partition = -1
        self.unpacked_bytes = 0

    def size_in_bytes(self) -> int:
        return int(self._records.size_in_bytes())

    def has_next(self) -> bool:
        return self.unpacked_bytes < _ENOUGH_BYTES and bool(self._records.has_next())

    def next_batch(self) -> Any:
        start = self._next
        (length,) = struct.unpack_from("!i", self._data, start + _LENGTH_AT)
        self._next = start + _BEFORE_LENGTH_COUNTS + length
        batch = self._records.next_batch()
        if batch is None or batch.magic != _MAGIC:
            return batch
        return _Batch(batch, self._data[start : self._next], self)


class _Partition(fetcher.PartitionRecords):  # type: ignore[misc]
    """aiokafka's, which says where the records are from."""

    def __init__(self, tp: Any, records: _Fetched, *others: Any) -> None:
        records.topic, records.partition = tp.topic, tp.partition
        super().__init__(tp, records, *others)


class _Batch:
    """One record batch, read by aiokafka's compiled code where that is safe."""

    def __init__(self, batch: Any, data: memoryview, fetched: _Fetched) -> None:
        self._batch = batch
        self._data = data
        self._from = fetched

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        strange = any(re.fullmatch(pattern, self._from.topic) for pattern in _strange)
        small = len(self._data) <= _SMALL_BYTES and not self._batch.compression_type
        try:
            yield from self._counted(small or not strange)
        except Exception as error:  # whatever a codec or a parser makes of it
            if not strange:
                raise
            _tell(self._from, self._batch.base_offset, error)

    def _counted(self, compiled: bool) -> Iterator[Any]:
        packed = bool(self._batch.compression_type)
        for record in self._records() if compiled else read_batch(self._data):
            size = len(record.key or b"") + len(record.value or b"") if packed else 0
            self._from.unpacked_bytes += size + _HEADER_BYTES * len(record.headers)
            yield record

    def _records(self) -> Iterator[Any]:
        given = 0
        try:
            for record in self._batch:
                yield record
                given += 1
        except UnicodeDecodeError:
            yield from itertools.islice(read_batch(self._data), given, None)


def _tell(fetched: _Fetched, offset: int, error: Exception) -> None:
    """Says it once a while: a stranger can write as many as it likes."""
    global _told_at
    now = time.monotonic()
    if now - _told_at < _QUIET_S:
        return
    _told_at = now
    log.warning(
        "A batch of records can't be read and is passed over.",
        action="records_passed_over",
        topic=fetched.topic,
        partition=fetched.partition,
        offset=offset,
        error=type(error).__name__,
    )
