"""Live control of a batch by a direct producer, through kills of the controller."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from schemas.partitions import partition_for
from schemas.records import BatchChange, BatchPause, BatchResume, BatchSnapshot, BatchStatus
from schemas.topics import BATCH_COMMAND
from streams.domain.batch.control import Control
from streams.settings import Settings
from tests.support.fleet import PARTITIONS, TENANT, Fleet, always_completed, running_fleet
from tests.support.lines import exit_code
from tests.support.waiting import eventually

pytestmark = pytest.mark.kafka
B = "batch_b1"


def hang(_batch: str, _line: int, _attempt: int) -> None:
    """No line ever ends by itself."""


def now_ms() -> int:
    return int(time.time() * 1000)


def pause(command_id: str, tenant: str = TENANT) -> BatchPause:
    return BatchPause(command_id=command_id, batch_id=B, tenant=tenant, at_ms=now_ms())


def resume(command_id: str) -> BatchResume:
    return BatchResume(command_id=command_id, batch_id=B, tenant=TENANT, at_ms=now_ms())


async def ask(fleet: Fleet, *commands: Control) -> None:
    """Sends commands as a producer would whose partitioner is not ours."""
    elsewhere = (partition_for(B, PARTITIONS) + 1) % PARTITIONS
    for command in commands:
        await fleet.producer.send_to(BATCH_COMMAND, elsewhere, command, B)


def shown(fleet: Fleet) -> BatchSnapshot:
    return fleet.snapshots[B][-1]


def released(fleet: Fleet) -> int:
    """How many lines of the batch were released, repeats included."""
    return sum(count for (batch_id, _, _), count in fleet.released.items() if batch_id == B)


async def another_runs(fleet: Fleet, batch_id: str) -> None:
    """That a later batch runs to its end shows that the controller has had its chance."""
    await fleet.create(batch_id, 5)
    await fleet.ended(batch_id)


async def test_a_direct_producer_pauses_and_resumes_a_batch_through_a_kill(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    settings = kafka_settings.model_copy(update={"session_timeout_s": 6.0})
    async with running_fleet(settings, tmp_path, credits_=16) as fleet:
        process = fleet.run()
        fleet.fate = hang
        await fleet.create(B, 300)
        await eventually(lambda: fleet.holds() == 16, 30, "the worker is full")
        await ask(fleet, pause("rival", "tenant-b"), pause("p1"), pause("p1"))
        await eventually(lambda: shown(fleet).paused_at_ms is not None, 10)

        fleet.fate = always_completed
        await fleet.finish_held()
        await another_runs(fleet, "batch_second")
        await eventually(lambda: len(fleet.usage.get(B, ())) == 16, 10, "what was out has counted")
        assert released(fleet) == 16
        process.kill()
        process.wait()
        fleet.run()
        await another_runs(fleet, "batch_third")
        assert released(fleet) == 16, "it is still paused"
        assert shown(fleet).paused_at_ms is not None

        await ask(fleet, resume("r1"), pause("p1"), resume("r1"))
        last = await fleet.ended(B)
        assert last.status is BatchStatus.COMPLETED
        fleet.check(B, 300, 0)
        assert max(fleet.released.values()) == 1, "a pause makes no line run twice"


@pytest.mark.parametrize(
    "failpoint", ["controller.folded:{}", "controller.effects_sent:{}", "controller.acked:{}"]
)
@pytest.mark.parametrize("nth", [2, 3])
async def test_a_kill_while_commands_are_folded_changes_nothing_in_the_end(
    kafka_settings: Settings, tmp_path: Path, failpoint: str, nth: int
) -> None:
    settings = kafka_settings.model_copy(update={"session_timeout_s": 6.0})
    async with running_fleet(settings, tmp_path, credits_=16) as fleet:
        process = fleet.run(failpoint.format(nth))
        fleet.fate = hang
        await fleet.create(B, 300)
        await eventually(lambda: B in fleet.snapshots or process.poll() is not None, 30)
        ends_ms = (now_ms() + 7_200_000) // 1000 * 1000
        change = BatchChange(
            command_id="c1",
            batch_id=B,
            tenant=TENANT,
            at_ms=now_ms(),
            priority=-9,
            expires_at_ms=ends_ms,
        )
        await ask(fleet, pause("p1"), change, resume("r1"), pause("p2"), pause("p1"))
        assert await exit_code(process) == 137
        fleet.run()
        await eventually(lambda: shown(fleet).commands[-4:] == ("p1", "c1", "r1", "p2"), 60)
        assert shown(fleet).paused_at_ms is not None
        assert (shown(fleet).priority, shown(fleet).expires_at_ms) == (-9, ends_ms)
        fleet.fate = always_completed
        await fleet.finish_held()
        await ask(fleet, resume("r2"))
        last = await fleet.ended(B)
        assert (last.status, last.expires_at_ms) == (BatchStatus.COMPLETED, ends_ms)
        fleet.check(B, 300, 0)
        assert len(fleet.usage[B]) == 300


async def test_a_window_that_is_cut_short_ends_then_although_the_batch_is_paused(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    async with running_fleet(kafka_settings, tmp_path) as fleet:
        fleet.run()
        fleet.fate = hang
        await fleet.create(B, 100)
        await eventually(lambda: fleet.holds() == 64, 30, "the worker is full")
        await fleet.finish_held(2)
        ends_ms = now_ms() // 1000 * 1000 + 4000
        change = BatchChange(
            command_id="c1", batch_id=B, tenant=TENANT, at_ms=now_ms(), expires_at_ms=ends_ms
        )
        await ask(fleet, pause("p1"), change)
        last = await fleet.ended(B, 15)
        assert (last.status, last.expires_at_ms) == (BatchStatus.EXPIRED, ends_ms)
        assert last.expired_at_ms is not None
        assert last.expired_at_ms >= ends_ms
        done = len(fleet.usage[B])
        assert 0 < done < 64
        fleet.check(B, done, 100 - done)
