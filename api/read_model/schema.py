"""The read model's tables, and how records become rows.

Rows and the topic offsets they come from are written in one transaction, so a restart goes on
where the last transaction ended. Every statement may be repeated: a batch row is replaced only
by a snapshot of no lower revision, a deleted file and a revoked key stay so whatever comes later.
Stored prompts are in `prompt_rows`, commands to running batches in `control_rows`, webhooks in
`webhook_rows`, usage of real-time requests in `realtime_rows`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from api.read_model.control_rows import CONTROL_TABLES, control_statements, folded_statements
from api.read_model.prompt_rows import PROMPT_TABLES, prompt_statements
from api.read_model.realtime_rows import REALTIME_TABLES, realtime_statements
from api.read_model.statement import Statement
from api.read_model.webhook_rows import WEBHOOK_TABLES, webhook_statements
from schemas.records import (
    ApiKeyRecord,
    BatchCancel,
    BatchChange,
    BatchCreate,
    BatchPause,
    BatchResume,
    BatchSnapshot,
    BatchStatus,
    FileRecord,
    PromptHead,
    PromptVersionRef,
    TenantRecord,
    WebhookDelivery,
    WebhookEndpoint,
)
from schemas.topics import (
    ACCOUNT,
    BATCH_COMMAND,
    BATCH_STATUS,
    FILE,
    METER_SEND,
    PROMPT,
    WEBHOOK,
    WEBHOOK_DELIVERY,
    Topic,
)
from streams.kafka.reader import ReadRecord

#: What the read model is made of.
TOPICS: tuple[Topic, ...] = (
    BATCH_COMMAND,
    BATCH_STATUS,
    FILE,
    ACCOUNT,
    PROMPT,
    WEBHOOK,
    WEBHOOK_DELIVERY,
    METER_SEND,
)

TABLES = f"""{PROMPT_TABLES}{CONTROL_TABLES}{WEBHOOK_TABLES}{REALTIME_TABLES}
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE positions (
    topic TEXT NOT NULL, partition INTEGER NOT NULL, next_offset INTEGER NOT NULL,
    PRIMARY KEY (topic, partition)
) WITHOUT ROWID;
CREATE TABLE batches (
    batch_id TEXT PRIMARY KEY, tenant TEXT NOT NULL, created_s INTEGER NOT NULL,
    input_file_id TEXT NOT NULL, revision INTEGER NOT NULL, ended_ms INTEGER,
    snapshot BLOB NOT NULL, cleaned INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX batches_of_tenant ON batches (tenant, created_s, batch_id);
CREATE INDEX batches_live ON batches (tenant, input_file_id) WHERE ended_ms IS NULL;
CREATE INDEX batches_to_clean ON batches (ended_ms) WHERE cleaned = 0 AND ended_ms IS NOT NULL;
CREATE TABLE cancels (
    batch_id TEXT PRIMARY KEY, tenant TEXT NOT NULL, at_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE files (
    file_id TEXT PRIMARY KEY, tenant TEXT NOT NULL, object_key TEXT NOT NULL,
    size_bytes INTEGER NOT NULL, sha256 TEXT, filename TEXT NOT NULL, purpose TEXT NOT NULL,
    created_ms INTEGER NOT NULL, expires_ms INTEGER, batch_id TEXT, deleted_ms INTEGER,
    gone_ms INTEGER
);
CREATE INDEX files_of_tenant ON files (tenant, created_ms, file_id);
CREATE INDEX files_deleted ON files (deleted_ms) WHERE gone_ms IS NULL AND deleted_ms IS NOT NULL;
CREATE INDEX files_expiring ON files (expires_ms) WHERE gone_ms IS NULL AND expires_ms IS NOT NULL;
CREATE INDEX files_gone ON files (gone_ms) WHERE gone_ms IS NOT NULL;
CREATE TABLE keys (
    key_id TEXT PRIMARY KEY, secret_sha256 TEXT NOT NULL, tenant TEXT NOT NULL,
    name TEXT NOT NULL, revoked_ms INTEGER, budget INTEGER
) WITHOUT ROWID;
CREATE INDEX keys_by_secret ON keys (secret_sha256);
CREATE INDEX keys_of_tenant ON keys (tenant);
CREATE TABLE tenants (tenant TEXT PRIMARY KEY, budget INTEGER) WITHOUT ROWID;
"""

#: Changes whenever the tables or the stored records' fields do: then the model is rebuilt.
_STORED = (BatchSnapshot, PromptHead, PromptVersionRef, WebhookEndpoint, WebhookDelivery)
VERSION = hashlib.sha256(
    (TABLES + repr([msgspec.structs.fields(kept) for kept in _STORED])).encode()
).hexdigest()[:16]

_CREATED = """
INSERT INTO batches (batch_id, tenant, created_s, input_file_id, revision, ended_ms, snapshot)
VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (batch_id) DO NOTHING
"""
_SNAPSHOT = """
INSERT INTO batches (batch_id, tenant, created_s, input_file_id, revision, ended_ms, snapshot)
VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (batch_id) DO UPDATE SET
    tenant = excluded.tenant, created_s = excluded.created_s,
    input_file_id = excluded.input_file_id, revision = excluded.revision,
    ended_ms = excluded.ended_ms, snapshot = excluded.snapshot
WHERE excluded.revision >= batches.revision
"""
_BATCH_GONE = "DELETE FROM batches WHERE batch_id = ?"
_CANCELLED = "INSERT OR IGNORE INTO cancels (batch_id, tenant, at_ms) VALUES (?, ?, ?)"
_FILE = """
INSERT INTO files (file_id, tenant, object_key, size_bytes, sha256, filename, purpose,
    created_ms, expires_ms, batch_id, deleted_ms)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (file_id) DO UPDATE SET
    object_key = excluded.object_key, size_bytes = excluded.size_bytes,
    sha256 = excluded.sha256, filename = excluded.filename, purpose = excluded.purpose,
    expires_ms = excluded.expires_ms, batch_id = excluded.batch_id,
    deleted_ms = coalesce(files.deleted_ms, excluded.deleted_ms), gone_ms = NULL
WHERE files.tenant = excluded.tenant
"""
# The row stays for a while: a page may still begin after it, and a late repeat of the file's
# first record must find it deleted.
_FILE_GONE = """
UPDATE files SET gone_ms = ?, deleted_ms = coalesce(deleted_ms, expires_ms, created_ms)
WHERE file_id = ?
"""
_KEY = """
INSERT INTO keys (key_id, secret_sha256, tenant, name, revoked_ms, budget)
VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (key_id) DO UPDATE SET
    secret_sha256 = excluded.secret_sha256, tenant = excluded.tenant,
    name = excluded.name, budget = excluded.budget,
    revoked_ms = coalesce(keys.revoked_ms, excluded.revoked_ms)
"""

#: Topics whose tables are in modules of their own.
_ELSEWHERE: Mapping[str, Callable[[ReadRecord], Iterator[Statement]]] = {
    PROMPT.name: prompt_statements,
    WEBHOOK.name: webhook_statements,
    WEBHOOK_DELIVERY.name: webhook_statements,
    METER_SEND.name: realtime_statements,
}
_TENANT = "INSERT OR REPLACE INTO tenants (tenant, budget) VALUES (?, ?)"


def statements(records: list[ReadRecord]) -> Iterator[Statement]:
    """The statements that fold these records into the tables, in their order."""
    for read in records:
        elsewhere = _ELSEWHERE.get(read.topic.name)
        if elsewhere is not None:
            yield from elsewhere(read)
            continue
        match read.record:
            case BatchCreate() as create:
                yield _CREATED, _batch_row(from_create(create))
            case BatchSnapshot() as snapshot:
                yield _SNAPSHOT, _batch_row(snapshot)
                yield from folded_statements(snapshot)
            case BatchCancel() as cancel:
                yield _CANCELLED, (cancel.batch_id, cancel.tenant, cancel.at_ms)
            case BatchPause() | BatchResume() | BatchChange() as command:
                yield from control_statements(read, command)
            case FileRecord() as file:
                yield _FILE, _file_row(file)
            case ApiKeyRecord() as key:
                yield _KEY, _key_row(key)
            case TenantRecord() as tenant:
                yield _TENANT, (tenant.tenant, tenant.budget_micros)
            case None if read.topic is FILE:
                yield _FILE_GONE, (read.timestamp_ms, read.key)
            case None if read.topic is BATCH_STATUS:
                yield _BATCH_GONE, (read.key,)


def from_create(create: BatchCreate) -> BatchSnapshot:
    """A batch as it is shown until the controller has said more."""
    created_ms = create.at_ms // 1000 * 1000
    return BatchSnapshot(
        batch_id=create.batch_id,
        tenant=create.tenant,
        revision=-1,
        status=BatchStatus.VALIDATING,
        created_at_ms=created_ms,
        expires_at_ms=created_ms + create.window_s * 1000,
        endpoint=create.endpoint,
        input_file_id=create.input_file_id,
        completion_window=create.completion_window,
        metadata=create.metadata,
        output_expires_after_s=create.output_expires_after_s,
        request_hash=create.request_hash,
        errors=(),
        total=0,
        completed=0,
        failed=0,
        priority=create.priority,
        origin_batch_id=create.origin_batch_id,
        kafka_key=create.kafka_key,
        key_id=create.key_id,
        estimated_cost_micros=create.estimated_cost_micros,
        commands=(create.command_id,),
    )


def ended_at_ms(snapshot: BatchSnapshot) -> int | None:
    """When the batch ended; None while it lives."""
    match snapshot.status:
        case BatchStatus.COMPLETED:
            at = snapshot.completed_at_ms
        case BatchStatus.FAILED:
            at = snapshot.failed_at_ms
        case BatchStatus.EXPIRED:
            at = snapshot.expired_at_ms
        case BatchStatus.CANCELLED:
            at = snapshot.cancelled_at_ms
        case _:
            return None
    return snapshot.created_at_ms if at is None else at


def with_cancel(snapshot: BatchSnapshot, cancel_ms: int | None) -> BatchSnapshot:
    """The batch as shown once a cancel is in the log, whether the controller has folded it or not.

    A batch that ended before the cancel could reach it keeps the time that callers have seen.
    """
    if cancel_ms is None or snapshot.cancelling_at_ms is not None:
        return snapshot
    # As the controller reckons: clocks differ a little, but nothing precedes the batch itself.
    cancel_ms = max(cancel_ms, snapshot.created_at_ms)
    ended_ms = ended_at_ms(snapshot)
    if ended_ms is None:
        return msgspec.structs.replace(
            snapshot,
            status=BatchStatus.CANCELLING,
            cancelling_at_ms=cancel_ms,
            paused_at_ms=None,
        )
    if cancel_ms < ended_ms:
        return msgspec.structs.replace(snapshot, cancelling_at_ms=cancel_ms)
    return snapshot


def _batch_row(snapshot: BatchSnapshot) -> tuple[Any, ...]:
    return (
        snapshot.batch_id,
        snapshot.tenant,
        snapshot.created_at_ms // 1000,
        snapshot.input_file_id,
        snapshot.revision,
        ended_at_ms(snapshot),
        msgspec.msgpack.encode(snapshot),
    )


def _key_row(key: ApiKeyRecord) -> tuple[Any, ...]:
    return (
        key.key_id,
        key.secret_sha256,
        key.tenant,
        key.name,
        key.revoked_at_ms,
        key.budget_micros,
    )


def _file_row(file: FileRecord) -> tuple[Any, ...]:
    return (
        file.file_id,
        file.tenant,
        file.object.key,
        file.object.size_bytes,
        file.object.sha256,
        file.filename,
        file.purpose,
        file.created_at_ms,
        file.expires_at_ms,
        file.batch_id,
        file.deleted_at_ms,
    )
