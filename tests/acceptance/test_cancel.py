"""Cancelling: it takes seconds even when calls hang, and what was finished is kept."""

from __future__ import annotations

from uuid import uuid4

import pytest
from openai import OpenAI

from tests.support.batches import chat_line, results_of, submit, wait_for_end
from tests.support.waiting import eventually_sync

pytestmark = pytest.mark.kafka


def test_cancel_closes_the_batch_in_seconds_even_if_calls_hang(client: OpenAI) -> None:
    run = uuid4().hex[:6]
    quick = [chat_line(f"{run}-quick-{n}") for n in range(10)]
    hanging = [chat_line(f"{run}-hang-{n}", script="hang") for n in range(10)]
    batch = submit(client, quick + hanging)

    def finished() -> int:
        counts = client.batches.retrieve(batch.id).request_counts
        assert counts is not None
        return counts.completed

    eventually_sync(lambda: finished() == 10, 30)
    assert client.batches.cancel(batch.id).status == "cancelling"
    # The goal is 2 s. A call hangs for much longer than this waits.
    ended = wait_for_end(client, batch.id, within_s=10, poll_s=0.05)

    assert ended.status == "cancelled"
    results = results_of(client, ended)
    assert [line["custom_id"] for line in results.output] == [q["custom_id"] for q in quick]
    assert {line["error"]["code"] for line in results.error} == {"batch_cancelled"}
    assert len(results.error) == 10
    assert client.batches.cancel(batch.id).status == "cancelled", "a second cancel changes nothing"
