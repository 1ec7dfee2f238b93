"""API keys: what is stored of them, and what is not."""

from __future__ import annotations

import hashlib

import pytest

from api.accounts.keys import InvalidKeyName, create_key, list_keys, revoke_key
from api.log_fake import FakeLog
from schemas.codec import encode
from schemas.topics import ACCOUNT
from streams.domain.clock import ManualClock


async def test_a_secret_has_256_random_bits_and_only_its_hash_is_stored() -> None:
    log = FakeLog()
    record, secret = await create_key(log, "acme", "laptop")
    _, other = await create_key(log, "acme", "laptop")
    assert secret != other
    assert secret.startswith("bh_")
    assert len(secret) == len("bh_") + 43
    assert record.secret_sha256 == hashlib.sha256(secret.encode()).hexdigest()
    assert record.hint == secret[-4:]
    assert secret.encode()[3:] not in encode(record)
    assert log.of(ACCOUNT)[0].record == record


async def test_keys_are_listed_oldest_first_with_their_revocation() -> None:
    log, clock = FakeLog(), ManualClock()
    made = []
    for name in ("one", "two", "three"):
        record, _ = await create_key(log, "acme", name, clock=clock)
        made.append(record)
        clock.advance(1)
    revoked = await revoke_key(log, made[1], clock=clock)
    assert revoked.revoked_at_ms == clock.now_ms()
    assert await list_keys(log.reader([ACCOUNT])) == [made[0], revoked, made[2]]


async def test_an_empty_list_of_keys_is_empty() -> None:
    assert await list_keys(FakeLog().reader([ACCOUNT])) == []


async def test_a_key_revoked_before_keeps_its_time() -> None:
    log, clock = FakeLog(), ManualClock()
    record, _ = await create_key(log, "acme", "one", clock=clock)
    revoked = await revoke_key(log, record, clock=clock)
    clock.advance(10)
    assert await revoke_key(log, revoked, clock=clock) == revoked
    assert len(log.of(ACCOUNT)) == 2


@pytest.mark.parametrize("tenant", ["", "a/b", "..", "-a", "a b", "x" * 65, "ä", "a\n"])
async def test_a_tenant_that_cannot_be_part_of_an_object_key_is_refused(tenant: str) -> None:
    with pytest.raises(InvalidKeyName):
        await create_key(FakeLog(), tenant, "name")


@pytest.mark.parametrize("name", ["x" * 101, "a\x1b[31m", "a\nb"])
async def test_a_name_that_would_disturb_a_terminal_is_refused(name: str) -> None:
    with pytest.raises(InvalidKeyName):
        await create_key(FakeLog(), "acme", name)
