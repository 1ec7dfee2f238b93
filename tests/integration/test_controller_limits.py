"""A tenant's limits on real controllers: what exceeds them waits, through a kill, and then runs."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest

from schemas.records import BatchCancel, BatchStatus, OutcomeKind, TenantRecord
from schemas.topics import ACCOUNT, BATCH_COMMAND
from streams.settings import Settings
from tests.support.fleet import TENANT, Fleet, running_fleet
from tests.support.waiting import eventually

pytestmark = pytest.mark.kafka
FIRST, SECOND, THIRD, THEIRS = "batch_first", "batch_second", "batch_third", "batch_theirs"


def hang_first(batch: str, _line: int, _attempt: int) -> OutcomeKind | None:
    return None if batch == FIRST else OutcomeKind.COMPLETED


def runs(fleet: Fleet, batch_id: str) -> bool:
    return fleet.status(batch_id) == "in_progress"


def released(fleet: Fleet) -> set[str]:
    return {batch_id for batch_id, _, _ in fleet.released}


async def test_what_exceeds_the_limit_waits_is_cancelled_or_runs_when_there_is_room(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    settings = kafka_settings.model_copy(update={"session_timeout_s": 6.0})
    async with running_fleet(settings, tmp_path) as fleet:
        limits = TenantRecord(tenant=TENANT, at_ms=0, max_enqueued_lines=50)
        await fleet.producer.send(ACCOUNT, f"tenant/{TENANT}", limits)
        process = fleet.run()
        fleet.fate = hang_first
        for batch_id in (FIRST, SECOND, THIRD):
            await fleet.create(batch_id, 40)
            await eventually(partial(runs, fleet, batch_id), 30, f"{batch_id} is in progress")
        await eventually(lambda: fleet.holds() == 40, 30, "the first one runs")
        process.kill()
        process.wait()
        fleet.run()
        await fleet.create(THEIRS, 40, tenant="tenant-b")
        await fleet.ended(THEIRS)
        assert released(fleet) == {FIRST, THEIRS}

        cancel = BatchCancel(
            command_id="c", batch_id=SECOND, tenant=TENANT, at_ms=int(time.time() * 1000)
        )
        await fleet.producer.send(BATCH_COMMAND, SECOND, cancel)
        assert (await fleet.ended(SECOND)).status is BatchStatus.CANCELLED
        assert released(fleet) == {FIRST, THEIRS}, "there is no room yet"
        await fleet.finish_held()
        assert (await fleet.ended(THIRD)).status is BatchStatus.COMPLETED
        assert (await fleet.ended(FIRST)).status is BatchStatus.COMPLETED
        assert released(fleet) == {FIRST, THIRD, THEIRS}
        for batch_id, lines in ((FIRST, 40), (SECOND, 0), (THIRD, 40)):
            fleet.check(batch_id, lines, 40 - lines)
