"""Cancelling: it takes seconds even when calls hang, and what was finished is kept."""

from __future__ import annotations

import time
from uuid import uuid4

import pytest
from openai import OpenAI

from tests.support.batches import chat_line, results_of, submit, wait_for_end

pytestmark = pytest.mark.kafka


def test_cancel_closes_the_batch_in_seconds_even_if_calls_hang(client: OpenAI) -> None:
    run = uuid4().hex[:6]
    quick = [chat_line(f"{run}-quick-{n}") for n in range(10)]
    hanging = [chat_line(f"{run}-hang-{n}", script="hang") for n in range(10)]
    batch = submit(client, quick + hanging)
    deadline = time.monotonic() + 30
    while True:
        counts = client.batches.retrieve(batch.id).request_counts
        assert counts is not None
        if counts.completed == 10:
            break
        assert time.monotonic() < deadline, counts
        time.sleep(0.1)

    began = time.monotonic()
    assert client.batches.cancel(batch.id).status == "cancelling"
    ended = wait_for_end(client, batch.id, within_s=30, poll_s=0.05)
    took_s = time.monotonic() - began

    assert ended.status == "cancelled"
    assert took_s < 10, "the goal is 2 s; the bound is generous for a busy machine"
    results = results_of(client, ended)
    assert [line["custom_id"] for line in results.output] == [q["custom_id"] for q in quick]
    assert {line["error"]["code"] for line in results.error} == {"batch_cancelled"}
    assert len(results.error) == 10
    assert client.batches.cancel(batch.id).status == "cancelled", "a second cancel changes nothing"
