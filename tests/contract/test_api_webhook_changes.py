"""Changing a webhook endpoint, over HTTP and through the official SDK."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from schemas.records import WebhookCommandKind, WebhookEndpoint, WebhookState
from schemas.topics import WEBHOOK
from streams.domain.webhooks.endpoints import MAX_OLD, OVERLAP_MS
from tests.contract.test_api_webhooks import BASE, URL, commands, make, post, show
from tests.support.gateway import SDK, GatewayUnderTest

OTHER = "https://example.com/other"


def written(gateway: GatewayUnderTest) -> list[WebhookEndpoint]:
    """The endpoint's records, in order."""
    found = [read.record for read in gateway.log.of(WEBHOOK)]
    return [record for record in found if isinstance(record, WebhookEndpoint)]


async def test_the_sdk_updates_what_is_given_and_leaves_the_rest(
    sdk: SDK, gateway: GatewayUnderTest
) -> None:
    made = await sdk(lambda c: c.webhooks.create(event_types=["batch.failed"], name="a", url=URL))
    now = await sdk(lambda c: c.webhooks.update(made.id, url=OTHER))
    assert (now.id, now.url, now.name, now.event_types) == (made.id, OTHER, "a", ["batch.failed"])
    assert now.to_dict().get("signing_secret") is None
    types = ["batch.expired", "batch.completed"]
    now = await sdk(lambda c: c.webhooks.update(made.id, name="b", event_types=types))
    assert (now.url, now.name, now.event_types) == (OTHER, "b", types[::-1])
    assert [record.secret for record in written(gateway)] == [made.signing_secret] * 3
    assert (await sdk(lambda c: c.webhooks.retrieve(made.id))).name == "b"


async def test_an_update_that_changes_nothing_is_not_written(gateway: GatewayUnderTest) -> None:
    _, made = await make(gateway)
    assert (await post(gateway, made["id"], {"url": URL, "enabled": None}))[0] == 200
    assert len(written(gateway)) == 1


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"url": "http://example.com/"}, "url", "invalid_value"),
        ({"url": "https://127.0.0.1/"}, "url", "invalid_value"),
        ({"event_types": []}, "event_types", "invalid_value"),
        ({"name": "x" * 101}, "name", "string_above_max_length"),
        ({"enabled": "no"}, "enabled", "invalid_type"),
        ({"secret": "mine"}, "secret", "unknown_parameter"),
    ],
)
async def test_a_wrong_change_is_refused_and_not_written(
    gateway: GatewayUnderTest, changes: Any, param: str, code: str
) -> None:
    _, made = await make(gateway)
    status, answer = await post(gateway, made["id"], changes)
    assert (status, answer["error"]["param"], answer["error"]["code"]) == (400, param, code)
    assert len(written(gateway)) == 1


async def test_an_endpoint_is_switched_off_and_on(gateway: GatewayUnderTest) -> None:
    _, made = await make(gateway)
    we = made["id"]
    _, off = await post(gateway, we, {"enabled": False})
    assert (off["enabled"], off["disabled_at"]) == (False, None)
    assert (await post(gateway, f"{we}/test"))[0] == 409
    _, on = await post(gateway, f"{we}/enable")
    assert on["enabled"] is True
    assert [record.enabled for record in written(gateway)] == [True, False, True]
    assert [command.kind for command in commands(gateway)] == [WebhookCommandKind.ENABLE]


async def test_enabling_ends_a_disablement_by_failures_too(gateway: GatewayUnderTest) -> None:
    _, made = await make(gateway)
    state = WebhookState(endpoint_id=made["id"], tenant="acme", watermark=1, disabled_at_ms=9000)
    await show(gateway, made["id"], state)
    _, changed = await post(gateway, made["id"], {"url": OTHER})
    assert (changed["enabled"], changed["disabled_at"]) == (False, 9)
    assert commands(gateway) == []
    _, on = await post(gateway, made["id"], {"enabled": True})
    assert (on["enabled"], on["disabled_at"]) == (True, None)
    assert [command.kind for command in commands(gateway)] == [WebhookCommandKind.ENABLE]


async def test_the_sdk_rotates_the_secret_and_the_old_one_ends_at_once(
    sdk: SDK, gateway: GatewayUnderTest
) -> None:
    made = await sdk(lambda c: c.webhooks.create(event_types=["batch.failed"], name="a", url=URL))
    new = await sdk(lambda c: c.webhooks.rotate_secret(made.id))
    assert new.signing_secret.startswith("whsec_")
    assert new.signing_secret != made.signing_secret
    assert new.signing_secret_hint.endswith(new.signing_secret[-4:])
    last = written(gateway)[-1]
    assert (last.secret, last.old_secrets) == (new.signing_secret, ())
    assert (await sdk(lambda c: c.webhooks.retrieve(made.id))).to_dict().get(
        "signing_secret"
    ) is None


async def test_the_old_secret_is_kept_for_a_day_where_that_is_asked_for(
    sdk: SDK, gateway: GatewayUnderTest
) -> None:
    made = await sdk(lambda c: c.webhooks.create(event_types=["batch.failed"], name="a", url=URL))
    await sdk(lambda c: c.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True))
    (old,) = written(gateway)[-1].old_secrets
    assert old.secret == made.signing_secret
    assert old.until_ms == (written(gateway)[-1].updated_at_ms or 0) + OVERLAP_MS


async def test_too_many_rotations_in_a_day_are_refused(gateway: GatewayUnderTest) -> None:
    _, made = await make(gateway)
    keep = {"keep_old_secret_active_for_24_hours": True}
    for _ in range(MAX_OLD):
        assert (await post(gateway, f"{made['id']}/rotate_secret", keep))[0] == 200
    assert (await post(gateway, f"{made['id']}/rotate_secret", keep))[0] == 409
    assert (await post(gateway, f"{made['id']}/rotate_secret"))[0] == 200


async def test_another_tenant_can_change_nothing(gateway: GatewayUnderTest) -> None:
    _, made = await make(gateway)
    for path, body in (("", {"url": OTHER}), ("/rotate_secret", None), ("/enable", None)):
        answer = await gateway.http("rival").post(f"{BASE}/{made['id']}{path}", json=body)
        assert answer.status == 404
    assert len(written(gateway)) == 1


async def test_changes_at_once_all_stay(gateway: GatewayUnderTest) -> None:
    _, made = await make(gateway)
    we, keep = made["id"], {"keep_old_secret_active_for_24_hours": True}
    answers = await asyncio.gather(
        post(gateway, we, {"name": "b"}),
        post(gateway, f"{we}/rotate_secret", keep),
        post(gateway, we, {"url": OTHER}),
    )
    assert [status for status, _ in answers] == [200, 200, 200]
    last = written(gateway)[-1]
    assert (last.name, last.url) == ("b", OTHER)
    assert last.secret == answers[1][1]["signing_secret"]
    assert [old.secret for old in last.old_secrets] == [made["signing_secret"]]


async def test_a_deletion_waits_for_a_change_that_would_bring_the_endpoint_back(
    gateway: GatewayUnderTest,
) -> None:
    _, made = await make(gateway)
    changing = asyncio.Lock()
    gateway.gateway.webhook_locks[f"acme/{made['id']}"] = changing
    async with changing:
        deleting = asyncio.create_task(gateway.sdk()(lambda c: c.webhooks.delete(made["id"])))
        for _ in range(5):
            assert len(await gateway.sdk().all(lambda c: c.webhooks.list())) == 1
        assert len(written(gateway)) == len(gateway.log.of(WEBHOOK)) == 1
    assert (await deleting).deleted
    assert written(gateway)[-1].deleted_at_ms is not None
