"""What the gateway shows of a forecast, and when it shows none."""

from __future__ import annotations

from typing import Any

import pytest

from api.read_model.forecasts import KEPT_MS
from schemas.records import BatchForecast, BatchForecasts, BatchStatus, BudgetHold
from schemas.topics import BATCH_FORECAST
from streams.domain.clock import ManualClock
from tests.support.gateway import GatewayUnderTest, running_gateway
from tests.support.waiting import eventually

NONE = {"eta": None, "at_risk": False, "queue_position": None, "queued": False}


async def foresee(gateway: GatewayUnderTest, *forecasts: BatchForecast) -> None:
    """Says it as a controller, and waits until the gateway has read it."""
    record = BatchForecasts(controller="c0", at_ms=0, forecasts=forecasts)
    await gateway.log.send(BATCH_FORECAST, "c0", record)
    told = gateway.gateway.forecasts._told
    wanted = {f.batch_id: f for f in forecasts}
    await eventually(lambda: all(told.get(b, (0, None))[1] == f for b, f in wanted.items()))


async def shown(gateway: GatewayUnderTest, batch_id: str) -> dict[str, Any]:
    """The forecast's fields, from a get and from the list alike."""
    client = gateway.client()
    one = (await client.batches.retrieve(batch_id)).to_dict()
    async for listed in client.batches.list():
        if listed.id == batch_id:
            assert listed.to_dict() == one
    return {name: one[name] for name in NONE}


async def running(gateway: GatewayUnderTest) -> str:
    batch_id = await gateway.create()
    await gateway.show(batch_id, status=BatchStatus.IN_PROGRESS, total=10)
    return batch_id


async def test_a_batch_without_a_forecast_has_the_fields_empty(gateway: GatewayUnderTest) -> None:
    assert await shown(gateway, await running(gateway)) == NONE


async def test_a_running_batch_shows_what_is_foreseen_for_it() -> None:
    clock = ManualClock()
    async with running_gateway(clock=clock) as gateway:
        batch_id = await running(gateway)
        eta_ms = clock.ms + 60_500
        await foresee(gateway, BatchForecast(batch_id=batch_id, eta_ms=eta_ms, queue_position=2))
        assert await shown(gateway, batch_id) == {
            "eta": clock.ms // 1000 + 61,
            "at_risk": False,
            "queue_position": 2,
            "queued": False,
        }
        late_ms = clock.ms + 25 * 3_600_000
        await foresee(gateway, BatchForecast(batch_id=batch_id, eta_ms=late_ms, queued=True))
        assert await shown(gateway, batch_id) == {
            "eta": late_ms // 1000,
            "at_risk": True,
            "queue_position": None,
            "queued": True,
        }
        await gateway.show(batch_id, expires_at_ms=late_ms + 1000)
        assert not (await shown(gateway, batch_id))["at_risk"], "the window was moved"


async def test_an_end_that_is_past_and_a_forecast_that_is_old_are_not_shown() -> None:
    clock = ManualClock()
    async with running_gateway(clock=clock) as gateway:
        batch_id = await running(gateway)
        eta_ms = clock.ms + 60_000
        await foresee(gateway, BatchForecast(batch_id=batch_id, eta_ms=eta_ms, queue_position=1))
        clock.ms = eta_ms
        assert await shown(gateway, batch_id) == {**NONE, "queue_position": 1}
        clock.ms += KEPT_MS
        assert await shown(gateway, batch_id) == NONE


@pytest.mark.parametrize(
    "changes",
    [
        {"paused_at_ms": 1},
        {"status": BatchStatus.FINALIZING},
        {"status": BatchStatus.COMPLETED, "completed_at_ms": 1},
    ],
)
async def test_only_a_batch_whose_lines_run_shows_a_forecast(
    gateway: GatewayUnderTest, changes: dict[str, Any]
) -> None:
    batch_id = await running(gateway)
    await foresee(gateway, BatchForecast(batch_id=batch_id, eta_ms=1 << 45, queue_position=0))
    assert (await shown(gateway, batch_id))["at_risk"]
    await gateway.show(batch_id, **changes)
    assert await shown(gateway, batch_id) == NONE


_HOLD = BudgetHold(
    reason="budget_reached",
    scope="key",
    period="day",
    budget_micros=100_000_000,
    spent_micros=100_020_000,
    currency="usd",
    until_ms=1_796_083_200_000,
)


async def test_a_batch_without_money_says_why_also_once_its_user_has_paused_and_resumed_it(
    gateway: GatewayUnderTest,
) -> None:
    batch_id = await running(gateway)
    client = gateway.client()
    assert (await client.batches.retrieve(batch_id)).to_dict()["hold"] is None
    await foresee(gateway, BatchForecast(batch_id=batch_id, hold=_HOLD))
    held: Any = (await client.batches.retrieve(batch_id)).to_dict()
    hold: Any = held["hold"]
    message = hold.pop("message")
    assert hold == {
        "reason": "budget_reached",
        "scope": "key",
        "budget": "100.000000",
        "spent": "100.020000",
        "estimate": None,
        "currency": "usd",
        "period": "day",
        "until": 1_796_083_200,
    }
    assert "raises the budget or the next day begins" in message
    assert held["paused_at"] is None
    paused: Any = await client.post(f"/batches/{batch_id}/pause", cast_to=object)
    assert paused["paused_at"]
    assert paused["hold"] == held["hold"] | {"message": message}
    resumed: Any = await client.post(f"/batches/{batch_id}/resume", cast_to=object)
    assert resumed["paused_at"] is None
    assert "resuming it does not lift this" in resumed["hold"]["message"]
    await gateway.show(batch_id, status=BatchStatus.CANCELLING)
    assert (await client.batches.retrieve(batch_id)).to_dict()["hold"] is None
