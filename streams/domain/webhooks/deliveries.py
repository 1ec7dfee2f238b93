"""The life of a delivery: one event on its way to one endpoint.

begin ─► pending ─ attempt ─► delivered
            ▲  └── failed attempt: again after a while, until the schedule ends ─► failed
            └───────────── replay, of what ended either way ◄────────────────────────┘

An endpoint is disabled when a delivery is given up and nothing got through since its event.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from schemas.records import DeliveryState, WebhookDelivery, WebhookState

#: Ended deliveries that are kept of each endpoint, for its log and for replays.
KEPT = 50
#: Deliveries of one endpoint that may wait; what comes on top fails at once, and can be replayed.
MAX_PENDING = 1000
_OK = range(200, 300)
_DISABLED = "disabled"


@dataclass(frozen=True, slots=True)
class Attempt:
    """How an attempt ended. error: a word such as `timeout`; None where a status says it all."""

    status_code: int | None = None
    error: str | None = None

    @property
    def delivered(self) -> bool:
        """Whether the receiver has the event."""
        return self.status_code in _OK

    @property
    def outcome(self) -> str:
        """One word, for metrics."""
        return "delivered" if self.delivered else self.error or "status"


def key_of(endpoint_id: str, event: str) -> str:
    """The key of a delivery's record."""
    return f"{endpoint_id}/{event}"


def begun(
    fresh: WebhookDelivery, before: WebhookDelivery | None, state: WebhookState, pending: int
) -> WebhookDelivery | None:
    """The delivery of an event that is new to the endpoint; None if it is known already."""
    if before is not None:
        return None
    if state.disabled_at_ms is not None:
        return replace(fresh, state=DeliveryState.FAILED, error=_DISABLED)
    if pending >= MAX_PENDING:
        return replace(fresh, state=DeliveryState.FAILED, error="too_many_pending")
    return fresh


def replayed(
    before: WebhookDelivery, state: WebhookState, offset: int, now_ms: int
) -> WebhookDelivery | None:
    """The delivery, begun anew by the command at this offset; None if the command does nothing."""
    if offset <= before.watermark or state.disabled_at_ms is not None:
        return None
    return replace(
        before,
        watermark=offset,
        state=DeliveryState.PENDING,
        attempts=0,
        next_at_ms=now_ms,
        changed_at_ms=now_ms,
    )


def attempted(
    before: WebhookDelivery,
    attempt: Attempt,
    retry_after_s: Sequence[float],
    now_ms: int,
    jitter: float,
) -> WebhookDelivery:
    """The delivery after an attempt. jitter: factor on the pause, near 1."""
    changes = replace(
        before,
        attempts=before.attempts + 1,
        changed_at_ms=now_ms,
        status_code=attempt.status_code,
        error=None if attempt.delivered else attempt.error or "status",
    )
    if attempt.delivered:
        return replace(changes, state=DeliveryState.DELIVERED)
    if before.attempts >= len(retry_after_s):
        return replace(changes, state=DeliveryState.FAILED)
    pause_s = retry_after_s[before.attempts] * jitter
    return replace(changes, next_at_ms=now_ms + round(pause_s * 1000))


def given_up(before: WebhookDelivery, now_ms: int) -> WebhookDelivery:
    """The delivery, not tried any more: its endpoint is disabled."""
    return replace(before, state=DeliveryState.FAILED, error=_DISABLED, changed_at_ms=now_ms)


def after(state: WebhookState, delivery: WebhookDelivery) -> WebhookState:
    """The endpoint's state once a delivery of it has ended."""
    now_ms = delivery.changed_at_ms
    if delivery.state is DeliveryState.DELIVERED:
        return replace(state, delivered_at_ms=now_ms)
    silent = state.delivered_at_ms is None or state.delivered_at_ms < delivery.event_at_ms
    if delivery.state is DeliveryState.FAILED and state.disabled_at_ms is None and silent:
        return replace(state, disabled_at_ms=now_ms)
    return state


def enabled(state: WebhookState, offset: int) -> WebhookState | None:
    """The state that a command to enable leads to; None if it was folded already."""
    if offset <= state.watermark:
        return None
    return replace(state, watermark=offset, disabled_at_ms=None)


def surplus(deliveries: Iterable[WebhookDelivery]) -> list[WebhookDelivery]:
    """Those of an endpoint's ended deliveries that need not be kept, the oldest."""
    ended = [d for d in deliveries if d.state is not DeliveryState.PENDING]
    ended.sort(key=lambda d: (d.changed_at_ms, d.event_id))
    return ended[: max(0, len(ended) - KEPT)]
