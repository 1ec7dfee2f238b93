"""Webhook endpoints and their deliveries in the read model, and the questions asked of them.

Of an endpoint's writes one of a higher revision replaces one of a lower, so that the first of a
revision wins. What doesn't count is remembered as past until its tombstone is read; `won` tells a
write that counted once from one that lost the race for its revision.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import aiosqlite
import msgspec

from api.read_model.statement import Statement
from schemas.records import WebhookDelivery, WebhookEndpoint, WebhookState
from schemas.topics import WEBHOOK
from streams.domain.webhooks.endpoints import endpoint_id_of
from streams.kafka.reader import ReadRecord

WEBHOOK_TABLES = """
CREATE TABLE webhook_endpoints (
    endpoint_id TEXT PRIMARY KEY, tenant TEXT NOT NULL, created_ms INTEGER NOT NULL,
    revision INTEGER NOT NULL, record_key TEXT NOT NULL, deleted_ms INTEGER,
    endpoint BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX webhook_endpoints_of_tenant ON webhook_endpoints (tenant, created_ms, endpoint_id)
    WHERE deleted_ms IS NULL;
CREATE INDEX webhook_endpoints_deleted ON webhook_endpoints (deleted_ms)
    WHERE deleted_ms IS NOT NULL;
CREATE TABLE webhook_past (
    record_key TEXT PRIMARY KEY, endpoint_id TEXT NOT NULL, won INTEGER NOT NULL,
    since_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX webhook_past_of_endpoint ON webhook_past (endpoint_id);
CREATE TABLE webhook_deliveries (
    record_key TEXT PRIMARY KEY, endpoint_id TEXT NOT NULL, tenant TEXT NOT NULL,
    changed_ms INTEGER NOT NULL, delivery BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX webhook_deliveries_of_endpoint
    ON webhook_deliveries (tenant, endpoint_id, changed_ms, record_key);
CREATE TABLE webhook_states (
    endpoint_id TEXT PRIMARY KEY, tenant TEXT NOT NULL, disabled_ms INTEGER
) WITHOUT ROWID;
"""

_SEEN = """
INSERT OR IGNORE INTO webhook_past (record_key, endpoint_id, won, since_ms) SELECT ?, ?, 0, ?
WHERE NOT EXISTS (SELECT 1 FROM webhook_endpoints WHERE endpoint_id = ? AND record_key = ?)
"""
_SUPERSEDED = """
INSERT OR REPLACE INTO webhook_past (record_key, endpoint_id, won, since_ms)
SELECT record_key, endpoint_id, 1, ? FROM webhook_endpoints WHERE endpoint_id = ? AND revision < ?
"""
_ENDPOINT = """
INSERT INTO webhook_endpoints VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (endpoint_id) DO UPDATE SET
    tenant = excluded.tenant, created_ms = excluded.created_ms, revision = excluded.revision,
    record_key = excluded.record_key, deleted_ms = excluded.deleted_ms,
    endpoint = excluded.endpoint
WHERE excluded.revision > webhook_endpoints.revision
"""
_KEPT = """
DELETE FROM webhook_past WHERE record_key = ?
    AND EXISTS (SELECT 1 FROM webhook_endpoints WHERE endpoint_id = ? AND record_key = ?)
"""
_ENDPOINT_GONE = "DELETE FROM webhook_endpoints WHERE endpoint_id = ? AND record_key = ?"
_PAST_GONE = "DELETE FROM webhook_past WHERE record_key = ?"
_DELIVERY = "INSERT OR REPLACE INTO webhook_deliveries VALUES (?, ?, ?, ?, ?)"
_DELIVERY_GONE = "DELETE FROM webhook_deliveries WHERE record_key = ?"
_STATE = "INSERT OR REPLACE INTO webhook_states VALUES (?, ?, ?)"
_STATE_GONE = "DELETE FROM webhook_states WHERE endpoint_id = ?"

_endpoints = msgspec.msgpack.Decoder(WebhookEndpoint)
_deliveries = msgspec.msgpack.Decoder(WebhookDelivery)


def webhook_statements(read: ReadRecord) -> Iterator[Statement]:
    """The statements that fold a record of the webhooks' two topics."""
    key = read.key
    match read.record:
        case WebhookEndpoint() as endpoint:
            yield from _write(read, endpoint)
        case WebhookDelivery() as delivery:
            said = msgspec.msgpack.encode(delivery)
            at_ms = delivery.changed_at_ms
            yield _DELIVERY, (key, delivery.endpoint_id, delivery.tenant, at_ms, said)
        case WebhookState() as state:
            yield _STATE, (key, state.tenant, state.disabled_at_ms)
        case None if read.topic is WEBHOOK:
            yield _ENDPOINT_GONE, (endpoint_id_of(key), key)
            yield _PAST_GONE, (key,)
        case None:
            yield _DELIVERY_GONE, (key,)
            yield _STATE_GONE, (key,)


def _write(read: ReadRecord, endpoint: WebhookEndpoint) -> Iterator[Statement]:
    key, endpoint_id, at_ms = read.key, endpoint_id_of(read.key), read.timestamp_ms
    yield _SEEN, (key, endpoint_id, at_ms, endpoint_id, key)
    yield _SUPERSEDED, (at_ms, endpoint_id, endpoint.revision)
    yield (
        _ENDPOINT,
        (
            endpoint_id,
            endpoint.tenant,
            endpoint.created_at_ms,
            endpoint.revision,
            key,
            endpoint.deleted_at_ms,
            msgspec.msgpack.encode(endpoint),
        ),
    )
    yield _KEPT, (key, endpoint_id, key)


class WebhookQueries:
    """Reads one connection of the read model's database. Each question is one tenant's."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    async def endpoint(self, tenant: str, endpoint_id: str) -> WebhookEndpoint | None:
        """The endpoint, if the tenant has it."""
        rows = await self._all(
            "SELECT endpoint FROM webhook_endpoints "
            "WHERE tenant = ? AND endpoint_id = ? AND deleted_ms IS NULL",
            (tenant, endpoint_id),
        )
        return _endpoints.decode(rows[0][0]) if rows else None

    async def endpoints(self, tenant: str) -> list[WebhookEndpoint]:
        """All endpoints of the tenant, newest first."""
        rows = await self._all(
            "SELECT endpoint FROM webhook_endpoints WHERE tenant = ? AND deleted_ms IS NULL "
            "ORDER BY created_ms DESC, endpoint_id DESC",
            (tenant,),
        )
        return [_endpoints.decode(row[0]) for row in rows]

    async def won(self, record_key: str) -> bool:
        """Whether a write of an endpoint counted when it was read, also if that is past."""
        rows = await self._all(
            "SELECT 1 FROM webhook_endpoints WHERE endpoint_id = ? AND record_key = ? "
            "UNION ALL SELECT won FROM webhook_past WHERE record_key = ?",
            (endpoint_id_of(record_key), record_key, record_key),
        )
        return bool(rows and rows[0][0])

    async def past(self, *, past_ms: int, deleted_ms: int, limit: int) -> list[str]:
        """Keys of records that may get their tombstones, in that order.

        past_ms: those that count no more since before then; those that lost come first.
        deleted_ms: what is left of endpoints deleted before then, once it is all there is of them.
        """
        rows = await self._all(
            "SELECT record_key FROM ("
            "SELECT record_key, won, since_ms FROM webhook_past WHERE since_ms <= ? UNION ALL "
            "SELECT record_key, 2, deleted_ms FROM webhook_endpoints AS e WHERE deleted_ms <= ? "
            "AND NOT EXISTS (SELECT 1 FROM webhook_past AS p WHERE p.endpoint_id = e.endpoint_id)"
            ") ORDER BY won, since_ms LIMIT ?",
            (past_ms, deleted_ms, limit),
        )
        return [row[0] for row in rows]

    async def disabled_ms(self, tenant: str, endpoint_id: str) -> int | None:
        """When the endpoint was disabled; None while it is not."""
        rows = await self._all(
            "SELECT disabled_ms FROM webhook_states WHERE tenant = ? AND endpoint_id = ?",
            (tenant, endpoint_id),
        )
        return rows[0][0] if rows else None

    async def delivery(
        self, tenant: str, endpoint_id: str, event_id: str
    ) -> WebhookDelivery | None:
        """The delivery of an event to an endpoint, if it is still in the log."""
        rows = await self._all(
            "SELECT delivery FROM webhook_deliveries WHERE tenant = ? AND record_key = ?",
            (tenant, f"{endpoint_id}/{event_id}"),
        )
        return _deliveries.decode(rows[0][0]) if rows else None

    async def deliveries(self, tenant: str, endpoint_id: str, limit: int) -> list[WebhookDelivery]:
        """The endpoint's last deliveries, the last changed first."""
        rows = await self._all(
            "SELECT delivery FROM webhook_deliveries WHERE tenant = ? AND endpoint_id = ? "
            "ORDER BY changed_ms DESC, record_key DESC LIMIT ?",
            (tenant, endpoint_id, limit),
        )
        return [_deliveries.decode(row[0]) for row in rows]

    async def _all(self, sql: str, parameters: Iterable[Any]) -> list[Any]:
        return list(await self._connection.execute_fetchall(sql, parameters))
