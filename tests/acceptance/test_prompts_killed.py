"""Kill -9 while prompts are published and batches created: a batch's pins never change."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from tests.acceptance.chaos import kill_role
from tests.acceptance.prompt_chaos import Storm
from tests.support.prompt_api import Recorded
from tests.support.stack import Stack, running, start_simulator, start_stack
from tests.support.waiting import eventually_sync

pytestmark = [pytest.mark.kafka, pytest.mark.real_kafka, pytest.mark.timeout(600)]

ROLES = ("file-worker", "gateway", "controller", "batch-worker")
SESSION_TIMEOUT_S = 6.0
#: Answers come so late that a batch still runs when its file is validated a second time.
LATENCY = "uniform:0.1,6"
#: Each process that decides about pins or uses them, dead between each two of its steps. The
#: first is the one that leaves a `validated` event whose task will be done again.
FAILPOINTS = (
    ("file-worker", "file_worker.event_sent:3"),
    ("file-worker", "file_worker.plan_stored:3"),
    ("controller", "controller.command_sent:3"),
    ("controller", "controller.folded:6"),
    ("controller", "controller.effects_sent:6"),
    ("controller", "controller.tables_written:6"),
    ("controller", "controller.acked:6"),
    ("controller", "controller.lines_released:6"),
    ("batch-worker", "batch_worker.answered:50"),
    ("batch-worker", "batch_worker.outcome_sent:6"),
)


@contextlib.contextmanager
def _running_stack(
    bootstrap: str, folder: Path, failpoint: str
) -> Iterator[tuple[Stack, Recorded]]:
    bodies = folder / "bodies.jsonl"
    simulator = start_simulator("--latency", LATENCY, "--bodies", str(bodies))
    with running(simulator):
        stack = start_stack(
            folder / "data",
            *("--kafka", bootstrap, "--upstream", simulator.base_url),
            env={
                "BACKHAUL_TOPIC_PREFIX": f"pins{uuid4().hex[:8]}",
                "BACKHAUL_SESSION_TIMEOUT_S": str(SESSION_TIMEOUT_S),
                "BACKHAUL_FAILPOINT": failpoint,
            },
        )
        with running(stack):
            yield stack, Recorded(bodies)


def _gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _children(stack: Stack, role: str) -> list[int]:
    """The processes that the role's processes started, such as those that render templates."""
    found: list[int] = []
    for pid in stack.pids(role):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return found


def _kill(stack: Stack, role: str) -> None:
    """kill -9 of a process of the role; those that it had started must end with it."""
    children = _children(stack, role)
    kill_role(role).inflict(stack)
    eventually_sync(lambda: all(map(_gone, children)), 30, f"what the {role} started must end")


def _rage(
    stack: Stack, recorded: Recorded, role: str, others: list[str], rng: random.Random
) -> None:
    """Waits until the failpoint has killed its process, then kills one of each of the others."""
    first = stack.pids(role)[0]
    storm = Storm(stack, recorded, 60, rng)

    def kills() -> None:
        eventually_sync(lambda: _gone(first), 60, f"the failpoint must end the {role}")
        for other in others:
            time.sleep(rng.uniform(0.2, 1.5))
            _kill(stack, other)
        eventually_sync(lambda: len(storm.batches) >= 3 and storm.published >= 10, 60)
        time.sleep(1.0)

    began = time.monotonic()
    storm.rage(kills)
    sent = storm.audit()
    print(
        f"{time.monotonic() - began:6.1f} s  {len(storm.batches)} batches, "
        f"{storm.published} publishes, {sent} calls  {role} {others}"
    )


def test_pins_never_change_while_everything_is_killed_once(
    kafka_bootstrap: str, tmp_path: Path
) -> None:
    role, failpoint = FAILPOINTS[0]
    with _running_stack(kafka_bootstrap, tmp_path, failpoint) as (stack, recorded):
        _rage(stack, recorded, role, list(ROLES), random.Random(4))


@pytest.mark.chaos
@pytest.mark.parametrize(("role", "failpoint"), FAILPOINTS)
def test_pins_never_change_with_a_process_dead_between_any_two_steps(
    kafka_bootstrap: str, tmp_path: Path, role: str, failpoint: str
) -> None:
    """`make chaos`. BACKHAUL_CHAOS_SEED repeats a run."""
    seed = int(os.environ.get("BACKHAUL_CHAOS_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"\nseed {seed} {failpoint}")
    rng = random.Random(seed)
    with _running_stack(kafka_bootstrap, tmp_path, failpoint) as (stack, recorded):
        _rage(stack, recorded, role, rng.choices(ROLES, k=6), rng)
