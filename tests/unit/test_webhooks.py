"""Webhooks' rules: signatures the SDK accepts, the schedule, the life of a delivery, addresses."""

from __future__ import annotations

import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import InvalidWebhookSignatureError, OpenAI

from schemas.records import DeliveryState, WebhookDelivery, WebhookState
from streams.domain.webhooks.address import WebhookURLError, check_url, is_public
from streams.domain.webhooks.deliveries import (
    KEPT,
    MAX_PENDING,
    Attempt,
    after,
    attempted,
    begun,
    enabled,
    replayed,
    surplus,
)
from streams.domain.webhooks.events import EVENT_TYPES, body_of, event_id, headers_of, secret_of
from streams.settings import Settings

SECRET = secret_of(bytes(range(32)))
NOW = 1_700_000_000_000
STATE = WebhookState(endpoint_id="we_1", tenant="acme", watermark=-1)


def delivery(event: str = "evt_1", **changes: object) -> WebhookDelivery:
    fresh = WebhookDelivery(
        endpoint_id="we_1",
        event_id=event,
        tenant="acme",
        event_type="batch.completed",
        object_id="batch_1",
        event_at_ms=NOW,
        watermark=5,
        state=DeliveryState.PENDING,
        attempts=0,
        next_at_ms=NOW,
        changed_at_ms=NOW,
    )
    return msgspec.structs.replace(fresh, **changes)


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_the_official_sdk_unwraps_every_event_and_refuses_a_changed_one(event_type: str) -> None:
    client = OpenAI(api_key="none", webhook_secret=SECRET)
    event = event_id("batch_1", event_type)
    body = body_of(delivery(event, event_type=event_type))
    headers = headers_of(event, body, [SECRET], time.time_ns() // 1_000_000)
    unwrapped = client.webhooks.unwrap(body, headers)
    assert (unwrapped.id, unwrapped.type) == (event, event_type)
    assert unwrapped.created_at == NOW // 1000
    assert unwrapped.data.id == "batch_1"  # type: ignore[union-attr]
    with pytest.raises(InvalidWebhookSignatureError):
        client.webhooks.unwrap(body.replace(b"batch_1", b"batch_2"), headers)
    with pytest.raises(InvalidWebhookSignatureError):
        client.webhooks.unwrap(body, {**headers, "webhook-id": "evt_other"})
    client.close()


def test_an_event_has_one_id_whoever_computes_it() -> None:
    ids = {event_id(b, t) for b in ("batch_1", "batch_2") for t in EVENT_TYPES for _ in range(2)}
    assert len(ids) == 2 * len(EVENT_TYPES)


def test_the_default_schedule_tries_for_a_day_and_each_pause_is_no_shorter() -> None:
    pauses = Settings().webhook_retry_after_s
    assert 23 * 3600 < sum(pauses) <= 24 * 3600
    assert list(pauses) == sorted(pauses)


def test_failed_attempts_follow_the_schedule_and_end_it() -> None:
    at, now_ms = delivery(), NOW
    for pause_s in (1.0, 10.0):
        at = attempted(at, Attempt(500), (1.0, 10.0), now_ms, 1.1)
        assert (at.state, at.status_code, at.error) == (DeliveryState.PENDING, 500, "status")
        assert at.next_at_ms == now_ms + round(pause_s * 1100)
        now_ms = at.next_at_ms
    at = attempted(at, Attempt(error="timeout"), (1.0, 10.0), now_ms, 1.0)
    assert (at.state, at.attempts, at.error) == (DeliveryState.FAILED, 3, "timeout")


@pytest.mark.parametrize("status", [199, 301, 302, 400, 410, 500])
def test_only_a_2xx_is_a_delivery_redirects_are_not(status: int) -> None:
    assert not Attempt(status).delivered
    assert Attempt(204).delivered
    assert attempted(delivery(), Attempt(status), (1.0,), NOW, 1.0).state is DeliveryState.PENDING


def test_an_endpoint_is_disabled_when_nothing_got_through_since_the_event() -> None:
    given_up = delivery(state=DeliveryState.FAILED, changed_at_ms=NOW + 99)
    assert after(STATE, given_up).disabled_at_ms == NOW + 99
    got_through = after(STATE, delivery(state=DeliveryState.DELIVERED, changed_at_ms=NOW + 1))
    assert got_through.delivered_at_ms == NOW + 1
    assert after(got_through, given_up) == got_through
    assert after(STATE, delivery()) == STATE, "one that is still tried says nothing"


def test_a_disabled_endpoint_takes_no_event_until_it_is_enabled() -> None:
    disabled = msgspec.structs.replace(STATE, disabled_at_ms=NOW)
    begin = begun(delivery(), None, disabled, 0)
    assert begin is not None
    assert (begin.state, begin.error) == (DeliveryState.FAILED, "disabled")
    assert replayed(delivery(state=DeliveryState.FAILED), disabled, 6, NOW) is None
    again = enabled(disabled, 7)
    assert again is not None
    assert again.disabled_at_ms is None
    assert enabled(again, 7) is None, "the same command again does nothing"
    failed = replayed(begin, again, 8, NOW + 5)
    assert failed is not None
    assert (failed.state, failed.attempts) == (DeliveryState.PENDING, 0)


def test_what_an_endpoint_may_have_waiting_is_bounded() -> None:
    begin = begun(delivery(), None, STATE, MAX_PENDING)
    assert begin is not None
    assert (begin.state, begin.error) == (DeliveryState.FAILED, "too_many_pending")


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["end", "replay"])), max_size=40))
def test_events_read_again_after_a_crash_change_nothing(log: list[tuple[int, str]]) -> None:
    def fold(known: dict[int, WebhookDelivery]) -> dict[int, WebhookDelivery]:
        for offset, (batch, what) in enumerate(log):
            before = known.get(batch)
            if what == "end":
                now = begun(delivery(f"evt_{batch}", watermark=offset), before, STATE, 0)
            else:
                now = before and replayed(before, STATE, offset, NOW)
            if now is not None:
                known[batch] = now
        return known

    once = fold({})
    done = {b: attempted(d, Attempt(200), (), NOW, 1.0) for b, d in once.items()}
    assert fold(dict(done)) == done


def test_the_log_keeps_the_last_ended_deliveries_and_all_that_wait() -> None:
    ended = [
        delivery(f"evt_{n}", state=DeliveryState.DELIVERED, changed_at_ms=NOW + n)
        for n in range(KEPT + 3)
    ]
    waiting = [delivery(f"evt_w{n}", changed_at_ms=0) for n in range(KEPT * 2)]
    assert surplus([*waiting, *reversed(ended)]) == ended[:3]


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254"),
        *("0.0.0.0", "100.64.0.1", "224.0.0.1", "239.1.1.1", "255.255.255.255", "240.0.0.1"),
        *("192.0.2.1", "198.18.0.1", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1"),
        *("::ffff:127.0.0.1", "::ffff:8.8.8.8", "::8.8.8.8", "64:ff9b::7f00:1", "64:ff9b::808:808"),
        *("2002:7f00:1::", "2001::1", "2001:db8::1", "fec0::1", "localhost", "", "1.2.3"),
    ],
)
def test_no_address_but_a_public_one_is_allowed(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111"])
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        *("http://example.com/", "ftp://example.com/", "example.com", "https://", "https:///x"),
        *("https://u:p@example.com/", "https://u@example.com/", "https://example.com/#a"),
        *("https://127.0.0.1/", "https://[::1]/", "https://[fe80::1%25eth0]/", "https://10.1.1.1/"),
        *("https://localhost/", "https://a.localhost./", "https://[::ffff:8.8.8.8]/"),
        *("https://exa mple.com/", "https://example.com/\n", "https://example.com:0/"),
        *("https://example.com:99999/", "https://[/", "https://exämple.com/", "https://a/" * 900),
    ],
)
def test_what_cannot_be_a_webhooks_url_is_refused_when_it_is_given(url: str) -> None:
    with pytest.raises(WebhookURLError):
        check_url(url, allow_private=False)


def test_the_operators_setting_allows_private_addresses_and_plain_http() -> None:
    check_url("https://example.com:8443/hook?x=1", allow_private=False)
    check_url("http://127.0.0.1:9/hook", allow_private=True)
    check_url("http://localhost/hook", allow_private=True)
    with pytest.raises(WebhookURLError):
        check_url("file:///etc/passwd", allow_private=True)
