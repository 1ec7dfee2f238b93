"""Webhook endpoints and deliveries as the JSON objects that callers see."""

from __future__ import annotations

from typing import Any

from schemas.records import DeliveryState, WebhookDelivery, WebhookEndpoint

_MS = 1000
_HINT = 4


def endpoint(found: WebhookEndpoint, disabled_ms: int | None, *, secret: bool = False) -> Any:
    """OpenAI's WebhookEndpoint, with `enabled` and `disabled_at`.

    secret: whether to show it, this once.
    """
    shown: dict[str, Any] = {
        "id": found.endpoint_id,
        "object": "webhook_endpoint",
        "name": found.name,
        "url": found.url,
        "event_types": list(found.event_types),
        "created_at": found.created_at_ms // _MS,
        "updated_at": (found.updated_at_ms or found.created_at_ms) // _MS,
        "signing_secret_hint": f"whsec_…{found.secret[-_HINT:]}",
        "enabled": found.enabled and disabled_ms is None,
        "disabled_at": None if disabled_ms is None else disabled_ms // _MS,
    }
    if secret:
        shown["signing_secret"] = found.secret
    return shown


def delivery(found: WebhookDelivery) -> Any:
    """One line of an endpoint's log. No body, and nothing of the receiver's but a status."""
    pending = found.state is DeliveryState.PENDING
    return {
        "id": found.event_id,
        "object": "webhook_endpoint.delivery",
        "event_type": found.event_type,
        "data": {"id": found.object_id},
        "state": found.state.value,
        "attempts": found.attempts,
        "status_code": found.status_code,
        "error": found.error,
        "event_at": found.event_at_ms // _MS,
        "updated_at": found.changed_at_ms // _MS,
        "next_attempt_at": found.next_at_ms // _MS if pending else None,
    }
