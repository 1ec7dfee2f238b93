"""Tables of rows: records by key, in memory, kept in a compacted changelog.

A row says in `watermark` which event it was folded up to. A process that was paused and lost its
partitions may still write a row, or delete one, after its successor has: so recovery keeps the
row with the highest watermark, whatever came last in the changelog, and writes it there again
if something older came after it, before compaction takes it for the newest. Each record of a
changelog carries its watermark in a header, so that recovery decodes nothing.

One of these is a thin facade over a Faust table: Faust declares the changelog's place in the
assignment and replays it; the bytes, their order and their meaning are ours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Protocol, cast

import faust
import structlog
from faust.stores.memory import Store
from faust.types import TP

from schemas.codec import decode, encode
from schemas.headers import ROW_WATERMARK
from schemas.records import (
    BatchRow,
    ChunkRow,
    MeterChunkRow,
    MeterSend,
    WebhookDelivery,
    WebhookState,
)
from streams.kafka.app import RoleApp
from streams.kafka.changelog import ChangelogProducer, Headers
from streams.kafka.errors import KafkaBaseError

log = structlog.get_logger(__name__)

Row = BatchRow | ChunkRow | MeterChunkRow | MeterSend | WebhookDelivery | WebhookState
#: The watermark of a deletion that doesn't say.
_ALWAYS = 1 << 62


class Cause(Protocol):
    """The consumed event that a change of the table follows from."""

    @property
    def partition(self) -> int: ...

    @property
    def offset(self) -> int: ...


class RowStore(Store[bytes, bytes]):
    """The rows' bytes, and during a recovery what is needed to judge which row is newest."""

    mundane_level = "debug"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.partition_of: dict[bytes, int] = {}
        self._watermarks: dict[bytes, int] = {}
        self._deleted: dict[bytes, int] = {}
        self._last_in_log: dict[bytes, tuple[int, int]] = {}
        #: Changelog records applied so far; its growth shows that a recovery moves.
        self.applied = 0

    def apply(
        self, partition: int, key: bytes | None, value: bytes | None, headers: Headers
    ) -> None:
        """Applies one changelog record."""
        self.applied += 1
        if key is None:
            return
        watermark = _watermark(value, headers)
        self._last_in_log[key] = (partition, watermark)
        if watermark < self._newest(key):
            return
        self.partition_of[key] = partition
        self._watermarks[key] = watermark
        if value is None:
            self._deleted[key] = watermark
            self.data.pop(key, None)
        else:
            self._deleted.pop(key, None)
            self.data[key] = value

    def _newest(self, key: bytes) -> int:
        known = self._watermarks.get(key)
        if known is None:
            value = self.data.get(key)
            known = -1 if value is None else _watermark(value, ())
        return known

    def settle(self, partitions: Collection[int]) -> list[tuple[int, bytes, bytes | None, int]]:
        """Ends a recovery: forgets other partitions' rows and returns what to write again.

        Those are (partition, key, value, watermark) whose last record in the changelog is older
        than what won.
        """
        again = [
            (partition, key, self.data.get(key), self._newest(key))
            for key, (partition, last) in self._last_in_log.items()
            if last < self._newest(key) and partition in partitions
        ]
        for key in [k for k, p in self.partition_of.items() if p not in partitions]:
            self.data.pop(key, None)
            del self.partition_of[key]
        for key in self._deleted:
            self.partition_of.pop(key, None)
        self._watermarks.clear()
        self._deleted.clear()
        self._last_in_log.clear()
        return again

    async def on_recovery_completed(self, active_tps: set[TP], standby_tps: set[TP]) -> None:
        """Faust's clean-up; `settle` has done it."""


class _FaustTable(faust.Table[bytes, bytes]):
    mundane_level = "debug"

    def _new_store(self) -> RowStore:
        return RowStore(
            "memory://",
            self.app,
            self,
            table_name=self.name,
            key_type=bytes,
            key_serializer="raw",
            value_type=bytes,
            value_serializer="raw",
        )


class RowTable:
    """A table of a role. Only for rows of the partitions that this process holds."""

    def __init__(self, app: RoleApp, name: str) -> None:
        self.name = name
        self._app = app
        self._table: _FaustTable | None = None
        self._store: RowStore | None = None

    @property
    def changelog(self) -> str:
        """The changelog's full topic name, as Faust calls it."""
        return f"{self._app.conf.id}-{self.name}-changelog"

    def create(self, partitions: int) -> None:
        """Declares the table to Faust; its changelog has as many partitions as its source."""
        table = _FaustTable(
            self._app,
            name=self.name,
            key_type=bytes,
            value_type=bytes,
            partitions=partitions,
        )
        self._app.tables.add(table)
        self._table = table
        self._store = cast("RowStore", table.data)

    def get(self, key: str) -> Row | None:
        """The row, or None."""
        value = self._rows.data.get(key.encode())
        return None if value is None else cast("Row", decode(value))

    def put(self, key: str, row: Row, cause: Cause) -> None:
        """Writes a row; the next commit waits until the broker has it."""
        raw_key, value = key.encode(), encode(row)
        self._rows.data[raw_key] = value
        self._rows.partition_of[raw_key] = cause.partition
        self._producer.write(
            self.changelog, cause.partition, raw_key, value, _headers(row.watermark)
        )

    def delete(self, key: str, cause: Cause) -> None:
        """Deletes a row; a late write of an older row doesn't bring it back."""
        raw_key = key.encode()
        self._rows.data.pop(raw_key, None)
        self._rows.partition_of.pop(raw_key, None)
        self._producer.write(self.changelog, cause.partition, raw_key, None, _headers(cause.offset))

    def items(self) -> Iterator[tuple[str, Row]]:
        """Everything in memory as of now; the table may change while this is iterated."""
        for key in list(self._rows.data):
            value = self._rows.data.get(key)
            if value is not None:
                yield key.decode(), cast("Row", decode(value))

    def __len__(self) -> int:
        return len(self._rows.data)

    @property
    def applied(self) -> int:
        """Changelog records replayed so far."""
        return 0 if self._store is None else self._store.applied

    def settle(self, partitions: Collection[int]) -> None:
        """Called by the role when a recovery has ended, before it goes to work."""
        for partition, key, value, watermark in self._rows.settle(partitions):
            log.warning(
                "A row had been overwritten by an older one; wrote the newest again.",
                action="row_repaired",
                table=self.name,
                partition=partition,
            )
            self._producer.write(self.changelog, partition, key, value, _headers(watermark))

    @property
    def _rows(self) -> RowStore:
        if self._store is None:
            raise KafkaBaseError(f"The table {self.name} is used before the role has started.")
        return self._store

    @property
    def _producer(self) -> ChangelogProducer:
        return cast("ChangelogProducer", self._app.producer)


def _headers(watermark: int) -> Headers:
    return ((ROW_WATERMARK, str(watermark).encode()),)


def _watermark(value: bytes | None, headers: Headers) -> int:
    for name, written in headers:
        if name == ROW_WATERMARK:
            return int(written)
    # Written by other hands: a row says it itself, a deletion is believed.
    return _ALWAYS if value is None else cast("Row", decode(value)).watermark
