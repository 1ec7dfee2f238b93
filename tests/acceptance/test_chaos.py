"""Anything can be killed at any moment: nothing is lost, nothing twice, counts and usage exact."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.acceptance.chaos import (
    Fault,
    Report,
    all_faults,
    audit_books,
    freeze_role,
    kill_role,
    kill_supervisor,
    run_round,
)
from tests.support.stack import Simulator, Stack, running, start_simulator, start_stack

pytestmark = [pytest.mark.kafka, pytest.mark.real_kafka, pytest.mark.timeout(900)]

SESSION_TIMEOUT_S = 6.0
MAX_IN_FLIGHT = 64
WORKERS = 2
#: Lines that one fault may make run again: those that the credits of all workers let be out
#: (calls in flight, and as many read ahead), and as many again that were finished since the
#: last commit.
REPEAT_BOUND = 2 * WORKERS * 2 * MAX_IN_FLIGHT


@pytest.fixture(scope="module")
def slow_simulator() -> Iterator[Simulator]:
    simulator = start_simulator("--latency", "0.05")
    with running(simulator):
        yield simulator


@pytest.fixture(scope="module")
def own_stack(
    slow_simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A Backhaul with a broker of its own, since the broker is killed too, and two workers."""
    data: Path = tmp_path_factory.mktemp("chaos")
    stack = start_stack(
        data / "data",
        *("--upstream", slow_simulator.base_url, "--workers", str(WORKERS)),
        env={
            "BACKHAUL_TOPIC_PREFIX": f"chaos{uuid4().hex[:8]}",
            "BACKHAUL_SESSION_TIMEOUT_S": str(SESSION_TIMEOUT_S),
            "BACKHAUL_METER_WINDOW_S": "1",
        },
        within_s=180,
    )
    with running(stack):
        yield stack


def _round(
    stack: Stack, simulator: Simulator, faults: list[Fault], rng: random.Random, lines: int = 5_000
) -> Report:
    report = run_round(stack, simulator, faults, lines, rng)
    print(f"{report.took_s:6.1f} s  {report.executed_again:4d} again  {report.fault}")
    assert report.executed_again <= len(faults) * REPEAT_BOUND
    return report


@pytest.mark.parametrize(
    "faults",
    [
        [kill_role("controller"), kill_role("batch-worker")],
        [kill_role("collector"), kill_role("file-worker"), kill_role("gateway")],
        [kill_role("broker")],
        [kill_supervisor()],
        [freeze_role("batch-worker", SESSION_TIMEOUT_S + 3)],
        [freeze_role("controller", SESSION_TIMEOUT_S + 3)],
    ],
    ids=lambda faults: "+".join(fault.name.replace(" ", "-") for fault in faults),
)
def test_a_batch_survives(own_stack: Stack, slow_simulator: Simulator, faults: list[Fault]) -> None:
    _round(own_stack, slow_simulator, faults, random.Random(7))


def test_the_books_balance_though_meter_and_controller_are_killed(
    own_stack: Stack, slow_simulator: Simulator
) -> None:
    faults = [kill_role("meter"), kill_role("controller"), kill_role("meter")]
    _round(own_stack, slow_simulator, faults, random.Random(8))
    found = audit_books(own_stack)
    assert found["tokens"] > 0
    assert found["sink"] == "compared"
    assert found["without_output"] == found["running"] == []


@pytest.mark.chaos
@pytest.mark.timeout(1_800)
def test_the_books_balance_after_many_kills_of_meter_and_controller(
    own_stack: Stack, slow_simulator: Simulator
) -> None:
    rng = random.Random(9)
    for _ in range(8):
        roles = [rng.choice(("meter", "meter", "controller")) for _ in range(3)]
        _round(own_stack, slow_simulator, [kill_role(role) for role in roles], rng)
        audit_books(own_stack)


@pytest.mark.chaos
@pytest.mark.timeout(3_600)
def test_batches_survive_at_least_forty_random_faults(
    own_stack: Stack, slow_simulator: Simulator
) -> None:
    """`make chaos`. BACKHAUL_CHAOS_SEED repeats a run, BACKHAUL_CHAOS_FAULTS changes its length."""
    seed = int(os.environ.get("BACKHAUL_CHAOS_SEED") or random.SystemRandom().randrange(1 << 32))
    wanted = int(os.environ.get("BACKHAUL_CHAOS_FAULTS", "40"))
    print(f"\nseed {seed}")
    rng = random.Random(seed)
    menu = all_faults(SESSION_TIMEOUT_S + 3)
    done = 0
    while done < wanted:
        faults = rng.sample(menu, rng.randint(1, 3))
        _round(own_stack, slow_simulator, faults, rng)
        audit_books(own_stack)
        done += len(faults)
    assert done >= wanted
