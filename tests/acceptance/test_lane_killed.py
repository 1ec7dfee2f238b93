"""Real-time clients and a batch side by side while the lane's processes are killed."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from uuid import uuid4

import pytest

from streams.settings import Settings
from tests.acceptance.chaos import Fault, kill_role, run_round
from tests.acceptance.lane_chaos import Clients, GateWatch, kill_lane_until_missed
from tests.support.stack import Simulator, Stack, running, start_simulator, start_stack

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

#: As `backhaul up` writes it into the table; no more lines can be cut at the moment they answer.
MAX_IN_FLIGHT = 64
LINES = 1200


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    # Its metrics page makes it an engine, whose batch calls may be cut.
    simulator = start_simulator("--engine", '{"speed": 4}', "--completion-tokens", "60")
    with running(simulator):
        yield simulator


@pytest.fixture(scope="module")
def stack(
    simulator: Simulator, kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    stack = start_stack(
        tmp_path_factory.mktemp("lane"),
        *("--kafka", kafka_bootstrap, "--upstream", simulator.base_url),
        env={"BACKHAUL_TOPIC_PREFIX": f"lane{uuid4().hex[:10]}"},
    )
    with running(stack):
        yield stack


@pytest.fixture
def gate(stack: Stack) -> Iterator[GateWatch]:
    prefix = stack.env["BACKHAUL_TOPIC_PREFIX"]
    with GateWatch(Settings(kafka=stack.info["kafka"], topic_prefix=prefix)).running() as gate:
        gate.wait(floor=False)
        yield gate


def _round(
    stack: Stack, simulator: Simulator, gate: GateWatch, faults: list[Fault], rng: random.Random
) -> None:
    clients = Clients(stack, f"rt-{uuid4().hex[:8]}", 8)
    clients.start()
    try:
        # Without real-time calls the rest of the batch is quick.
        ends = Fault("the clients go", lambda _stack: clients.stop())
        report = run_round(stack, simulator, [*faults, ends], LINES, rng)
    finally:
        clients.stop()
    print(f"{report.took_s:6.1f} s  {report.executed_again:4d} again  {dict(clients.ends)}")
    clients.audit(simulator)
    assert report.executed_again <= MAX_IN_FLIGHT
    gate.wait(floor=False)


def test_clients_get_an_end_the_batch_stays_exact_and_the_gate_recovers(
    stack: Stack, simulator: Simulator, gate: GateWatch
) -> None:
    def batch_runs(_stack: Stack) -> None:
        keys = simulator.requests()["keys"]
        answered = sum(key.startswith("chaos-") and met["ok"] > 0 for key, met in keys.items())
        assert 0 < answered < LINES, "kills were not met by a batch that runs"

    kills = [kill_lane_until_missed(gate), kill_role("gateway")]
    _round(stack, simulator, gate, [*kills, Fault("look", batch_runs)], random.Random(7))


@pytest.mark.chaos
@pytest.mark.timeout(3_600)
def test_so_it_is_however_often_they_are_killed(
    stack: Stack, simulator: Simulator, gate: GateWatch
) -> None:
    """`make chaos`. BACKHAUL_CHAOS_SEED repeats a run, BACKHAUL_CHAOS_FAULTS changes its length."""
    seed = int(os.environ.get("BACKHAUL_CHAOS_SEED") or random.SystemRandom().randrange(1 << 32))
    wanted = int(os.environ.get("BACKHAUL_CHAOS_FAULTS", "40"))
    print(f"\nseed {seed}")
    rng = random.Random(seed)
    menu = [kill_role("realtime-worker"), kill_role("gateway"), kill_lane_until_missed(gate)]
    done = 0
    while done < wanted:
        faults = [rng.choice(menu) for _ in range(rng.randint(1, 3))]
        _round(stack, simulator, gate, faults, rng)
        done += len(faults)
