"""API keys: making, listing and revoking them, as records on the `account` topic.

A secret is `bh_` and 256 random bits, shown once. Only its SHA-256 is kept: with that much
randomness a plain hash can't be turned back, and looking it up by hash leaks no prefix by time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from typing import Any

import msgspec
import uuid_utils

from api.log_port import LogProducer, LogReader
from schemas.records import ApiKeyRecord
from schemas.topics import ACCOUNT, TENANT_PATTERN
from streams.domain.clock import Clock, SystemClock

PREFIX = "bh_"
_SECRET_BYTES = 32
_HINT_CHARACTERS = 4
_MAX_NAME = 100
_TENANT = re.compile(TENANT_PATTERN)


class InvalidKeyName(ValueError):  # noqa: N818 - it is what is wrong
    """The tenant or the name of an API key can't be used; the message says why."""


async def create_key(
    producer: LogProducer,
    tenant: str,
    name: str,
    *,
    secret: str | None = None,
    clock: Clock | None = None,
) -> tuple[ApiKeyRecord, str]:
    """A new key for the tenant, and its secret, which nobody can show again.

    secret: one that this function made before, for a cluster that has forgotten it.
    Raises InvalidKeyName, KafkaBaseError.
    """
    check_tenant(tenant)
    if not (name.isprintable() and len(name) <= _MAX_NAME):
        raise InvalidKeyName(f"A key's name is at most {_MAX_NAME} printable characters.")
    secret = secret or PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    record = ApiKeyRecord(
        key_id=f"key_{uuid_utils.uuid7().hex}",
        tenant=tenant,
        name=name,
        secret_sha256=hash_of(secret),
        hint=secret[-_HINT_CHARACTERS:],
        created_at_ms=(clock or SystemClock()).now_ms(),
    )
    await producer.send(ACCOUNT, record.key_id, record)
    return record, secret


def check_tenant(tenant: str) -> None:
    """Raises InvalidKeyName for what can't be a tenant."""
    if not _TENANT.fullmatch(tenant):
        raise InvalidKeyName(
            "A tenant is 1 to 64 letters, digits, '-' and '_', and begins with a letter or digit."
        )


async def list_keys(reader: LogReader) -> list[ApiKeyRecord]:
    """All keys, oldest first, revoked ones too; `reader` is a fresh one of the topic ACCOUNT.

    Raises KafkaBaseError.
    """
    found: dict[str, ApiKeyRecord] = {}
    await reader.start("beginning")
    try:
        ends = await reader.ends()
        while any(reader.positions().get(place, 0) < end for place, end in ends.items()):
            for read in await reader.poll():
                if isinstance(read.record, ApiKeyRecord):
                    key_id = read.record.key_id
                    found[key_id] = _merged(found.get(key_id), read.record)
    finally:
        await reader.stop()
    return sorted(found.values(), key=lambda key: (key.created_at_ms, key.key_id))


async def revoke_key(
    producer: LogProducer, key: ApiKeyRecord, *, clock: Clock | None = None
) -> ApiKeyRecord:
    """The key, revoked; one that was revoked before is left alone. Raises KafkaBaseError."""
    if key.revoked_at_ms is not None:
        return key
    revoked = msgspec.structs.replace(key, revoked_at_ms=(clock or SystemClock()).now_ms())
    # Under a key of its own: no change made from what was known before can take its place, not
    # even when the topic is compacted.
    await producer.send(ACCOUNT, f"{key.key_id}/revoked", revoked)
    return revoked


async def change_key(
    producer: LogProducer, key: ApiKeyRecord, changes: Mapping[str, Any]
) -> ApiKeyRecord:
    """The key with these fields changed, its secret and tenant not. Raises KafkaBaseError."""
    changed = msgspec.structs.replace(key, **changes)
    await producer.send(ACCOUNT, key.key_id, changed)
    return changed


def hash_of(secret: str) -> str:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def same_hash(one: str, other: str) -> bool:
    """Compares in constant time."""
    return hmac.compare_digest(one, other)


def _merged(before: ApiKeyRecord | None, now: ApiKeyRecord) -> ApiKeyRecord:
    # Nothing brings a revoked key back.
    if before is None or before.revoked_at_ms is None:
        return now
    return msgspec.structs.replace(now, revoked_at_ms=before.revoked_at_ms)
