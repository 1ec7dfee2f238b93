"""Budgets on a real controller: who has spent one is held, through a kill, until it is raised."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from schemas.records import ApiKeyRecord, BatchForecasts, BatchResume, BatchStatus, BudgetHold
from schemas.topics import ACCOUNT, BATCH_COMMAND, BATCH_FORECAST
from streams.kafka.reader import TopicReader
from streams.settings import Settings
from tests.support.fleet import TENANT, Fleet, running_fleet
from tests.support.waiting import eventually

pytestmark = pytest.mark.kafka
B, FREE, KEY = "batch_held", "batch_free", "key_nightly"
#: Line n has n tokens, each of a micro-unit.
LINES, BUDGET, CREDITS = 400, 20_000, 16


async def _budget(fleet: Fleet, micros: int) -> None:
    key = ApiKeyRecord(
        key_id=KEY,
        tenant=TENANT,
        name="nightly",
        secret_sha256="",
        hint="",
        created_at_ms=0,
        budget_micros=micros,
    )
    await fleet.producer.send(ACCOUNT, KEY, key)


async def _hold(reader: TopicReader, holds: dict[str, BudgetHold | None]) -> BudgetHold | None:
    for read in await reader.poll(0.05):
        if isinstance(read.record, BatchForecasts):
            holds |= {told.batch_id: told.hold for told in read.record.forecasts}
    return holds.get(B)


async def test_a_batch_is_held_when_its_key_s_budget_is_spent_and_goes_on_when_it_is_raised(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text('currency: usd\ndiscounts: {1h: "0"}\ndefault: {input: "1", output: "0"}\n')
    settings = kafka_settings.model_copy(update={"session_timeout_s": 6.0, "prices_file": prices})
    async with running_fleet(settings, tmp_path, credits_=CREDITS) as fleet:
        await _budget(fleet, BUDGET)
        process = fleet.run()
        await fleet.create(B, LINES, key_id=KEY)
        forecasts, holds = TopicReader(settings, [BATCH_FORECAST]), dict[str, BudgetHold | None]()
        await forecasts.start("beginning")
        try:
            await eventually(lambda: _hold(forecasts, holds), 30, "the batch is held")
            hold = holds[B]
            assert hold is not None
            assert (hold.scope, hold.currency, hold.budget_micros) == ("key", "usd", BUDGET)
            process.kill()
            process.wait()
            fleet.run()
            resume = BatchResume(
                command_id="r", batch_id=B, tenant=TENANT, at_ms=int(time.time() * 1000)
            )
            await fleet.producer.send(BATCH_COMMAND, B, resume)
            await fleet.create(FREE, 40)
            assert (await fleet.ended(FREE)).status is BatchStatus.COMPLETED
            await eventually(lambda: fleet.spent(B) >= BUDGET, 10, "all that was spent is read")
            assert fleet.spent(B) <= BUDGET + 2 * CREDITS * LINES
            assert len({at for at in fleet.released if at[0] == B}) < LINES
            assert fleet.status(B) == "in_progress"

            await _budget(fleet, LINES * LINES)
            assert (await fleet.ended(B)).status is BatchStatus.COMPLETED
            fleet.check(B, LINES, 0)
        finally:
            await forecasts.stop()
