"""What a webhook says: OpenAI's events, signed as Standard Webhooks has it.

webhook-id: evt_…, the same at every attempt     webhook-timestamp: Unix seconds of this attempt
webhook-signature: v1,<base64 of HMAC-SHA256 over id.timestamp.body>, one for each secret
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable

import msgspec

from schemas.records import BatchStatus, WebhookDelivery

#: How a batch may end, and the event that tells of it.
TYPES: dict[BatchStatus, str] = {
    BatchStatus.COMPLETED: "batch.completed",
    BatchStatus.FAILED: "batch.failed",
    BatchStatus.EXPIRED: "batch.expired",
    BatchStatus.CANCELLED: "batch.cancelled",
}
EVENT_TYPES = tuple(TYPES.values())
SECRET_PREFIX = "whsec_"  # noqa: S105 - what every secret begins with
#: Random bytes in a secret; Standard Webhooks asks for 24 to 64.
SECRET_BYTES = 32
_MS = 1000


def event_id(object_id: str, event_type: str) -> str:
    """The id of what happened to an object; the same whoever computes it, and how often."""
    return f"evt_{hashlib.sha256(f'{event_type}:{object_id}'.encode()).hexdigest()[:32]}"


def secret_of(random: bytes) -> str:
    """The secret made of these bytes."""
    return SECRET_PREFIX + base64.b64encode(random).decode()


def body_of(delivery: WebhookDelivery) -> bytes:
    """The event as JSON; the same bytes at every attempt."""
    return msgspec.json.encode(
        {
            "id": delivery.event_id,
            "object": "event",
            "type": delivery.event_type,
            "created_at": delivery.event_at_ms // _MS,
            "data": {"id": delivery.object_id},
        }
    )


def headers_of(event: str, body: bytes, secrets: Iterable[str], now_ms: int) -> dict[str, str]:
    """The three headers that let a receiver check who sent the body, and when.

    secrets: that any of them may check it with.
    """
    timestamp = str(now_ms // _MS)
    signed = f"{event}.{timestamp}.".encode() + body
    return {
        "webhook-id": event,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(_signature(secret, signed) for secret in secrets),
    }


def _signature(secret: str, signed: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    return f"v1,{base64.b64encode(hmac.digest(key, signed, 'sha256')).decode()}"
