"""Pause, resume and change over HTTP: what they answer, write and refuse."""

from __future__ import annotations

from typing import Any

import pytest
from openai import AsyncOpenAI, NotFoundError

from schemas.records import BatchChange, BatchCreate, BatchPause, BatchResume, BatchStatus
from tests.support.gateway import GatewayUnderTest, running_gateway

OVER = [s for s in BatchStatus if s.value.endswith(("ed", "ling"))]
DAY_S = 86_400


async def ask(
    gateway: GatewayUnderTest, path: str, body: Any = None, *, tenant: str = "acme"
) -> tuple[int, dict[str, Any]]:
    """Status and JSON of a POST below /v1/batches/."""
    async with gateway.http(tenant).post(f"/v1/batches/{path}", json=body) as answer:
        return answer.status, await answer.json()


async def shown(gateway: GatewayUnderTest, batch_id: str) -> dict[str, Any]:
    return (await gateway.client().batches.retrieve(batch_id)).to_dict()


async def test_a_new_batch_shows_priority_and_no_pause(gateway: GatewayUnderTest) -> None:
    batch = await shown(gateway, await gateway.create())
    assert (batch["priority"], batch["paused_at"]) == (0, None)


async def test_pause_shows_at_once_stays_and_is_written_once(gateway: GatewayUnderTest) -> None:
    batch_id = await gateway.create()
    code, paused = await ask(gateway, f"{batch_id}/pause")
    assert (code, paused["status"]) == (200, "validating")
    assert paused["paused_at"] >= paused["created_at"]
    assert await shown(gateway, batch_id) == paused
    assert await ask(gateway, f"{batch_id}/pause") == (200, paused)
    (command,) = gateway.commands(BatchPause)
    assert isinstance(command, BatchPause)
    assert (command.batch_id, command.tenant) == (batch_id, "acme")
    await gateway.show(batch_id, status=BatchStatus.IN_PROGRESS, total=3)
    running = await shown(gateway, batch_id)
    assert (running["status"], running["paused_at"]) == ("in_progress", paused["paused_at"])


async def test_resume_shows_at_once_and_is_harmless_where_nothing_is_paused(
    gateway: GatewayUnderTest,
) -> None:
    batch_id = await gateway.create()
    assert (await ask(gateway, f"{batch_id}/resume"))[0] == 200
    assert gateway.commands(BatchResume) == []
    await ask(gateway, f"{batch_id}/pause")
    for _ in range(2):
        code, resumed = await ask(gateway, f"{batch_id}/resume")
        assert (code, resumed["paused_at"]) == (200, None)
    assert len(gateway.commands(BatchResume)) == 1
    await ask(gateway, f"{batch_id}/pause")
    assert (await shown(gateway, batch_id))["paused_at"] is not None


async def test_a_second_gateway_shows_a_pause_that_the_first_one_took(
    gateway: GatewayUnderTest,
) -> None:
    batch_id = await gateway.create()
    await ask(gateway, f"{batch_id}/pause")
    async with running_gateway(log=gateway.log, store=gateway.store) as second:
        assert (await shown(second, batch_id))["paused_at"] is not None
        assert (await ask(second, f"{batch_id}/resume"))[1]["paused_at"] is None
    await gateway.gateway.sync()
    assert (await shown(gateway, batch_id))["paused_at"] is None


async def test_priority_and_deadline_change_together_or_alone(gateway: GatewayUnderTest) -> None:
    batch_id = await gateway.create()
    before = await shown(gateway, batch_id)
    sooner = before["expires_at"] - 3600
    code, changed = await ask(gateway, batch_id, {"priority": 5, "expires_at": sooner})
    assert (code, changed["priority"], changed["expires_at"]) == (200, 5, sooner)
    assert await shown(gateway, batch_id) == changed
    assert await ask(gateway, batch_id, {"priority": -100}) == (200, {**changed, "priority": -100})
    back = {**changed, "priority": -100, "expires_at": before["expires_at"]}
    assert await ask(gateway, batch_id, {"expires_at": before["expires_at"]}) == (200, back)
    said = [(c.priority, c.expires_at_ms) for c in gateway.commands(BatchChange)]  # type: ignore[union-attr]
    assert said == [(5, sooner * 1000), (-100, None), (None, before["expires_at"] * 1000)]
    assert before["completion_window"] == changed["completion_window"]


async def test_a_change_to_what_it_is_already_writes_nothing(gateway: GatewayUnderTest) -> None:
    batch_id = await gateway.create()
    before = await shown(gateway, batch_id)
    same = {"priority": 0, "expires_at": before["expires_at"]}
    assert await ask(gateway, batch_id, same) == (200, before)
    assert gateway.commands(BatchChange) == []


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", None),
        ({"priority": None}, "missing_required_parameter", None),
        ({"priority": 101}, "integer_above_max_value", "priority"),
        ({"priority": -101}, "integer_below_min_value", "priority"),
        ({"priority": "5"}, "invalid_type", "priority"),
        ({"priority": True}, "invalid_type", "priority"),
        ({"priority": 1.5}, "invalid_type", "priority"),
        ({"expires_at": "tomorrow"}, "invalid_type", "expires_at"),
        ({"expires_at": 1_700_000_000}, "integer_below_min_value", "expires_at"),
        ({"expires_at": 1 << 60}, "integer_above_max_value", "expires_at"),
        ({"priority": 5, "expires_at": 0}, "integer_below_min_value", "expires_at"),
        ({"deadline": 5}, "unknown_parameter", "deadline"),
    ],
)
async def test_a_wrong_change_is_a_bad_request_and_changes_nothing(
    gateway: GatewayUnderTest, body: Any, code: str, param: str | None
) -> None:
    batch_id = await gateway.create()
    status, answer = await ask(gateway, batch_id, body)
    assert status == 400
    assert (answer["error"]["code"], answer["error"]["param"]) == (code, param)
    assert gateway.commands(BatchChange) == []


async def test_a_window_reaches_at_most_as_far_as_the_longest_that_the_operator_allows(
    gateway: GatewayUnderTest,
) -> None:
    batch_id = await gateway.create()
    created = (await shown(gateway, batch_id))["created_at"]
    gateway.gateway.settings.completion_windows["48h"] = 2 * DAY_S
    try:
        code, changed = await ask(gateway, batch_id, {"expires_at": created + 2 * DAY_S})
        assert (code, changed["expires_at"]) == (200, created + 2 * DAY_S)
        code, _ = await ask(gateway, batch_id, {"expires_at": created + 2 * DAY_S + 1})
        assert code == 400
        gateway.gateway.settings.completion_windows["30d"] = 30 * DAY_S
        code, _ = await ask(gateway, batch_id, {"expires_at": created + 7 * DAY_S + 1})
        assert code == 400, "lines that are out live no longer than a week"
    finally:
        for name in ("48h", "30d"):
            gateway.gateway.settings.completion_windows.pop(name, None)


async def test_a_window_that_is_over_is_not_opened_again(gateway: GatewayUnderTest) -> None:
    batch_id = await gateway.create()
    expires_at = (await shown(gateway, batch_id))["expires_at"]
    await gateway.show(batch_id, expires_at_ms=1_700_000_000_000)
    code, answer = await ask(gateway, batch_id, {"expires_at": expires_at})
    assert (code, "window" in answer["error"]["message"]) == (409, True)
    assert (await ask(gateway, batch_id, {"priority": 1}))[0] == 200


@pytest.mark.parametrize("status", OVER)
@pytest.mark.parametrize("what", ["pause", "resume", "change"])
async def test_a_batch_that_is_over_cannot_be_steered(
    gateway: GatewayUnderTest, status: BatchStatus, what: str
) -> None:
    batch_id = await gateway.create()
    await gateway.show(batch_id, status=status, **{f"{status.value}_at_ms": 1_700_000_000_000})
    path = batch_id if what == "change" else f"{batch_id}/{what}"
    async with gateway.http().post(f"/v1/batches/{path}", json={"priority": 1}) as answer:
        error = (await answer.json())["error"]
        assert answer.status == 409
        assert answer.headers["x-should-retry"] == "false"
    assert error == {
        "message": f"Cannot {what} a batch with status '{status.value}'.",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


async def test_while_files_are_assembled_there_is_nothing_to_pause_but_a_window_to_move(
    gateway: GatewayUnderTest,
) -> None:
    batch_id = await gateway.create()
    await gateway.show(batch_id, status=BatchStatus.FINALIZING)
    assert (await ask(gateway, f"{batch_id}/pause"))[0] == 409
    assert (await ask(gateway, f"{batch_id}/resume"))[0] == 200
    expires_at = (await shown(gateway, batch_id))["expires_at"] - 60
    code, changed = await ask(gateway, batch_id, {"expires_at": expires_at})
    assert (code, changed["expires_at"]) == (200, expires_at)


@pytest.mark.parametrize("path", ["/pause", "/resume", ""])
async def test_another_tenants_batch_does_not_exist(gateway: GatewayUnderTest, path: str) -> None:
    batch_id = await gateway.create()
    code, answer = await ask(gateway, batch_id + path, {"priority": 1}, tenant="rival")
    assert code == 404
    assert answer["error"]["message"] == f"No batch found with id '{batch_id}'."
    for kind in (BatchPause, BatchResume, BatchChange):
        assert gateway.commands(kind) == []


async def test_a_paused_batch_can_be_cancelled(gateway: GatewayUnderTest) -> None:
    batch_id = await gateway.create()
    await ask(gateway, f"{batch_id}/pause")
    cancelled = (await gateway.client().batches.cancel(batch_id)).to_dict()
    assert (cancelled["status"], cancelled["paused_at"]) == ("cancelling", None)
    assert (await ask(gateway, f"{batch_id}/resume"))[0] == 409


async def test_create_takes_a_priority_which_is_part_of_what_a_request_is(
    gateway: GatewayUnderTest,
) -> None:
    client = gateway.client()

    async def create(client: AsyncOpenAI, **extra: Any) -> Any:
        return await client.batches.create(
            input_file_id="file-none",
            endpoint="/v1/chat/completions",
            completion_window="24h",
            extra_headers={"Idempotency-Key": "k"},
            extra_body=extra,
        )

    made = await create(client, priority=9)
    assert made.to_dict()["priority"] == 9
    (command,) = gateway.commands(BatchCreate)
    assert isinstance(command, BatchCreate)
    assert command.priority == 9
    assert (await create(client, priority=9)).id == made.id
    for other in ({}, {"priority": 8}):
        with pytest.raises(Exception, match="Idempotency conflict"):
            await create(client, **other)
    with pytest.raises(Exception, match="integer above maximum value"):
        await create(client, priority=101)


async def test_the_sdk_can_steer_a_batch_through_its_plain_post(gateway: GatewayUnderTest) -> None:
    client, batch_id = gateway.client(), await gateway.create()
    paused: Any = await client.post(f"/batches/{batch_id}/pause", cast_to=object)
    assert paused["paused_at"] is not None
    with pytest.raises(NotFoundError):
        await client.post("/batches/batch_none/pause", cast_to=object)
