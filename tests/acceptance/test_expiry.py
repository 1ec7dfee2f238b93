"""A batch whose completion window ends keeps what is finished, and says what isn't."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
from openai import OpenAI

from tests.support.batches import chat_line, results_of, submit, wait_for_end
from tests.support.stack import Simulator, Stack, running, start_stack

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def short_windows(
    simulator: Simulator, kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A Backhaul whose operator also allows a window of 20 seconds."""
    stack = start_stack(
        tmp_path_factory.mktemp("expiry"),
        *("--kafka", kafka_bootstrap, "--upstream", simulator.base_url),
        env={
            "BACKHAUL_TOPIC_PREFIX": f"exp{uuid4().hex[:10]}",
            "BACKHAUL_COMPLETION_WINDOWS": '{"24h": 86400, "20s": 20}',
        },
    )
    with running(stack):
        yield stack


def test_an_expired_batch_keeps_its_finished_lines(short_windows: Stack) -> None:
    quick = [chat_line(f"in-time-{n}") for n in range(10)]
    hanging = [chat_line(f"late-{n}", script="hang") for n in range(5)]
    with OpenAI(base_url=short_windows.base_url, api_key=short_windows.api_key) as client:
        batch = submit(client, quick + hanging, completion_window="20s")
        assert batch.expires_at == batch.created_at + 20
        ended = wait_for_end(client, batch.id, within_s=40)
        results = results_of(client, ended)

    assert ended.status == "expired"
    assert ended.expired_at is not None
    assert [line["custom_id"] for line in results.output] == [line["custom_id"] for line in quick]
    assert [line["custom_id"] for line in results.error] == [line["custom_id"] for line in hanging]
    for line in results.error:
        assert line["response"] is None
        assert line["error"]["code"] == "batch_expired"
    counts = ended.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (15, 10, 5)
