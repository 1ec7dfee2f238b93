"""What may change of a webhook endpoint, and with which secrets its events are signed.

No two writes of an endpoint share a record key, and one counts if its revision is higher than
that of the one before it. So of several gateways that changed the same revision the first in the
log wins, for every reader and after any compaction: what counts is never the one that gets a
tombstone.
"""

from __future__ import annotations

from msgspec.structs import replace

from schemas.records import OldSecret, WebhookEndpoint

#: How long events are signed with a replaced secret, too, where that is asked for.
OVERLAP_MS = 24 * 3_600_000
#: Replaced secrets that may be good at once. A repeated request takes a place.
MAX_OLD = 4


class TooManySecretsError(ValueError):
    """As many replaced secrets are still good as may be."""


def record_key(endpoint: WebhookEndpoint) -> str:
    """The record key of a write. Nobody but its maker knows an endpoint as it is created."""
    if endpoint.revision == 0:
        return endpoint.endpoint_id
    return f"{endpoint.endpoint_id}/{endpoint.revision}/{endpoint.write_id}"


def endpoint_id_of(key: str) -> str:
    """Whose record has this key."""
    return key.partition("/")[0]


def supersedes(endpoint: WebhookEndpoint, before: WebhookEndpoint | None) -> bool:
    """Whether a write, read after `before`, counts."""
    return before is None or endpoint.revision > before.revision


def written(endpoint: WebhookEndpoint, before: WebhookEndpoint, write_id: str) -> WebhookEndpoint:
    """The endpoint as the next write after `before`."""
    return replace(endpoint, revision=before.revision + 1, write_id=write_id)


def deleted(endpoint: WebhookEndpoint, now_ms: int) -> WebhookEndpoint:
    """What is kept of it, so that no write that lost against the deletion brings it back."""
    return replace(
        endpoint, name="", url="", event_types=(), secret="", old_secrets=(), deleted_at_ms=now_ms
    )


def rotated(endpoint: WebhookEndpoint, secret: str, now_ms: int, *, keep: bool) -> WebhookEndpoint:
    """The endpoint with another secret.

    keep: the secrets before stay good until their time is over; otherwise they end now. Raises
    TooManySecretsError.
    """
    old = _good(endpoint, now_ms) if keep else ()
    if len(old) >= MAX_OLD:
        raise TooManySecretsError
    if keep:
        old = (OldSecret(secret=endpoint.secret, until_ms=now_ms + OVERLAP_MS), *old)
    return replace(endpoint, secret=secret, old_secrets=old, updated_at_ms=now_ms)


def updated(
    endpoint: WebhookEndpoint,
    now_ms: int,
    *,
    name: str | None = None,
    url: str | None = None,
    event_types: tuple[str, ...] | None = None,
    enabled: bool | None = None,
) -> WebhookEndpoint:
    """The endpoint with what is given changed; itself if that changes nothing."""
    changes = {"name": name, "url": url, "event_types": event_types, "enabled": enabled}
    now = replace(endpoint, **{key: new for key, new in changes.items() if new is not None})
    if now == endpoint:
        return endpoint
    return replace(now, old_secrets=_good(endpoint, now_ms), updated_at_ms=now_ms)


def secrets_at(endpoint: WebhookEndpoint, now_ms: int) -> tuple[str, ...]:
    """Those with which an event is signed then, the newest first."""
    return (endpoint.secret, *(old.secret for old in _good(endpoint, now_ms)))


def _good(endpoint: WebhookEndpoint, now_ms: int) -> tuple[OldSecret, ...]:
    return tuple(old for old in endpoint.old_secrets if now_ms < old.until_ms)
