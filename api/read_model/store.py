"""The read model's file: opening, folding what was read, and starting over when it must."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import groupby
from pathlib import Path
from typing import IO

import aiosqlite
import structlog

from api.log_port import Positions
from api.read_model.schema import TABLES, VERSION, statements
from streams.domain.clock import Clock
from streams.kafka.admin import TOMBSTONE_LIFE_S
from streams.kafka.reader import ReadRecord

log = structlog.get_logger(__name__)

#: Who was away for longer may have missed a tombstone. Four hours are margin for clocks that
#: differ.
AWAY_LIMIT_MS = (TOMBSTONE_LIFE_S - 4 * 3600) * 1000
#: How far the clock may have gone back; the margin above bears it.
_CLOCK_BACK_MS = 3600 * 1000
#: The time of the last reading is stored this often when nothing else is to be.
HEARTBEAT_MS = 60_000
_PAGE_CACHE_KIB = 16 * 1024


class ReadModelError(Exception):
    """The read model's file can't be used; the message names the remedy."""


class ReadModelStore:
    """Rows and offsets in one SQLite database, on disk or in memory.

    reader: the connection for queries. Only this class writes, through `apply` and `writing`.
    """

    def __init__(self, writer: aiosqlite.Connection, reader: aiosqlite.Connection) -> None:
        self.reader = reader
        self._writer = writer
        self._writing = asyncio.Lock()
        self._lock_file: IO[str] | None = None
        self._stored: dict[tuple[str, int], int] = {}
        self._last_read_ms = 0

    @classmethod
    async def open(cls, path: Path | None, *, identity: str, clock: Clock) -> ReadModelStore:
        """Opens the file, or an empty database in memory. Raises ReadModelError.

        The rows are dropped, to be read anew, if they come from another log than `identity`,
        from other code, or from so long ago that tombstones may have been missed.
        """
        lock_file = None if path is None else _locked(path)
        try:
            store = await cls._connected_or_new(path)
        except (OSError, aiosqlite.Error) as error:
            raise ReadModelError(f"The read model {path} can't be opened: {error}") from error
        store._lock_file = lock_file
        await store._prepare(identity, clock.now_ms())
        return store

    @classmethod
    async def _connected_or_new(cls, path: Path | None) -> ReadModelStore:
        try:
            return await cls._connected(path)
        except aiosqlite.OperationalError:
            raise
        except aiosqlite.DatabaseError as error:
            if path is None:
                raise
            # Nothing in it is worth saving: the topics have it all.
            log.warning("The read model is damaged.", action="read_model_lost", error=str(error))
            for file in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
                file.unlink(missing_ok=True)
            return await cls._connected(path)

    @classmethod
    async def _connected(cls, path: Path | None) -> ReadModelStore:
        writer = await aiosqlite.connect(path or ":memory:", isolation_level=None)
        if path is None:
            return cls(writer, writer)
        try:
            # A crash of the machine may lose the last transactions, rows and offsets alike;
            # the topics still have them.
            await writer.executescript(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;"
                f"PRAGMA cache_size = -{_PAGE_CACHE_KIB}; PRAGMA busy_timeout = 5000;"
            )
            reader = await aiosqlite.connect(path, isolation_level=None)
            await reader.executescript(
                f"PRAGMA query_only = 1; PRAGMA cache_size = -{_PAGE_CACHE_KIB};"
                "PRAGMA busy_timeout = 5000;"
            )
        except BaseException:
            await writer.close()
            raise
        return cls(writer, reader)

    async def close(self) -> None:
        """Closes the file."""
        if self.reader is not self._writer:
            await self.reader.close()
        await self._writer.close()
        if self._lock_file is not None:
            self._lock_file.close()

    def positions(self) -> dict[tuple[str, int], int]:
        """Up to where the topics are in the rows."""
        return dict(self._stored)

    async def apply(self, records: list[ReadRecord], positions: Positions, read_ms: int) -> None:
        """Folds records and stores the positions behind them, in one transaction.

        read_ms: when the log was last heard of, whether it had anything new or not.
        """
        moved = {p: o for p, o in positions.items() if self._stored.get(p) != o}
        if not (records or moved or read_ms - self._last_read_ms >= HEARTBEAT_MS):
            return
        async with self.writing() as writer:
            for sql, run in groupby(statements(records), key=lambda s: s[0]):
                await writer.executemany(sql, [parameters for _, parameters in run])
            await self._remember(writer, moved, read_ms)
        self._stored.update(moved)
        self._last_read_ms = read_ms

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[aiosqlite.Connection]:
        """One transaction on the connection that writes."""
        async with self._writing:
            await self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
            except BaseException:
                await self._writer.execute("ROLLBACK")
                raise
            await self._writer.execute("COMMIT")

    async def mark_cleaned(self, batch_id: str) -> None:
        """Remembers that a batch's working objects are gone."""
        async with self.writing() as writer:
            await writer.execute("UPDATE batches SET cleaned = 1 WHERE batch_id = ?", (batch_id,))

    async def forget_files(self, gone_before_ms: int) -> None:
        """Drops the rows of files whose tombstones are older than that."""
        async with self.writing() as writer:
            await writer.execute("DELETE FROM files WHERE gone_ms <= ?", (gone_before_ms,))

    async def start_over(self, identity: str, now_ms: int) -> None:
        """Drops all rows; everything is read again from the topics' beginnings."""
        async with self._writing:
            names = await self._writer.execute_fetchall(
                "SELECT name FROM sqlite_schema WHERE type = 'table'"
            )
            drops = "".join(f'DROP TABLE "{name}";' for (name,) in names)
            await self._writer.executescript(f"BEGIN IMMEDIATE; {drops} {TABLES} COMMIT;")
        async with self.writing() as writer:
            await writer.executemany(
                "INSERT INTO meta VALUES (?, ?)",
                [("identity", identity), ("version", VERSION), ("read_ms", str(now_ms))],
            )
        self._stored = {}
        self._last_read_ms = now_ms

    async def _prepare(self, identity: str, now_ms: int) -> None:
        meta = await self._meta()
        reason = _why_start_over(meta, identity, now_ms)
        if reason is not None:
            log.info("Reading everything anew.", action="read_model_rebuilt", reason=reason)
            await self.start_over(identity, now_ms)
            return
        rows = await self._writer.execute_fetchall("SELECT * FROM positions")
        self._stored = {(topic, partition): offset for topic, partition, offset in rows}
        self._last_read_ms = int(meta["read_ms"])

    async def _meta(self) -> dict[str, str]:
        try:
            rows = await self._writer.execute_fetchall("SELECT name, value FROM meta")
        except aiosqlite.OperationalError:
            return {}
        return {str(name): str(value) for name, value in rows}

    async def _remember(
        self, writer: aiosqlite.Connection, moved: Mapping[tuple[str, int], int], now_ms: int
    ) -> None:
        await writer.executemany(
            "INSERT OR REPLACE INTO positions VALUES (?, ?, ?)",
            [(topic, partition, offset) for (topic, partition), offset in moved.items()],
        )
        await writer.execute("UPDATE meta SET value = ? WHERE name = 'read_ms'", (str(now_ms),))


def _why_start_over(meta: Mapping[str, str], identity: str, now_ms: int) -> str | None:
    if not meta:
        return "new"
    if meta.get("version") != VERSION:
        return "version"
    if meta.get("identity") != identity:
        return "another_log"
    if not -_CLOCK_BACK_MS <= now_ms - int(meta["read_ms"]) <= AWAY_LIMIT_MS:
        return "away_too_long"
    return None


def _locked(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_name("lock").open("w")
    except OSError as error:
        raise ReadModelError(f"{path.parent} can't be written to: {error}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ReadModelError(
            f"Another gateway uses {path.parent}. Give each its own BACKHAUL_INSTANCE."
        ) from error
    return file
