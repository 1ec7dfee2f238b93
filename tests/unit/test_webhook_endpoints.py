"""What may change of a webhook endpoint, and which secrets its events are signed with."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from openai import InvalidWebhookSignatureError, OpenAI

from streams.domain.webhooks.endpoints import (
    MAX_OLD,
    OVERLAP_MS,
    TooManySecretsError,
    rotated,
    secrets_at,
    updated,
)
from streams.domain.webhooks.events import body_of, headers_of, secret_of
from tests.support.webhooks import SECRET, endpoint
from tests.unit.test_webhooks import delivery

NEW = secret_of(bytes(32))
NOW = 1_700_000_000_000
BEFORE = endpoint("https://example.com/hook")


def test_after_a_rotation_with_overlap_the_official_sdk_takes_both_secrets() -> None:
    now_ms = time.time_ns() // 1_000_000
    secrets = secrets_at(rotated(BEFORE, NEW, now_ms, keep=True), now_ms)
    body = body_of(delivery())
    headers = headers_of("evt_1", body, secrets, now_ms)
    for secret, known in ((NEW, True), (SECRET, True), (secret_of(b"x" * 32), False)):
        client = OpenAI(api_key="none", webhook_secret=secret)
        if known:
            assert client.webhooks.unwrap(body, headers).id == "evt_1"
        else:
            with pytest.raises(InvalidWebhookSignatureError):
                client.webhooks.unwrap(body, headers)
        client.close()


def test_the_old_secret_is_good_for_a_day_and_not_longer() -> None:
    now = rotated(BEFORE, NEW, NOW, keep=True)
    assert secrets_at(now, NOW + OVERLAP_MS - 1) == (NEW, SECRET)
    assert secrets_at(now, NOW + OVERLAP_MS) == (NEW,)
    assert now.updated_at_ms == NOW


def test_a_rotation_without_overlap_ends_all_secrets_before() -> None:
    kept = rotated(BEFORE, NEW, NOW, keep=True)
    assert secrets_at(rotated(kept, "whsec_c", NOW, keep=False), NOW) == ("whsec_c",)


def test_a_rotation_that_was_asked_for_twice_does_not_end_the_secret_that_is_in_use() -> None:
    twice = rotated(rotated(BEFORE, NEW, NOW, keep=True), "whsec_c", NOW + 5, keep=True)
    assert secrets_at(twice, NOW + 10) == ("whsec_c", NEW, SECRET)
    assert secrets_at(twice, NOW + OVERLAP_MS) == ("whsec_c", NEW)


def test_more_rotations_than_may_overlap_are_refused_until_one_is_over() -> None:
    now = BEFORE
    for number in range(MAX_OLD):
        now = rotated(now, f"whsec_{number}", NOW + number, keep=True)
    with pytest.raises(TooManySecretsError):
        rotated(now, NEW, NOW + MAX_OLD, keep=True)
    assert secrets_at(rotated(now, NEW, NOW + MAX_OLD, keep=False), NOW) == (NEW,)
    assert len(secrets_at(rotated(now, NEW, NOW + OVERLAP_MS, keep=True), NOW + OVERLAP_MS)) == 5


def test_what_is_given_is_changed_and_the_rest_stays() -> None:
    now = updated(BEFORE, NOW, url="https://example.com/other")
    assert now == replace(BEFORE, url="https://example.com/other", updated_at_ms=NOW)
    off = updated(now, NOW + 1, enabled=False, name="off", event_types=("batch.failed",))
    assert (off.enabled, off.name, off.event_types) == (False, "off", ("batch.failed",))
    assert off.url == now.url


def test_a_change_that_changes_nothing_is_none() -> None:
    assert updated(BEFORE, NOW) is BEFORE
    assert updated(BEFORE, NOW, url=BEFORE.url, name=BEFORE.name, enabled=True) is BEFORE


@given(st.lists(st.tuples(st.integers(0, OVERLAP_MS), st.booleans(), st.booleans()), max_size=12))
def test_each_secret_is_good_exactly_as_long_as_was_promised(
    changes: list[tuple[int, bool, bool]],
) -> None:
    now, now_ms = BEFORE, NOW
    good: dict[str, int | None] = {BEFORE.secret: None}
    for number, (later_ms, rotate, keep) in enumerate(changes):
        now_ms += later_ms
        if not rotate:
            now = updated(now, now_ms, name=str(number))
        else:
            try:
                following = rotated(now, f"whsec_{number}", now_ms, keep=keep)
            except TooManySecretsError:
                continue
            kept = {s: now_ms + OVERLAP_MS if end is None else end for s, end in good.items()}
            good = (kept if keep else {}) | {following.secret: None}
            now = following
        expected = {s for s, end in good.items() if end is None or now_ms < end}
        assert set(secrets_at(now, now_ms)) == expected
        assert len(now.old_secrets) <= MAX_OLD
