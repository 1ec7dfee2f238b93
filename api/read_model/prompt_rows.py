"""The read model's tables of stored prompts, and how their records become rows.

A head replaces only one of a lower revision, so that the first of a revision wins. Every record
that doesn't count is remembered as garbage until its tombstone is read:

    a head read        garbage, unless it is the current one; what it supersedes becomes garbage
    a text read        garbage, until a current head lists it
    a text no longer listed by the current head        garbage

`won` tells a head that was current once from one that lost the race for its revision.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from api.read_model.statement import Statement
from schemas.records import PromptHead, PromptVersion
from streams.domain.prompts.registry import version_key
from streams.kafka.reader import ReadRecord

PROMPT_TABLES = """
CREATE TABLE prompts (
    tenant TEXT NOT NULL, slug TEXT NOT NULL, prompt_id TEXT NOT NULL, created_ms INTEGER NOT NULL,
    revision INTEGER NOT NULL, record_key TEXT NOT NULL, deleted INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL, listed TEXT NOT NULL, head BLOB NOT NULL,
    PRIMARY KEY (tenant, slug)
);
CREATE INDEX prompts_of_tenant ON prompts (tenant, created_ms, prompt_id);
CREATE INDEX prompts_by_record ON prompts (record_key);
CREATE TABLE prompt_versions (
    record_key TEXT PRIMARY KEY, messages BLOB NOT NULL, model_config BLOB NOT NULL
);
CREATE TABLE prompt_garbage (
    record_key TEXT PRIMARY KEY, head INTEGER NOT NULL, won INTEGER NOT NULL,
    since_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX prompt_garbage_by_age ON prompt_garbage (head, since_ms);
"""

_HEAD_SEEN = """
INSERT OR IGNORE INTO prompt_garbage (record_key, head, won, since_ms)
SELECT ?, 1, 0, ? WHERE NOT EXISTS (SELECT 1 FROM prompts WHERE record_key = ?)
"""
_SUPERSEDED = """
INSERT OR REPLACE INTO prompt_garbage (record_key, head, won, since_ms)
SELECT record_key, 1, 1, ? FROM prompts WHERE tenant = ? AND slug = ? AND revision < ?
"""
_DELISTED = """
INSERT OR IGNORE INTO prompt_garbage (record_key, head, won, since_ms)
SELECT l.value, 0, 0, ? FROM prompts p, json_each(p.listed) l
WHERE p.tenant = ? AND p.slug = ? AND p.revision < ?
    AND l.value NOT IN (SELECT value FROM json_each(?))
"""
_HEAD = """
INSERT INTO prompts (tenant, slug, prompt_id, created_ms, revision, record_key, deleted,
    size_bytes, listed, head)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (tenant, slug) DO UPDATE SET
    prompt_id = excluded.prompt_id, created_ms = excluded.created_ms,
    revision = excluded.revision, record_key = excluded.record_key, deleted = excluded.deleted,
    size_bytes = excluded.size_bytes, listed = excluded.listed, head = excluded.head
WHERE excluded.revision > prompts.revision
"""
_KEPT = """
DELETE FROM prompt_garbage WHERE EXISTS (SELECT 1 FROM prompts WHERE record_key = ?)
    AND (record_key = ? OR record_key IN (SELECT value FROM json_each(?)))
"""
_TEXT = """
INSERT OR IGNORE INTO prompt_versions (record_key, messages, model_config) VALUES (?, ?, ?)
"""
_TEXT_SEEN = """
INSERT OR IGNORE INTO prompt_garbage (record_key, head, won, since_ms)
SELECT ?, 0, 0, ? WHERE NOT EXISTS (
    SELECT 1 FROM prompts p, json_each(p.listed) l
    WHERE p.tenant = ? AND p.slug = ? AND l.value = ?)
"""
_TEXT_GONE = "DELETE FROM prompt_versions WHERE record_key = ?"
_GARBAGE_GONE = "DELETE FROM prompt_garbage WHERE record_key = ?"


def prompt_statements(read: ReadRecord) -> Iterator[Statement]:
    """The statements that fold one record of the prompt topic."""
    match read.record:
        case PromptHead() as head:
            yield from _head(read, head)
        case PromptVersion() as text:
            yield _TEXT, (read.key, text.messages, text.model_config)
            yield _TEXT_SEEN, (read.key, read.timestamp_ms, text.tenant, text.slug, read.key)
        case None:
            # The tombstone of a head says that it is superseded, which is known or will be.
            yield _TEXT_GONE, (read.key,)
            yield _GARBAGE_GONE, (read.key,)


def _head(read: ReadRecord, head: PromptHead) -> Iterator[Statement]:
    texts = [version_key(head.tenant, head.slug, ref.version_id) for ref in head.versions]
    listed = msgspec.json.encode(texts).decode()
    place = (read.timestamp_ms, head.tenant, head.slug, head.revision)
    yield _HEAD_SEEN, (read.key, read.timestamp_ms, read.key)
    yield _SUPERSEDED, place
    yield _DELISTED, (*place, listed)
    yield (
        _HEAD,
        (
            head.tenant,
            head.slug,
            head.prompt_id,
            head.created_at_ms,
            head.revision,
            read.key,
            head.deleted_at_ms is not None,
            sum(ref.size_bytes for ref in head.versions),
            listed,
            msgspec.msgpack.encode(head),
        ),
    )
    yield _KEPT, (read.key, read.key, listed)
