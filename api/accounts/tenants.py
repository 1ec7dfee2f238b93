"""Tenants as the topic `account` knows them: their limits, and who has keys at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from api.accounts.keys import check_tenant
from api.log_port import LogProducer, LogReader
from schemas.records import ApiKeyRecord, TenantRecord
from schemas.topics import ACCOUNT
from streams.domain.clock import Clock, SystemClock


@dataclass(frozen=True, slots=True)
class TenantShown:
    """A tenant: its limits, and how many keys it has that are not revoked."""

    limits: TenantRecord
    keys: int


async def list_tenants(reader: LogReader) -> list[TenantShown]:
    """All tenants by name; `reader` is a fresh one of the topic ACCOUNT. Raises KafkaBaseError."""
    limits: dict[str, TenantRecord] = {}
    keys: dict[str, set[str]] = {}
    revoked: set[str] = set()
    await reader.start("beginning")
    try:
        ends = await reader.ends()
        while any(reader.positions().get(place, 0) < end for place, end in ends.items()):
            for read in await reader.poll():
                match read.record:
                    case TenantRecord() as record:
                        limits[record.tenant] = record
                    case ApiKeyRecord() as key:
                        keys.setdefault(key.tenant, set()).add(key.key_id)
                        revoked |= {key.key_id} if key.revoked_at_ms is not None else set()
    finally:
        await reader.stop()
    return [
        TenantShown(
            limits.get(name) or TenantRecord(tenant=name, at_ms=0),
            len(keys.get(name, set()) - revoked),
        )
        for name in sorted({*limits, *keys})
    ]


async def set_limits(
    producer: LogProducer,
    reader: LogReader,
    tenant: str,
    changes: Mapping[str, Any],
    *,
    clock: Clock | None = None,
) -> TenantRecord:
    """The tenant's limits from now on. changes: fields of TenantRecord; others stay as they are.

    A tenant may be one that has no key (yet). Raises InvalidKeyName, KafkaBaseError.
    """
    check_tenant(tenant)
    known = {shown.limits.tenant: shown.limits for shown in await list_tenants(reader)}
    now_ms = (clock or SystemClock()).now_ms()
    before = known.get(tenant) or TenantRecord(tenant=tenant, at_ms=now_ms)
    record = msgspec.structs.replace(before, at_ms=now_ms, **changes)
    await producer.send(ACCOUNT, key_of(tenant), record)
    return record


def key_of(tenant: str) -> str:
    """The key of a tenant's record; no key's id has a slash."""
    return f"tenant/{tenant}"
