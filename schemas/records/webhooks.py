"""Webhooks: whom tenants want told of what, and every delivery."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from schemas.records.batches import BatchStatus


class OldSecret(msgspec.Struct, frozen=True, kw_only=True):
    """A secret that was replaced and is good for a while yet."""

    secret: str
    until_ms: int


class WebhookEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """An address of a tenant's that is told of events, as one write of several has it.

    Of all writes of an endpoint the one with the highest revision counts, and of several with
    that one the first in the log; streams.domain.webhooks.endpoints has the key of each.
    """

    endpoint_id: str
    tenant: str
    name: str
    url: str
    event_types: tuple[str, ...]
    secret: str
    created_at_ms: int
    old_secrets: tuple[OldSecret, ...] = ()
    enabled: bool = True
    updated_at_ms: int | None = None
    revision: int = 0
    write_id: str = ""
    deleted_at_ms: int | None = None


class BatchEnded(msgspec.Struct, frozen=True, kw_only=True):
    """A batch has ended; what its tenant's webhooks are told."""

    batch_id: str
    tenant: str
    status: BatchStatus
    at_ms: int


class WebhookCommandKind(StrEnum):
    """What a caller asks of an endpoint."""

    UNKNOWN = "unknown"
    TEST = "test"
    REPLAY = "replay"
    ENABLE = "enable"


class WebhookCommand(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller asks of an endpoint, beside making and deleting it."""

    tenant: str
    endpoint_id: str
    kind: WebhookCommandKind
    event_id: str
    event_type: str
    at_ms: int


class DeliveryState(StrEnum):
    """How far a delivery is."""

    UNKNOWN = "unknown"
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class WebhookDelivery(msgspec.Struct, frozen=True, kw_only=True):
    """One event for one endpoint, and how its delivery stands. Also a row of the worker's table."""

    endpoint_id: str
    event_id: str
    tenant: str
    event_type: str
    object_id: str
    event_at_ms: int
    watermark: int
    state: DeliveryState
    attempts: int
    next_at_ms: int
    changed_at_ms: int
    status_code: int | None = None
    error: str | None = None


class WebhookState(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an endpoint is told at all. Also a row of the worker's table."""

    endpoint_id: str
    tenant: str
    watermark: int
    delivered_at_ms: int | None = None
    disabled_at_ms: int | None = None
