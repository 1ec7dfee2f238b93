"""Controllers as processes on a real broker, everybody else scripted: every path of a batch."""

from __future__ import annotations

import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from schemas.records import (
    AssembleReason,
    BatchCancel,
    BatchStatus,
    CollectedLine,
    DoneLines,
    Outcome,
    OutcomeKind,
    SegmentWritten,
    Usage,
)
from schemas.topics import BATCH_COMMAND, BATCH_EVENT, LINE_DONE
from streams.kafka.groups import committed_offsets, group_name
from streams.settings import Settings
from tests.support.fleet import Fleet, running_fleet
from tests.support.lines import exit_code, terminate
from tests.support.waiting import eventually

pytestmark = pytest.mark.kafka
B = "batch_b1"


async def cancel(fleet: Fleet, batch_id: str) -> None:
    """Cancels a batch."""
    command = BatchCancel(
        command_id=f"cancel_{batch_id}",
        batch_id=batch_id,
        tenant="tenant-a",
        at_ms=int(time.time() * 1000),
    )
    await fleet.producer.send(BATCH_COMMAND, batch_id, command)


def hang(_batch: str, _line: int, _attempt: int) -> None:
    """No line ever ends by itself."""


def retry_first(_batch: str, line: int, attempt: int) -> OutcomeKind:
    """Every third line needs another attempt, every fifth fails."""
    if line % 3 == 0 and attempt == 1:
        return OutcomeKind.RETRY
    return OutcomeKind.FAILED if line % 5 == 0 else OutcomeKind.COMPLETED


async def test_a_batch_runs_from_create_to_completed(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    async with running_fleet(kafka_settings, tmp_path) as fleet:
        fleet.run()
        fleet.fate = retry_first
        await fleet.create(B, 1500)
        last = await fleet.ended(B)
        assert last.status is BatchStatus.COMPLETED
        fleet.check(B, 1200, 300)
        assert len(fleet.usage[B]) == 1500
        assert set(fleet.released.values()) == {1}
        assert {n for _, n, attempt in fleet.released if attempt == 2} == set(range(0, 1500, 3))
        assert all(t == f"line {n} of {B}".encode() for (_, n), t in fleet.texts.items())
        assert fleet.tails[B][-1]
        assert not fleet.tails[B][0]
        assert fleet.files[last.output_file_id or ""].filename == f"{B}_output.jsonl"
        assert fleet.files[last.error_file_id or ""].purpose == "batch_output"


async def test_a_small_batch_on_an_idle_system_takes_a_moment(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    async with running_fleet(kafka_settings, tmp_path) as fleet:
        fleet.run()
        await fleet.create("batch_warm", 1)
        await fleet.ended("batch_warm")
        took: list[float] = []

        async def quick() -> bool:
            began, name = time.monotonic(), f"batch_{len(took)}"
            await fleet.create(name, 10)
            await fleet.ended(name)
            took.append(time.monotonic() - began)
            return took[-1] < 1.0

        # Others may need the machine, too; but if a timer were on the way, none would be quick.
        await eventually(quick, 20, "a batch takes less than a second")


async def test_cancel_ends_a_batch_whose_calls_hang(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    async with running_fleet(kafka_settings, tmp_path) as fleet:
        fleet.run()
        fleet.fate = hang
        await fleet.create(B, 1000)
        await eventually(lambda: fleet.holds() == 64, 30, "the worker is full")
        await fleet.finish_held(2)
        await cancel(fleet, B)
        last = await fleet.ended(B)
        assert last.status is BatchStatus.CANCELLED
        assert fleet.reasons == [AssembleReason.CANCELLED]
        done = len(fleet.usage[B])
        assert 0 < done < 64
        released = sum(fleet.released.values())
        await fleet.finish_held()
        await fleet.create("batch_next", 5)
        await eventually(lambda: fleet.holds() == 5, 10)
        await fleet.finish_held()
        await fleet.ended("batch_next")
        assert sum(fleet.released.values()) == released + 5
        fleet.check(B, done, 1000 - done)


async def test_a_window_that_ends_keeps_the_finished_lines(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    async with running_fleet(kafka_settings, tmp_path) as fleet:
        fleet.run()
        await fleet.create("batch_warm", 1)
        await fleet.ended("batch_warm")
        fleet.fate = lambda _b, line, _a: OutcomeKind.COMPLETED if line < 30 else None
        await fleet.create(B, 100, window_s=10)
        last = await fleet.ended(B, 20)
        assert last.status is BatchStatus.EXPIRED
        assert last.expired_at_ms is not None
        assert last.expires_at_ms <= last.expired_at_ms
        fleet.check(B, 30, 70)


async def test_a_create_that_comes_too_late_starts_nothing(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    async with running_fleet(kafka_settings, tmp_path) as fleet:
        await fleet.create(B, 10, window_s=1)
        time.sleep(1.5)  # noqa: ASYNC251 - the window must pass, and nothing else happens
        fleet.run()
        last = await fleet.ended(B)
        assert last.status is BatchStatus.EXPIRED
        assert fleet.tasks == []


async def test_a_small_batch_of_another_tenant_is_done_while_a_huge_one_runs(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    async with running_fleet(kafka_settings, tmp_path) as fleet:
        fleet.run()
        await fleet.create("batch_huge", 20_000)
        await eventually(lambda: len(fleet.usage.get("batch_huge", ())) > 500, 40)
        await fleet.create("batch_small", 10, tenant="tenant-b")
        await fleet.ended("batch_small")
        assert fleet.status("batch_huge") == "in_progress"


FAILPOINTS = [
    "controller.command_sent",
    "controller.folded:{}",
    "controller.effects_sent:{}",
    "controller.chunks_written:{}",
    "controller.tables_written:{}",
    "controller.acked:{}",
    "controller.lines_released:{}",
]


@pytest.mark.parametrize("nth", [1, 7])
@pytest.mark.parametrize("failpoint", FAILPOINTS)
async def test_a_kill_between_two_steps_changes_nothing_in_the_end(
    kafka_settings: Settings, tmp_path: Path, failpoint: str, nth: int
) -> None:
    if "{" not in failpoint and nth > 1:
        pytest.skip("there is only one command")
    settings = kafka_settings.model_copy(update={"session_timeout_s": 6.0})
    async with running_fleet(settings, tmp_path, credits_=16) as fleet:
        fleet.fate = retry_first
        await fleet.create(B, 300)
        assert await exit_code(fleet.run(failpoint.format(nth))) == 137
        fleet.run()
        last = await fleet.ended(B)
        assert last.status is BatchStatus.COMPLETED
        fleet.check(B, 240, 60)
        assert len(fleet.usage[B]) == 300
        # What was out when it died may run again, and no more.
        again = sum(count - 1 for count in fleet.released.values())
        assert again <= 16


async def test_a_restart_releases_nothing_that_is_out(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    settings = kafka_settings.model_copy(update={"session_timeout_s": 6.0})
    async with running_fleet(settings, tmp_path, credits_=32) as fleet:
        process = fleet.run()
        fleet.fate = lambda _b, line, _a: OutcomeKind.COMPLETED if line < 100 else None
        await fleet.create(B, 400)
        await eventually(lambda: fleet.holds() == 32, 30, "the worker is full")
        await answered_but_not_collected(fleet)
        process.kill()
        process.wait()
        fleet.run()
        fleet.credits["up"] = 64
        await eventually(lambda: fleet.holds() == 64, 40, "the worker is full again")
        assert max(fleet.released.values()) == 1
        fleet.fate = lambda *_: OutcomeKind.COMPLETED
        await collected(fleet)
        await fleet.finish_held()
        await fleet.ended(B)
        fleet.check(B, 400, 0)
        assert max(fleet.released.values()) == 1


async def answered_but_not_collected(fleet: Fleet) -> None:
    """One line of the first slice has its outcome in line.done and nowhere else."""
    held = fleet.held[0]
    line = min(held.left)
    outcome = Outcome(line=line, attempt=1, kind=OutcomeKind.COMPLETED)
    done = DoneLines(batch_id=B, tenant="tenant-a", at_ms=0, worker="w", outcomes=(outcome,))
    await fleet.producer.send(LINE_DONE, B, done)
    held.left.discard(line)
    if not held.left:
        fleet.held.remove(held)


async def collected(fleet: Fleet) -> None:
    """The collector tells of the lines that the worker no longer holds and nobody has told."""
    told = set(fleet.usage[B]) | {n for held in fleet.held for n in held.left}
    missing = sorted({n for _, n, _ in fleet.released} - told)
    event = SegmentWritten(
        segment_id="late",
        batch_id=B,
        tenant="tenant-a",
        at_ms=int(time.time() * 1000),
        partition=0,
        models=("m",),
        lines=tuple(
            CollectedLine(
                line=n,
                done_offset=0,
                kind=OutcomeKind.COMPLETED,
                attempt=1,
                model=0,
                usage=Usage(input_tokens=n + 1),
            )
            for n in missing
        ),
    )
    await fleet.producer.send(BATCH_EVENT, B, event)


async def test_two_controllers_share_the_work_and_one_of_them_may_leave(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    settings = kafka_settings.model_copy(update={"session_timeout_s": 6.0})
    async with running_fleet(settings, tmp_path, credits_=32) as fleet:
        fleet.run()
        # So that work is left when the second comes, however long it takes to start.
        fleet.fate = lambda _b, line, _a: OutcomeKind.COMPLETED if line < 300 else None
        batches = [f"batch_{n}" for n in range(6)]
        for batch_id in batches:
            await fleet.create(batch_id, 1500)
        await eventually(lambda: sum(map(len, fleet.usage.values())) > 200, 40)
        second = fleet.run(instance="1")
        log = tmp_path / "controller-1.log"
        await eventually(lambda: "dispatcher_started" in log.read_text(), 40)
        fleet.fate = lambda *_: OutcomeKind.COMPLETED
        await fleet.finish_held()
        terminate(second)
        assert await exit_code(second) == 0
        for batch_id in batches:
            last = await fleet.ended(batch_id, 60)
            assert last.status is BatchStatus.COMPLETED
            fleet.check(batch_id, 1500, 0)
        again = Counter(count for count in fleet.released.values() if count > 1)
        assert sum(again.values()) <= 3 * 32


async def test_a_controller_that_was_paused_for_too_long_does_no_harm(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    settings = kafka_settings.model_copy(update={"session_timeout_s": 6.0})
    async with running_fleet(settings, tmp_path, credits_=32) as fleet:
        zombie = fleet.run()
        batches = [f"batch_{n}" for n in range(4)]
        for batch_id in batches:
            await fleet.create(batch_id, 3000)
        await eventually(lambda: sum(map(len, fleet.usage.values())) > 200, 40)
        zombie.send_signal(signal.SIGSTOP)
        fleet.run(instance="1")
        paused_at = time.monotonic()
        before = sum(map(len, fleet.usage.values()))
        await eventually(lambda: sum(map(len, fleet.usage.values())) > before + 500, 40)
        await eventually(lambda: time.monotonic() > paused_at + 8, 10)
        zombie.send_signal(signal.SIGCONT)
        for batch_id in batches:
            await fleet.ended(batch_id, 60)
            fleet.check(batch_id, 3000, 0)
        assert sum(count - 1 for count in fleet.released.values()) <= 3 * 32


async def test_everything_is_committed_and_a_graceful_restart_repeats_nothing(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    async with running_fleet(kafka_settings, tmp_path) as fleet:
        process = fleet.run()
        await fleet.create(B, 200)
        await fleet.ended(B)

        async def committed() -> bool:
            group = group_name(fleet.settings, "controller")
            found = await committed_offsets(fleet.settings, group, BATCH_EVENT)
            return sum(max(0, offset) for offset in found.values()) >= 200 / 64 + 3

        await eventually(committed, 10)
        terminate(process)
        assert await exit_code(process) == 0
        tasks, usage = len(fleet.tasks), sum(fleet.released.values())
        fleet.run()
        await fleet.create("batch_b2", 20)
        await fleet.ended("batch_b2")
        assert len(fleet.tasks) == tasks + 2
        assert sum(fleet.released.values()) == usage + 20
