"""Questions about stored prompts to the read model. Each is one tenant's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import aiosqlite
import msgspec

from schemas.records import PromptHead, PromptVersion
from streams.domain.prompts.registry import version_key

_heads = msgspec.msgpack.Decoder(PromptHead)


class PromptUsage(NamedTuple):
    """What a tenant's prompts take: how many there are, and the bytes of all their texts."""

    prompts: int
    size_bytes: int


class PromptQueries:
    """Reads one connection of the read model's database."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    async def head(self, tenant: str, slug: str) -> PromptHead | None:
        """The newest head; a deleted prompt has one, too."""
        rows = await self._all(
            "SELECT head FROM prompts WHERE tenant = ? AND slug = ?", (tenant, slug)
        )
        return _heads.decode(rows[0][0]) if rows else None

    async def prompt(self, tenant: str, slug: str) -> PromptHead | None:
        """The prompt, if it isn't deleted."""
        head = await self.head(tenant, slug)
        return None if head is None or head.deleted_at_ms is not None else head

    async def by_id(self, tenant: str, prompt_id: str) -> PromptHead | None:
        """The newest head of the prompt with this id, deleted or not."""
        rows = await self._all(
            "SELECT head FROM prompts WHERE tenant = ? AND prompt_id = ?", (tenant, prompt_id)
        )
        return _heads.decode(rows[0][0]) if rows else None

    async def place(self, tenant: str, prompt_id: str) -> tuple[int, str] | None:
        """The prompt's place in the tenant's list; a deleted one keeps it."""
        head = await self.by_id(tenant, prompt_id)
        return None if head is None else (head.created_at_ms, prompt_id)

    async def prompts(
        self, tenant: str, after: tuple[int, str] | None, limit: int
    ) -> list[PromptHead]:
        """Up to `limit` prompts behind a place, newest first."""
        where = "AND (created_ms, prompt_id) < (?, ?)" if after is not None else ""
        rows = await self._all(
            f"SELECT head FROM prompts WHERE tenant = ? AND deleted = 0 {where} "  # noqa: S608
            "ORDER BY created_ms DESC, prompt_id DESC LIMIT ?",
            (tenant, *(after or ()), limit),
        )
        return [_heads.decode(row[0]) for row in rows]

    async def text(self, tenant: str, slug: str, version_id: str) -> PromptVersion | None:
        """The text of a version."""
        rows = await self._all(
            "SELECT messages, model_config FROM prompt_versions WHERE record_key = ?",
            (version_key(tenant, slug, version_id),),
        )
        if not rows:
            return None
        return PromptVersion(
            tenant=tenant,
            slug=slug,
            version_id=version_id,
            messages=rows[0][0],
            model_config=rows[0][1],
        )

    async def usage(self, tenant: str) -> PromptUsage:
        """What counts towards the tenant's quotas."""
        rows = await self._all(
            "SELECT count(*), coalesce(sum(size_bytes), 0) FROM prompts "
            "WHERE tenant = ? AND deleted = 0",
            (tenant,),
        )
        return PromptUsage(*rows[0])

    async def fate(self, head_key: str) -> Literal["won", "lost"] | None:
        """Whether a head counted when it was read, also if another one has replaced it since.

        None if it wasn't read.
        """
        rows = await self._all(
            "SELECT 1 FROM prompts WHERE record_key = ? "
            "UNION ALL SELECT won FROM prompt_garbage WHERE record_key = ?",
            (head_key, head_key),
        )
        if not rows:
            return None
        return "won" if rows[0][0] else "lost"

    async def garbage(self, *, heads_ms: int, texts_ms: int, limit: int) -> list[str]:
        """Keys of records that count no more: heads since before the one time, texts the other.

        Heads that lost come first: one that outlived the head that it lost to would count, for
        whoever reads the log anew, until the next head.
        """
        rows = await self._all(
            "SELECT record_key FROM prompt_garbage "
            "WHERE (head = 1 AND since_ms <= ?) OR (head = 0 AND since_ms <= ?) "
            "ORDER BY won, since_ms LIMIT ?",
            (heads_ms, texts_ms, limit),
        )
        return [row[0] for row in rows]

    async def _all(self, sql: str, parameters: Iterable[Any]) -> list[Any]:
        return list(await self._connection.execute_fetchall(sql, parameters))
