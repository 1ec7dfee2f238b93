"""`backhaul webhooks` against the real gateway on fakes."""

from __future__ import annotations

import asyncio
import json

import pytest
from typer.testing import CliRunner, Result

from api.cli.main import app
from schemas.records import DeliveryState, WebhookEndpoint
from schemas.topics import WEBHOOK, WEBHOOK_DELIVERY
from tests.support.gateway import GatewayUnderTest
from tests.unit.test_webhooks import delivery


@pytest.fixture(autouse=True)
def _server(gateway: GatewayUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKHAUL_BASE_URL", gateway.url)
    monkeypatch.setenv("BACKHAUL_API_KEY", gateway.keys["acme"])


async def webhooks(*args: str) -> Result:
    return await asyncio.to_thread(
        CliRunner().invoke, app, ["webhooks", *args], prog_name="backhaul"
    )


async def test_an_endpoint_from_creation_to_deletion(gateway: GatewayUnderTest) -> None:
    made = await webhooks("create", "https://example.com/hook", "--event", "batch.failed")
    assert made.exit_code == 0
    assert made.stdout.startswith("whsec_"), "the secret alone, for scripts"
    listed = await webhooks("list")
    we = listed.stdout.split()[0]
    assert listed.stdout == f"{we} enabled  https://example.com/hook batch.failed\n"
    assert "whsec_" not in (await webhooks("list", "--json")).stdout.replace("whsec_…", "")

    assert (await webhooks("deliveries", we)).stdout == ""
    done = delivery("evt_1", endpoint_id=we, state=DeliveryState.DELIVERED, attempts=2)
    place = await gateway.log.send(WEBHOOK_DELIVERY, f"{we}/evt_1", done)
    await gateway.gateway.follower.reached(WEBHOOK_DELIVERY, place, 5.0)
    shown = await webhooks("deliveries", we)
    assert shown.stdout == "evt_1 batch.completed batch_1 delivered after 2 attempts\n"
    assert json.loads((await webhooks("deliveries", we, "--json")).stdout)["attempts"] == 2
    assert (await webhooks("replay", we, "evt_1")).stdout == "evt_1 is delivered again.\n"
    assert (await webhooks("test", we)).stdout.endswith(" is on its way.\n")
    assert (await webhooks("enable", we)).stdout == f"{we} is enabled.\n"

    assert (await webhooks("delete", we)).stdout == f"{we} is deleted.\n"
    assert (await webhooks("list")).stdout == ""
    gone = await webhooks("delete", we)
    assert (gone.exit_code, "No webhook endpoint found" in gone.stderr) == (1, True)


async def test_what_the_server_refuses_is_said_in_its_words(gateway: GatewayUnderTest) -> None:
    refused = await webhooks("create", "http://example.com/")
    assert refused.exit_code == 1
    assert "must begin with https://" in refused.stderr
    assert gateway.log.of(WEBHOOK) == []


async def test_an_endpoint_is_changed_and_its_secret_rotated(gateway: GatewayUnderTest) -> None:
    made = await webhooks("create", "https://example.com/hook", "--json")
    we = json.loads(made.stdout)["id"]
    assert (await webhooks("update", we)).exit_code == 2
    changed = await webhooks(
        *("update", we, "--url", "https://example.com/b", "--event", "batch.failed", "--disable")
    )
    assert (changed.exit_code, changed.stdout) == (0, f"{we} is changed.\n")
    listed = (await webhooks("list")).stdout
    assert listed == f"{we} disabled https://example.com/b batch.failed\n"
    assert json.loads((await webhooks("update", we, "--enable", "--json")).stdout)["enabled"]

    rotated = await webhooks("rotate", we)
    assert rotated.stdout.startswith("whsec_"), "the secret alone, for scripts"
    record = gateway.log.of(WEBHOOK)[-1].record
    assert isinstance(record, WebhookEndpoint)
    assert (record.secret, len(record.old_secrets)) == (rotated.stdout.strip(), 1)
    assert (await webhooks("rotate", we, "--now")).exit_code == 0
    record = gateway.log.of(WEBHOOK)[-1].record
    assert isinstance(record, WebhookEndpoint)
    assert record.old_secrets == ()
