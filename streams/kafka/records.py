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
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords

from streams.kafka.unpack import limit_unpacking

log = structlog.get_logger(__name__)

_MAGIC = 2
_LENGTH_AT = 8
_BEFORE_LENGTH_COUNTS = 12
_QUIET_S = 60.0
#: Once so much came out of compressed batches of one fetch, the rest of it is fetched again later.
_ENOUGH_BYTES = 4 * 1024 * 1024
#: What Python needs for a header, whatever is in it.
_HEADER_BYTES = 64


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
    """One record batch, read by aiokafka's compiled code as far as that can, then by its other."""

    def __init__(self, batch: Any, data: memoryview, fetched: _Fetched) -> None:
        self._batch = batch
        self._data = data
        self._from = fetched

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        given = 0
        try:
            try:
                for record in self._batch:
                    yield self._counted(record)
                    given += 1
            except UnicodeDecodeError:
                for record in itertools.islice(_lenient(self._data), given, None):
                    yield self._counted(record)
        except Exception as error:  # whatever a codec or a parser makes of it
            if not any(re.fullmatch(pattern, self._from.topic) for pattern in _strange):
                raise
            _tell(self._from, self._batch.base_offset, error)

    def _counted(self, record: Any) -> Any:
        if self._batch.compression_type:
            size = len(record.key or b"") + len(record.value or b"")
            self._from.unpacked_bytes += size + _HEADER_BYTES * len(record.headers)
        return record


def _lenient(data: memoryview) -> Any:
    batch = iter(_DefaultRecordBatchPy(data))  # which unpacks it
    batch._buffer = _Text(batch._buffer)
    return batch


class _Text(bytearray):
    """Bytes whose pieces are decoded as text whatever they are."""

    def __getitem__(self, at: Any) -> Any:
        piece = super().__getitem__(at)
        return _Text(piece) if isinstance(at, slice) else piece

    def decode(self, encoding: str = "utf-8", errors: str = "replace") -> str:
        return super().decode(encoding, errors)


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
