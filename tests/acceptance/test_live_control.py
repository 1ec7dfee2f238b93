"""Pause, resume, priority and deadline of a running batch, on the whole stack."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
import yaml
from openai import OpenAI
from openai.types import Batch

from tests.acceptance.chaos import patiently
from tests.support.batches import (
    chat_line,
    check_conservation,
    results_of,
    submit,
    wait_for_end,
)
from tests.support.stack import Simulator, Stack, running, start_simulator, start_stack
from tests.support.waiting import eventually_sync

pytestmark = pytest.mark.kafka

#: So long an upstream that should hear nothing is watched.
_QUIET_S = 2.0
#: What a call takes while a batch must not end yet, and once it may.
_SLOW, _QUICK = {"latency": "0.25"}, {"latency": "0.02"}


@pytest.fixture(scope="module")
def slow_simulator() -> Iterator[Simulator]:
    simulator = start_simulator()
    with running(simulator):
        yield simulator


@pytest.fixture(autouse=True)
def _slow_at_first(slow_simulator: Simulator) -> None:
    slow_simulator.configure(**_SLOW)


@pytest.fixture(scope="module")
def slow_stack(
    slow_simulator: Simulator, kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A Backhaul whose upstream takes 16 calls at once."""
    data: Path = tmp_path_factory.mktemp("control")
    table = data / "table.yaml"
    upstream = {
        "name": "slow",
        "base_url": slow_simulator.base_url,
        "models": ["sim"],
        "max_in_flight": 16,
    }
    table.write_text(yaml.safe_dump({"upstreams": [upstream]}))
    stack = start_stack(
        data / "data",
        *("--kafka", kafka_bootstrap, "--upstreams", str(table)),
        env={"BACKHAUL_TOPIC_PREFIX": f"ctl{uuid4().hex[:10]}"},
    )
    with running(stack):
        yield stack


@pytest.fixture
def slow_client(slow_stack: Stack) -> Iterator[OpenAI]:
    with OpenAI(base_url=slow_stack.base_url, api_key=slow_stack.api_key) as client:
        yield client


def steer(client: OpenAI, path: str, **body: Any) -> dict[str, Any]:
    """A POST below /v1/batches/."""
    answer: object = client.post(f"/batches/{path}", cast_to=object, body=body or None)
    return cast("dict[str, Any]", answer)


def completed(client: OpenAI, batch: Batch) -> int:
    counts = patiently(lambda: client.batches.retrieve(batch.id)).request_counts
    return counts.completed if counts else 0


def calls(simulator: Simulator, run: str) -> int:
    """How many calls of a batch's lines the upstream has seen."""
    keys = simulator.requests()["keys"]
    return sum(key["attempts"] for name, key in keys.items() if name.startswith(f"{run}-"))


def paused_and_drained(client: OpenAI, simulator: Simulator, run: str, batch: Batch) -> int:
    """Pauses the batch and waits until every line that was out has come in; how many that are."""
    eventually_sync(lambda: completed(client, batch) > 0, 60)
    paused = steer(client, f"{batch.id}/pause")
    assert paused["status"] == "in_progress"
    assert paused["paused_at"] is not None
    eventually_sync(lambda: 0 < completed(client, batch) == calls(simulator, run), 60)
    simulator.configure(**_QUICK)
    return completed(client, batch)


def test_a_paused_batch_drains_and_calls_nobody_until_it_is_resumed(
    slow_client: OpenAI, slow_simulator: Simulator
) -> None:
    run = uuid4().hex[:6]
    lines = [chat_line(f"{run}-{n}") for n in range(1500)]
    batch = submit(slow_client, lines)
    done = paused_and_drained(slow_client, slow_simulator, run, batch)
    assert done < len(lines), "it was paused in the middle"
    time.sleep(_QUIET_S)
    assert calls(slow_simulator, run) == done
    assert completed(slow_client, batch) == done

    assert steer(slow_client, f"{batch.id}/resume")["paused_at"] is None
    ended = wait_for_end(slow_client, batch.id, within_s=90)
    assert ended.status == "completed"
    check_conservation(ended, results_of(slow_client, ended), lines)
    assert calls(slow_simulator, run) == len(lines), "a pause makes no line run twice"


@pytest.mark.real_kafka
def test_a_batch_stays_paused_when_the_controller_is_killed(
    slow_client: OpenAI, slow_stack: Stack, slow_simulator: Simulator
) -> None:
    run = uuid4().hex[:6]
    lines = [chat_line(f"{run}-{n}") for n in range(1000)]
    batch = submit(slow_client, lines)
    done = paused_and_drained(slow_client, slow_simulator, run, batch)
    steer(slow_client, batch.id, priority=7)

    slow_stack.kill("controller")
    # That another batch runs shows that the next controller is at work.
    other = patiently(
        lambda: submit(slow_client, [chat_line(f"other-{run}-{n}") for n in range(20)])
    )
    assert wait_for_end(slow_client, other.id, within_s=120).status == "completed"
    assert calls(slow_simulator, run) == done
    shown = slow_client.batches.retrieve(batch.id).to_dict()
    assert shown["paused_at"] is not None
    assert shown["priority"] == 7

    steer(slow_client, f"{batch.id}/resume")
    ended = wait_for_end(slow_client, batch.id, within_s=90)
    assert ended.status == "completed"
    check_conservation(ended, results_of(slow_client, ended), lines)


def test_a_higher_priority_overtakes_a_batch_that_runs(
    slow_client: OpenAI, slow_simulator: Simulator
) -> None:
    run = uuid4().hex[:6]
    first = submit(slow_client, [chat_line(f"{run}-a-{n}") for n in range(5000)])
    eventually_sync(lambda: completed(slow_client, first) > 0, 60)
    second = submit(slow_client, [chat_line(f"{run}-b-{n}") for n in range(100)])
    eventually_sync(lambda: slow_client.batches.retrieve(second.id).status == "in_progress", 60)
    assert calls(slow_simulator, f"{run}-b") == 0, "the earlier deadline goes first"

    assert steer(slow_client, second.id, priority=1)["priority"] == 1
    assert wait_for_end(slow_client, second.id, within_s=60).status == "completed"
    assert slow_client.batches.retrieve(first.id).status == "in_progress"
    slow_simulator.configure(**_QUICK)
    slow_client.batches.cancel(first.id)
    assert wait_for_end(slow_client, first.id, within_s=30).status == "cancelled"


def test_an_earlier_deadline_ends_the_window_even_of_a_paused_batch(
    slow_client: OpenAI, slow_simulator: Simulator
) -> None:
    run = uuid4().hex[:6]
    lines = [chat_line(f"{run}-{n}") for n in range(1000)]
    batch = submit(slow_client, lines)
    done = paused_and_drained(slow_client, slow_simulator, run, batch)
    ends_at = int(time.time()) + 10
    assert steer(slow_client, batch.id, expires_at=ends_at)["expires_at"] == ends_at

    ended = wait_for_end(slow_client, batch.id, within_s=60)
    assert ended.status == "expired"
    assert ended.expires_at == ends_at
    assert ended.expired_at is not None
    assert ended.expired_at >= ends_at
    results = results_of(slow_client, ended)
    check_conservation(ended, results, lines)
    assert len(results.output) == done
    assert {line["error"]["code"] for line in results.error} == {"batch_expired"}
