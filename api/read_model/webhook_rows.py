"""Webhook endpoints and their deliveries in the read model, and the questions asked of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import aiosqlite
import msgspec

from api.read_model.statement import Statement
from schemas.records import WebhookDelivery, WebhookEndpoint, WebhookState
from schemas.topics import WEBHOOK
from streams.kafka.reader import ReadRecord

WEBHOOK_TABLES = """
CREATE TABLE webhook_endpoints (
    endpoint_id TEXT PRIMARY KEY, tenant TEXT NOT NULL, created_ms INTEGER NOT NULL,
    endpoint BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX webhook_endpoints_of_tenant ON webhook_endpoints (tenant, created_ms, endpoint_id);
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

_ENDPOINT = "INSERT OR REPLACE INTO webhook_endpoints VALUES (?, ?, ?, ?)"
_ENDPOINT_GONE = "DELETE FROM webhook_endpoints WHERE endpoint_id = ?"
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
            said = msgspec.msgpack.encode(endpoint)
            yield _ENDPOINT, (key, endpoint.tenant, endpoint.created_at_ms, said)
        case WebhookDelivery() as delivery:
            said = msgspec.msgpack.encode(delivery)
            at_ms = delivery.changed_at_ms
            yield _DELIVERY, (key, delivery.endpoint_id, delivery.tenant, at_ms, said)
        case WebhookState() as state:
            yield _STATE, (key, state.tenant, state.disabled_at_ms)
        case None if read.topic is WEBHOOK:
            yield _ENDPOINT_GONE, (key,)
        case None:
            yield _DELIVERY_GONE, (key,)
            yield _STATE_GONE, (key,)


class WebhookQueries:
    """Reads one connection of the read model's database. Each question is one tenant's."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    async def endpoint(self, tenant: str, endpoint_id: str) -> WebhookEndpoint | None:
        """The endpoint, if the tenant has it."""
        rows = await self._all(
            "SELECT endpoint FROM webhook_endpoints WHERE tenant = ? AND endpoint_id = ?",
            (tenant, endpoint_id),
        )
        return _endpoints.decode(rows[0][0]) if rows else None

    async def endpoints(self, tenant: str) -> list[WebhookEndpoint]:
        """All endpoints of the tenant, newest first."""
        rows = await self._all(
            "SELECT endpoint FROM webhook_endpoints WHERE tenant = ? "
            "ORDER BY created_ms DESC, endpoint_id DESC",
            (tenant,),
        )
        return [_endpoints.decode(row[0]) for row in rows]

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
