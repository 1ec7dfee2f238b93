"""Reading a batch's output while its lines run, and running its failed lines again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import httpx2
import pytest
from openai import OpenAI

from schemas.headers import PARTIAL_LINES
from tests.acceptance.chaos import patiently
from tests.support.batches import (
    ENDED,
    chat_line,
    check_conservation,
    results_of,
    submit,
    wait_for_end,
)
from tests.support.stack import Simulator, Stack, running, start_simulator, start_stack
from tests.support.waiting import deadline_in

pytestmark = pytest.mark.kafka

KILLED = ("collector", "controller")


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    simulator = start_simulator("--latency", "0.2")
    with running(simulator):
        yield simulator


@pytest.fixture(scope="module")
def stack(
    simulator: Simulator, kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    data: Path = tmp_path_factory.mktemp("partial")
    stack = start_stack(
        data,
        *("--kafka", kafka_bootstrap, "--upstream", simulator.base_url),
        env={"BACKHAUL_TOPIC_PREFIX": f"prt{uuid4().hex[:10]}"},
    )
    with running(stack):
        yield stack


class Follower:
    """Holds what was read of a batch's output, as a client that asks for what is new."""

    def __init__(self, stack: Stack, client: OpenAI, batch_id: str) -> None:
        self.held = b""
        self.while_it_ran = 0
        self._client = client
        self._batch_id = batch_id
        self._url = stack.base_url
        self._headers = {"Authorization": f"Bearer {stack.api_key}"}

    def look(self) -> bool:
        """Reads what is new; whether the batch has ended."""
        batch = patiently(lambda: self._client.batches.retrieve(self._batch_id))
        partial = batch.to_dict()["partial_output_file_id"]
        assert partial is None or batch.output_file_id is None
        file_id = batch.output_file_id or partial
        if file_id:
            self._read(str(file_id))
        return batch.status in ENDED

    def _read(self, file_id: str) -> None:
        headers = {**self._headers, "Range": f"bytes={len(self.held)}-"}
        answer = patiently(
            lambda: httpx2.get(f"{self._url}/files/{file_id}/content", headers=headers)
        )
        if answer.status_code == 206:
            self.held += answer.content
            if PARTIAL_LINES in answer.headers:
                self.while_it_ran = len(self.held)
                assert self.held.count(b"\n") <= int(answer.headers[PARTIAL_LINES])
                assert self.held.endswith(b"\n")
        else:
            assert answer.status_code in (404, 416, 503)


@pytest.mark.parametrize(
    "killed", [None, *(pytest.param(role, marks=pytest.mark.real_kafka) for role in KILLED)]
)
def test_a_follower_ends_with_the_very_bytes_of_the_output_file(
    stack: Stack, client: OpenAI, killed: str | None
) -> None:
    run = uuid4().hex[:6]
    scripts = dict.fromkeys(range(5, 1500, 100), "400")
    lines = [chat_line(f"{run}-{n}", script=scripts.get(n)) for n in range(1500)]
    batch = submit(client, lines)
    follower = Follower(stack, client, batch.id)
    deadline = deadline_in(150)
    pending = killed
    while not follower.look():
        if pending and follower.held:
            stack.kill(pending)
            pending = None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    ended = client.batches.retrieve(batch.id)
    assert ended.status == "completed"
    assert ended.output_file_id is not None
    assert follower.while_it_ran > 0
    assert follower.held == client.files.content(ended.output_file_id).content
    check_conservation(ended, results_of(client, ended), lines)


def test_failed_lines_run_again_as_a_batch_that_names_its_origin(client: OpenAI) -> None:
    run = uuid4().hex[:6]
    lines = [chat_line(f"{run}-{n}", script="400,ok" if n % 3 == 0 else None) for n in range(30)]
    origin = wait_for_end(client, submit(client, lines).id, within_s=60)
    failed = [line["custom_id"] for line in results_of(client, origin).error]
    assert failed == [f"{run}-{n}" for n in range(0, 30, 3)]
    answer: object = client.post(f"/batches/{origin.id}/retry", cast_to=object)
    again = cast("dict[str, Any]", answer)
    assert again["origin_batch_id"] == origin.id
    ended = wait_for_end(client, str(again["id"]), within_s=60)
    sent = client.files.content(ended.input_file_id).content.splitlines()
    assert [json.loads(line) for line in sent] == lines[::3]
    results = results_of(client, ended)
    check_conservation(ended, results, lines[::3])
    assert [line["custom_id"] for line in results.output] == failed
