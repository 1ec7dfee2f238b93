"""Questions to the read model. Each is one tenant's; others' objects don't exist."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import aiosqlite
import msgspec

from api.read_model.control_rows import CONTROLS_OF_B, with_rows
from api.read_model.schema import with_cancel
from schemas.records import BatchSnapshot, FileRecord, ObjectRef

Order = Literal["asc", "desc"]

_snapshots = msgspec.msgpack.Decoder(BatchSnapshot)

_BATCH = f"""
SELECT b.snapshot, c.at_ms, {CONTROLS_OF_B} FROM batches b
LEFT JOIN cancels c ON c.batch_id = b.batch_id AND c.tenant = b.tenant
"""  # noqa: S608 - constants only
_FILE = """
SELECT file_id, tenant, object_key, size_bytes, sha256, filename, purpose, created_ms,
    expires_ms, batch_id, deleted_ms FROM files
"""
_VISIBLE = "deleted_ms IS NULL AND gone_ms IS NULL AND (expires_ms IS NULL OR expires_ms > ?)"


class Caller(NamedTuple):
    """Whose an API key is, and which of the tenant's it is."""

    tenant: str
    key_id: str


class Queries:
    """Reads one connection of the read model's database."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    async def batch(self, tenant: str, batch_id: str) -> BatchSnapshot | None:
        """The batch, if the tenant has it."""
        rows = await self._all(
            f"{_BATCH} WHERE b.batch_id = ? AND b.tenant = ?", (batch_id, tenant)
        )
        return _batch(rows[0]) if rows else None

    async def batch_place(self, tenant: str, batch_id: str) -> tuple[int, str] | None:
        """The batch's place in the tenant's list."""
        rows = await self._all(
            "SELECT created_s, batch_id FROM batches WHERE batch_id = ? AND tenant = ?",
            (batch_id, tenant),
        )
        return (rows[0][0], rows[0][1]) if rows else None

    async def batches(
        self, tenant: str, after: tuple[int, str] | None, limit: int
    ) -> list[BatchSnapshot]:
        """Up to `limit` batches behind a place, newest first."""
        where, parameters = "b.tenant = ?", [tenant]
        if after is not None:
            where += " AND (b.created_s, b.batch_id) < (?, ?)"
        rows = await self._all(
            f"{_BATCH} WHERE {where} ORDER BY b.created_s DESC, b.batch_id DESC LIMIT ?",
            (*parameters, *(after or ()), limit),
        )
        return [_batch(row) for row in rows]

    async def file(self, tenant: str, file_id: str, now_ms: int) -> FileRecord | None:
        """The file, if the tenant has it and it is neither deleted nor expired."""
        rows = await self._all(
            f"{_FILE} WHERE file_id = ? AND tenant = ? AND {_VISIBLE}", (file_id, tenant, now_ms)
        )
        return _file(rows[0]) if rows else None

    async def file_place(self, tenant: str, file_id: str) -> tuple[int, str] | None:
        """The file's place in the tenant's list; a deleted one has its place for a while."""
        rows = await self._all(
            "SELECT created_ms, file_id FROM files WHERE file_id = ? AND tenant = ?",
            (file_id, tenant),
        )
        return (rows[0][0], rows[0][1]) if rows else None

    async def files(
        self,
        tenant: str,
        *,
        purpose: str | None,
        order: Order,
        after: tuple[int, str] | None,
        limit: int,
        now_ms: int,
    ) -> list[FileRecord]:
        """Up to `limit` files behind a place, by age."""
        where, parameters = f"tenant = ? AND {_VISIBLE}", [tenant, now_ms]
        if purpose is not None:
            where += " AND purpose = ?"
            parameters.append(purpose)
        if after is not None:
            where += f" AND (created_ms, file_id) {'>' if order == 'asc' else '<'} (?, ?)"
            parameters += after
        direction = "ASC" if order == "asc" else "DESC"
        rows = await self._all(
            f"{_FILE} WHERE {where} ORDER BY created_ms {direction}, file_id {direction} LIMIT ?",
            (*parameters, limit),
        )
        return [_file(row) for row in rows]

    async def caller_of_key(self, secret_sha256: str) -> Caller | None:
        """Whose the live API key with this hash is."""
        rows = await self._all(
            "SELECT tenant, key_id FROM keys WHERE secret_sha256 = ? AND revoked_ms IS NULL",
            (secret_sha256,),
        )
        return Caller(*rows[0]) if rows else None

    async def has_budget(self, tenant: str, key_id: str | None) -> bool:
        """Whether an operator has limited what the tenant, or this key of it, may spend."""
        rows = await self._all(
            "SELECT 1 FROM tenants WHERE tenant = ? AND budget IS NOT NULL "
            "UNION ALL SELECT 1 FROM keys WHERE key_id = ? AND budget IS NOT NULL",
            (tenant, key_id),
        )
        return bool(rows)

    async def key_names(self, tenant: str) -> dict[str, str]:
        """The names of the tenant's keys by id, revoked ones too."""
        rows = await self._all("SELECT key_id, name FROM keys WHERE tenant = ?", (tenant,))
        return dict(rows)

    async def ended_files(self, before_ms: int, limit: int) -> list[FileRecord]:
        """Files deleted or expired before then whose bytes may be there, and no live batch's."""
        rows = await self._all(
            f"""{_FILE} WHERE gone_ms IS NULL AND (deleted_ms <= ? OR expires_ms <= ?)
            AND NOT EXISTS (SELECT 1 FROM batches b WHERE b.tenant = files.tenant
                AND b.input_file_id = files.file_id AND b.ended_ms IS NULL)
            LIMIT ?""",  # noqa: S608 - constants and placeholders only
            (before_ms, before_ms, limit),
        )
        return [_file(row) for row in rows]

    async def batches_to_clean(self, ended_before_ms: int, limit: int) -> list[BatchSnapshot]:
        """Batches that ended before then and were not cleaned up yet."""
        rows = await self._all(
            f"{_BATCH} WHERE b.cleaned = 0 AND b.ended_ms <= ? ORDER BY b.ended_ms LIMIT ?",
            (ended_before_ms, limit),
        )
        return [_batch(row) for row in rows]

    async def without_record(self, file_ids: Sequence[str]) -> set[str]:
        """Those of the ids that no file has, or whose file's bytes are gone."""
        known: set[str] = set()
        for start in range(0, len(file_ids), 500):
            some = file_ids[start : start + 500]
            rows = await self._all(
                "SELECT file_id FROM files WHERE gone_ms IS NULL AND file_id IN "  # noqa: S608
                f"({','.join('?' * len(some))})",
                some,
            )
            known.update(row[0] for row in rows)
        return set(file_ids) - known

    async def object_keys(self, file_ids: Sequence[str]) -> set[str]:
        """Where the bytes of these files lie, as far as they are there."""
        rows = await self._all(
            "SELECT object_key FROM files WHERE gone_ms IS NULL AND file_id IN "  # noqa: S608
            f"({','.join('?' * len(file_ids))})",
            file_ids,
        )
        return {row[0] for row in rows}

    async def _all(self, sql: str, parameters: Iterable[Any]) -> list[Any]:
        return list(await self._connection.execute_fetchall(sql, parameters))


def _batch(row: Any) -> BatchSnapshot:
    # A cancel is the last word, whatever other commands are still to come.
    return with_cancel(with_rows(_snapshots.decode(row[0]), row[2]), row[1])


def _file(row: Any) -> FileRecord:
    return FileRecord(
        file_id=row[0],
        tenant=row[1],
        object=ObjectRef(key=row[2], size_bytes=row[3], sha256=row[4]),
        filename=row[5],
        purpose=row[6],
        created_at_ms=row[7],
        expires_at_ms=row[8],
        batch_id=row[9],
        deleted_at_ms=row[10],
    )
