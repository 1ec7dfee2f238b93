"""/v1/webhook_endpoints over HTTP and through the official SDK."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from openai import NotFoundError

from schemas.records import (
    DeliveryState,
    WebhookCommand,
    WebhookCommandKind,
    WebhookEndpoint,
    WebhookState,
)
from schemas.topics import WEBHOOK, WEBHOOK_DELIVERY, WEBHOOK_EVENT
from streams.settings import Settings
from tests.support.gateway import SDK, GatewayUnderTest, running_gateway
from tests.unit.test_webhooks import delivery

URL = "https://example.com/hook?token=1"
BASE = "/v1/webhook_endpoints"


async def make(gateway: GatewayUnderTest, **changes: Any) -> tuple[int, dict[str, Any]]:
    body = {"url": URL, **changes}
    async with gateway.http().post(BASE, json=body) as answer:
        return answer.status, await answer.json()


async def post(gateway: GatewayUnderTest, path: str, body: Any = None) -> tuple[int, Any]:
    async with gateway.http().post(f"{BASE}/{path}", json=body) as answer:
        return answer.status, await answer.json()


def commands(gateway: GatewayUnderTest) -> list[WebhookCommand]:
    found = [read.record for read in gateway.log.of(WEBHOOK_EVENT)]
    return [command for command in found if isinstance(command, WebhookCommand)]


async def show(gateway: GatewayUnderTest, key: str, record: Any) -> None:
    """Publishes as the webhook-worker would, and waits until it is shown."""
    place = await gateway.log.send(WEBHOOK_DELIVERY, key, record)
    assert await gateway.gateway.follower.reached(WEBHOOK_DELIVERY, place, 5.0)


async def test_the_sdk_creates_lists_retrieves_and_deletes(
    sdk: SDK, gateway: GatewayUnderTest
) -> None:
    types = ["batch.failed", "batch.completed"]
    made = await sdk(lambda c: c.webhooks.create(event_types=types, name="mine", url=URL))
    assert made.signing_secret.startswith("whsec_")
    assert (made.name, made.url, made.event_types) == ("mine", URL, types[::-1])
    shown = await sdk(lambda c: c.webhooks.retrieve(made.id))
    assert shown.to_dict().get("signing_secret") is None, "the secret is shown once"
    assert shown.signing_secret_hint.endswith(made.signing_secret[-4:])
    assert [one.id for one in await sdk.all(lambda c: c.webhooks.list(limit=1))] == [made.id]
    (record,) = [read.record for read in gateway.log.of(WEBHOOK)]
    assert isinstance(record, WebhookEndpoint)
    assert (record.tenant, record.secret) == ("acme", made.signing_secret)

    gone = await sdk(lambda c: c.webhooks.delete(made.id))
    assert (gone.id, gone.deleted) == (made.id, True)
    assert (await sdk.refused(lambda c: c.webhooks.retrieve(made.id))).status_code == 404
    last = gateway.log.of(WEBHOOK)[-1].record
    assert isinstance(last, WebhookEndpoint)
    assert (last.secret, last.url, last.name) == ("", "", ""), "nothing that it was is said again"


async def test_pages_of_endpoints_go_on_where_the_last_ended(gateway: GatewayUnderTest) -> None:
    ids = [(await make(gateway))[1]["id"] for _ in range(5)]
    found = await gateway.sdk().all(lambda c: c.webhooks.list(limit=2))
    assert [one.id for one in found] == ids[::-1]


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"url": None}, "url", "missing_required_parameter"),
        ({"url": 5}, "url", "invalid_type"),
        ({"url": "http://example.com/"}, "url", "invalid_value"),
        ({"url": "https://127.0.0.1/"}, "url", "invalid_value"),
        ({"url": "https://169.254.169.254/latest/"}, "url", "invalid_value"),
        ({"url": "https://e.com/" + "x" * 2048}, "url", "string_above_max_length"),
        ({"event_types": "batch.failed"}, "event_types", "invalid_type"),
        ({"event_types": []}, "event_types", "invalid_value"),
        ({"event_types": ["response.completed"]}, "event_types[]", "invalid_value"),
        ({"event_types": [1]}, "event_types[]", "invalid_type"),
        ({"name": "x" * 101}, "name", "string_above_max_length"),
        ({"name": "a\u0007"}, "name", "invalid_value"),
        ({"secret": "mine"}, "secret", "unknown_parameter"),
    ],
)
async def test_a_wrong_endpoint_is_refused_and_not_written(
    gateway: GatewayUnderTest, changes: Any, param: str, code: str
) -> None:
    status, answer = await make(gateway, **changes)
    assert (status, answer["error"]["param"], answer["error"]["code"]) == (400, param, code)
    assert gateway.log.of(WEBHOOK) == []


async def test_the_operator_may_allow_private_addresses() -> None:
    settings = Settings(webhook_allow_private=True)
    async with running_gateway(settings=settings) as gateway:
        assert (await make(gateway, url="http://127.0.0.1:9/hook"))[0] == 200


async def test_a_tenant_has_at_most_twenty(gateway: GatewayUnderTest) -> None:
    for _ in range(20):
        assert (await make(gateway))[0] == 200
    assert (await make(gateway))[0] == 409


async def test_another_tenants_endpoint_does_not_exist(gateway: GatewayUnderTest) -> None:
    _, made = await make(gateway)
    rival = gateway.sdk(tenant="rival")
    assert await rival.all(lambda c: c.webhooks.list()) == []
    with pytest.raises(NotFoundError):
        await rival(lambda c: c.webhooks.delete(made["id"]))
    for path in ("deliveries/evt_1/replay", "test", "enable"):
        async with gateway.http("rival").post(f"{BASE}/{made['id']}/{path}") as answer:
            assert answer.status == 404
    async with gateway.http("rival").get(f"{BASE}/{made['id']}/deliveries") as answer:
        assert answer.status == 404
    assert commands(gateway) == []


async def test_the_log_shows_the_last_deliveries_and_one_can_be_replayed(
    gateway: GatewayUnderTest,
) -> None:
    _, made = await make(gateway)
    we = made["id"]
    base = delivery(endpoint_id=we)
    done = msgspec.structs.replace(
        base, event_id="evt_done", state=DeliveryState.DELIVERED, attempts=3, status_code=200
    )
    waits = msgspec.structs.replace(
        base, event_id="evt_waits", error="timeout", changed_at_ms=base.changed_at_ms + 5000
    )
    for one in (done, waits):
        await show(gateway, f"{we}/{one.event_id}", one)
    async with gateway.http().get(f"{BASE}/{we}/deliveries") as answer:
        shown = (await answer.json())["data"]
    assert [one["id"] for one in shown] == ["evt_waits", "evt_done"]
    assert (shown[0]["state"], shown[0]["error"]) == ("pending", "timeout")
    assert shown[0]["next_attempt_at"] == base.next_at_ms // 1000
    assert (shown[1]["attempts"], shown[1]["status_code"]) == (3, 200)
    assert shown[1]["data"] == {"id": "batch_1"}
    assert "token" not in str(shown)

    assert (await post(gateway, f"{we}/deliveries/evt_done/replay"))[0] == 200
    (command,) = commands(gateway)
    assert (command.kind, command.event_id) == (WebhookCommandKind.REPLAY, "evt_done")
    assert (await post(gateway, f"{we}/deliveries/evt_none/replay"))[0] == 404
    await show(gateway, f"{we}/evt_done", None)
    assert (await post(gateway, f"{we}/deliveries/evt_done/replay"))[0] == 404


async def test_a_sample_is_asked_for_by_type(gateway: GatewayUnderTest) -> None:
    _, made = await make(gateway)
    status, answer = await post(gateway, f"{made['id']}/test", {"event_type": "batch.expired"})
    assert (status, answer["event_type"]) == (200, "batch.expired")
    (command,) = commands(gateway)
    assert (command.event_id, command.event_type) == (answer["event_id"], "batch.expired")
    assert (await post(gateway, f"{made['id']}/test", {"event_type": "x"}))[0] == 400


async def test_a_disabled_endpoint_says_so_and_must_be_enabled_first(
    gateway: GatewayUnderTest,
) -> None:
    _, made = await make(gateway)
    we = made["id"]
    state = WebhookState(endpoint_id=we, tenant="acme", watermark=1, disabled_at_ms=9000)
    await show(gateway, we, state)
    async with gateway.http().get(f"{BASE}/{we}") as answer:
        assert (await answer.json())["disabled_at"] == 9
    assert (await post(gateway, f"{we}/test"))[0] == 409
    assert (await post(gateway, f"{we}/enable"))[0] == 200
    assert [command.kind for command in commands(gateway)] == [WebhookCommandKind.ENABLE]
    await show(gateway, we, msgspec.structs.replace(state, disabled_at_ms=None))
    assert (await post(gateway, f"{we}/test"))[0] == 200
