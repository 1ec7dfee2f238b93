"""What is reconciled: one batch, the batches of a day, or those of the last month."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from schemas.records import BatchSnapshot, MeterSend

#: Output files are kept for so long unless their callers ask otherwise.
_DEFAULT_DAYS = 30
_MAX_MS = 1 << 62


@dataclass(frozen=True, kw_only=True)
class Scope:
    """batch_id, tenant: None means all. start_ms, end_ms: when batches were created."""

    batch_id: str | None = None
    tenant: str | None = None
    start_ms: int = 0
    end_ms: int = _MAX_MS

    def has_batch(self, batch: BatchSnapshot) -> bool:
        """Whether the batch is meant."""
        return self._has(batch.batch_id, batch.tenant, batch.created_at_ms)

    def has_send(self, send: MeterSend) -> bool:
        """Whether the amount's batch is meant."""
        return self._has(send.batch_id, send.tenant, send.batch_created_at_ms)

    def _has(self, batch_id: str, tenant: str, created_at_ms: int) -> bool:
        return (
            self.batch_id in (None, batch_id)
            and self.tenant in (None, tenant)
            and self.start_ms <= created_at_ms < self.end_ms
        )


def scope_of(batch_id: str | None, day: date | None, tenant: str | None, now_ms: int) -> Scope:
    """What these options mean. Days are UTC's."""
    if batch_id is not None:
        return Scope(batch_id=batch_id, tenant=tenant)
    if day is None:
        start_ms = now_ms - _DEFAULT_DAYS * 86_400_000
        return Scope(tenant=tenant, start_ms=start_ms)
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    end = start + timedelta(days=1)
    return Scope(tenant=tenant, start_ms=_ms(start), end_ms=_ms(end))


def _ms(at: datetime) -> int:
    return int(at.timestamp()) * 1000
