"""Batches that have spent something, and who may spend what."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from schemas.records import ApiKeyRecord, BatchSnapshot, TenantRecord, Usage
from streams.domain.billing.prices.book import parse_prices
from streams.domain.clock import DAY_MS, day_of
from tests.unit.test_enqueued import snapshot as bare

BOOK = parse_prices(
    {
        "currency": "usd",
        "discounts": {"24h": "0.5"},
        "models": {
            "a": {"input": "2", "cached_input": "0.7", "output": "3.7"},
            "b": {"input": "0.111111", "output": "0.5"},
        },
    }
)


def at_ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


NOON = at_ms("2026-11-28T12:00")
TODAY = day_of(NOON)


def snapshot(batch_id: str, spent: int = 0, **changes: Any) -> BatchSnapshot:
    """A batch that runs, of one model, and that has cost so many micro-units."""
    fields = {
        "created_at_ms": NOON,
        "expires_at_ms": NOON + 3 * DAY_MS,
        "model": "a",
        "usage": Usage(input_tokens=spent),
        **changes,
    }
    return bare(batch_id, **fields)


def key(key_id: str, micros: int | None, period: str = "total") -> ApiKeyRecord:
    return ApiKeyRecord(
        key_id=key_id,
        tenant="a",
        name="",
        secret_sha256="",
        hint="",
        created_at_ms=0,
        budget_micros=micros,
        budget_period=period,
    )


def tenant(micros: int | None, period: str = "total") -> TenantRecord:
    return TenantRecord(tenant="a", at_ms=0, budget_micros=micros, budget_period=period)
