"""Nobody waits behind somebody else's work: other tenants, other upstreams."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from openai import OpenAI

from tests.support.batches import chat_line, submit, wait_for_end
from tests.support.stack import Simulator, Stack, running, start_simulator, start_stack
from tests.support.waiting import eventually_sync

pytestmark = pytest.mark.kafka

#: How many calls an upstream takes at once.
SLOTS = 16


@pytest.fixture(scope="module")
def slow_simulator() -> Iterator[Simulator]:
    simulator = start_simulator("--latency", "0.2")
    with running(simulator):
        yield simulator


@pytest.fixture(scope="module")
def hanging_simulator() -> Iterator[Simulator]:
    simulator = start_simulator("--model", "stuck", "--hang")
    with running(simulator):
        yield simulator


@pytest.fixture(scope="module")
def two_upstreams(
    slow_simulator: Simulator,
    hanging_simulator: Simulator,
    kafka_bootstrap: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    """A Backhaul with a healthy upstream and one that hangs."""
    data: Path = tmp_path_factory.mktemp("fairness")
    table = data / "table.yaml"
    table.write_text(
        yaml.safe_dump(
            {
                "upstreams": [
                    {
                        "name": "healthy",
                        "base_url": slow_simulator.base_url,
                        "models": ["sim"],
                        "max_in_flight": SLOTS,
                    },
                    {
                        "name": "hanging",
                        "base_url": hanging_simulator.base_url,
                        "models": ["stuck"],
                        "max_in_flight": SLOTS,
                    },
                ]
            }
        )
    )
    stack = start_stack(
        data / "data",
        *("--kafka", kafka_bootstrap, "--upstreams", str(table)),
        env={"BACKHAUL_TOPIC_PREFIX": f"fair{uuid4().hex[:10]}"},
    )
    with running(stack):
        yield stack


def _client(stack: Stack, api_key: str | None = None) -> OpenAI:
    return OpenAI(base_url=stack.base_url, api_key=api_key or stack.api_key)


def _completed(client: OpenAI, batch_id: str) -> int:
    counts = client.batches.retrieve(batch_id).request_counts
    return counts.completed if counts else 0


def test_a_small_batch_of_another_tenant_passes_a_huge_one(two_upstreams: Stack) -> None:
    with (
        _client(two_upstreams) as first,
        _client(two_upstreams, two_upstreams.new_key("other")) as second,
    ):
        huge = submit(first, [chat_line(f"huge-{n}") for n in range(20_000)])
        eventually_sync(lambda: _completed(first, huge.id) > 0, 60)
        before = _completed(first, huge.id)

        small = submit(second, [chat_line(f"small-{n}") for n in range(10)])
        assert wait_for_end(second, small.id, within_s=30).status == "completed"

        meanwhile = _completed(first, huge.id) - before
        assert meanwhile < 5_000, "the huge batch takes minutes, and this a few seconds of it"
        first.batches.cancel(huge.id)
        wait_for_end(first, huge.id, within_s=30)


def test_a_hanging_upstream_does_not_slow_a_healthy_one(
    two_upstreams: Stack, slow_simulator: Simulator, hanging_simulator: Simulator
) -> None:
    with _client(two_upstreams) as client:
        stuck = submit(client, [chat_line(f"stuck-{n}", model="stuck") for n in range(500)])
        eventually_sync(lambda: hanging_simulator.requests()["open"] == SLOTS, 60)
        slow_simulator.reset()
        beside = submit(client, [chat_line(f"beside-{n}") for n in range(320)])
        assert wait_for_end(client, beside.id, within_s=60).status == "completed"

        assert slow_simulator.requests()["most_open"] > SLOTS // 2, "it was as busy as alone"
        assert client.batches.retrieve(stuck.id).status == "in_progress"
        client.batches.cancel(stuck.id)
        assert wait_for_end(client, stuck.id, within_s=30).status == "cancelled"


def test_within_one_batch_a_hanging_model_does_not_hold_up_another(two_upstreams: Stack) -> None:
    lines = [chat_line(f"both-{n}", model="stuck" if n % 2 else "sim") for n in range(400)]
    with _client(two_upstreams) as client:
        batch = submit(client, lines)
        eventually_sync(lambda: _completed(client, batch.id) == 200, 60)
        client.batches.cancel(batch.id)
        assert wait_for_end(client, batch.id, within_s=30).status == "cancelled"
