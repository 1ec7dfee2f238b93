"""Stored prompts, folded from their topic in memory: heads, and the texts of their versions.

No two writes share a record key. A head counts if its revision is higher than that of the head
before it, so of several writers who saw the same revision the first in the log wins, for every
reader and after any compaction. A version is sent before the head that lists it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from schemas.records import PromptHead, PromptVersion, PromptVersionRef


@dataclass(frozen=True, slots=True)
class Resolved:
    """A version that exists: its number and its text."""

    number: int
    text: PromptVersion


@dataclass(frozen=True, slots=True)
class Unresolved:
    """Why there is no such version. A deleted prompt is no prompt."""

    why: Literal["no_prompt", "no_version", "not_published"]


class Registry:
    """All prompts of all tenants, as of what was applied. Memory: the texts that heads list."""

    def __init__(self) -> None:
        self._heads: dict[tuple[str, str], PromptHead] = {}
        self._texts: dict[str, PromptVersion] = {}

    def apply(self, key: str, record: PromptHead | PromptVersion | None) -> None:
        """Folds one record of the topic, None for a tombstone. Repeats change nothing."""
        match record:
            case PromptHead():
                self._apply_head(record)
            case PromptVersion():
                self._texts[version_key(record.tenant, record.slug, record.version_id)] = record
            case None:
                # A head's tombstone says that it was superseded, which is known or will be.
                self._texts.pop(key, None)

    def head(self, tenant: str, slug: str) -> PromptHead | None:
        """The prompt as it is now; a deleted one has `deleted_at_ms`."""
        return self._heads.get((tenant, slug))

    def resolve(self, tenant: str, slug: str, version: int | None) -> Resolved | Unresolved:
        """The version of that number, or the published one where none is given."""
        head = self._heads.get((tenant, slug))
        if head is None or head.deleted_at_ms is not None:
            return Unresolved("no_prompt")
        number = head.published if version is None else version
        if number is None:
            return Unresolved("not_published")
        ref = listed(head, number)
        text = None if ref is None else self._texts.get(version_key(tenant, slug, ref.version_id))
        return Unresolved("no_version") if text is None else Resolved(number, text)

    def _apply_head(self, head: PromptHead) -> None:
        at = (head.tenant, head.slug)
        before = self._heads.get(at)
        if not supersedes(head, before):
            return
        self._heads[at] = head
        if before is not None:
            kept = {ref.version_id for ref in head.versions}
            for ref in before.versions:
                if ref.version_id not in kept:
                    self._texts.pop(version_key(*at, ref.version_id), None)


def supersedes(head: PromptHead, before: PromptHead | None) -> bool:
    """Whether a head, read after `before`, counts."""
    return before is None or head.revision > before.revision


def listed(head: PromptHead, number: int) -> PromptVersionRef | None:
    """The version of that number, if the head lists it."""
    return next((ref for ref in head.versions if ref.number == number), None)


def head_key(tenant: str, slug: str, revision: int, write_id: str) -> str:
    """The record key of a head; unique for each write."""
    return f"{tenant}/{slug}/{revision}/{write_id}"


def version_key(tenant: str, slug: str, version_id: str) -> str:
    """The record key of a version's text."""
    return f"{tenant}/{slug}/{version_id}"
