"""A user's walk through the API with the official SDK, against everything running."""

from __future__ import annotations

import json
from typing import Literal

import pytest
from openai import AsyncOpenAI, ConflictError, NotFoundError, OpenAI
from openai.types import Batch

from tests.support.batches import (
    chat_line,
    check_conservation,
    jsonl,
    results_of,
    submit,
    wait_for_end,
)
from tests.support.stack import Simulator, Stack
from tests.support.waiting import eventually
from tests.support.webhooks import receiving

pytestmark = pytest.mark.kafka


def test_a_batch_comes_out_complete(client: OpenAI) -> None:
    lines = [chat_line(f"walk-{n}") for n in range(30)]
    batch = submit(client, lines, metadata={"purpose": "walk"})
    assert batch.status == "validating"
    assert batch.expires_at == batch.created_at + 86_400

    ended = wait_for_end(client, batch.id, within_s=60)

    assert ended.status == "completed"
    assert ended.model == "sim"
    assert ended.metadata == {"purpose": "walk"}
    assert ended.error_file_id is None
    assert ended.errors is None
    assert ended.output_file_id is not None
    check_conservation(ended, results_of(client, ended), lines)
    output = client.files.retrieve(ended.output_file_id)
    assert output.purpose == "batch_output"
    assert output.filename == f"{batch.id}_output.jsonl"


async def test_the_async_client_walks_the_same_way(async_client: AsyncOpenAI) -> None:
    async with async_client as client:
        lines = [chat_line(f"async-{n}") for n in range(5)]
        file = await client.files.create(file=("in.jsonl", jsonl(lines)), purpose="batch")
        batch = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )

        async def completed() -> Batch | None:
            found = await client.batches.retrieve(batch.id)
            return found if found.status == "completed" else None

        ended = await eventually(completed, 60)
        assert ended is not None
        assert ended.output_file_id is not None
        content = await client.files.content(ended.output_file_id)
        answered = [json.loads(line)["custom_id"] for line in content.content.splitlines()]
        assert answered == [line["custom_id"] for line in lines]
        assert (await client.files.delete(file.id)).deleted
        with pytest.raises(NotFoundError):
            await client.files.retrieve(file.id)


async def test_a_receiver_is_told_when_batches_end_also_after_a_kill(
    async_client: AsyncOpenAI, stack: Stack
) -> None:
    async with async_client as client, receiving(500, 500) as receiver:
        endpoint = await client.webhooks.create(
            name="walk", url=receiver.url, event_types=["batch.completed", "batch.failed"]
        )
        receiver.secret = endpoint.signing_secret
        file = await client.files.create(
            file=("in.jsonl", jsonl([chat_line("told")])), purpose="batch"
        )

        async def told(url: Literal["/v1/chat/completions", "/v1/embeddings"]) -> tuple[str, str]:
            """Runs a batch until the receiver has taken an event; that event's type and batch."""
            batch = await client.batches.create(
                input_file_id=file.id, endpoint=url, completion_window="24h"
            )
            # An event of before the kill may come again.
            event_type = await eventually(lambda: receiver.accepted_of(batch.id), 60)
            shown = await client.batches.retrieve(batch.id)
            return event_type, shown.status

        assert await told("/v1/chat/completions") == ("batch.completed", "completed")
        assert len(receiver.got) == 3, "two attempts were refused"
        assert len(set(receiver.got)) == 1, "with one id"
        stack.kill("webhook-worker")
        assert await told("/v1/embeddings") == ("batch.failed", "failed")
        await client.webhooks.delete(endpoint.id)


def test_auto_pagination_finds_all_of_45_batches(client: OpenAI) -> None:
    file = client.files.create(file=("in.jsonl", jsonl([chat_line("page")])), purpose="batch")
    made = [
        client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        ).id
        for _ in range(45)
    ]
    found = [batch.id for batch in client.batches.list()]
    assert [batch_id for batch_id in found if batch_id in set(made)] == made[::-1]
    for batch_id in made:
        assert wait_for_end(client, batch_id, within_s=60).status == "completed"


def test_final_refusals_stand_in_the_error_file_with_the_upstreams_own_words(
    client: OpenAI,
) -> None:
    lines = [chat_line("good"), chat_line("refused", script="400"), chat_line("also-good")]
    ended = wait_for_end(client, submit(client, lines).id, within_s=60)
    results = results_of(client, ended)
    check_conservation(ended, results, lines)
    (refused,) = results.error
    assert refused["custom_id"] == "refused"
    assert refused["error"] is None
    assert refused["response"]["status_code"] == 400
    assert refused["response"]["body"]["error"]["message"]


def test_passing_trouble_is_retried_and_not_seen_by_the_user(
    client: OpenAI, simulator: Simulator
) -> None:
    scripts = ["429,ok", "503*2,ok", "cut,ok", "garbage,ok"]
    lines = [chat_line(f"trouble-{n}", script=script) for n, script in enumerate(scripts)]
    ended = wait_for_end(client, submit(client, lines).id, within_s=90)
    assert ended.status == "completed"
    assert ended.error_file_id is None
    check_conservation(ended, results_of(client, ended), lines)


def test_a_batch_whose_lines_all_fail_is_completed_without_an_output_file(client: OpenAI) -> None:
    lines = [chat_line(f"bad-{n}", script="400") for n in range(3)]
    ended = wait_for_end(client, submit(client, lines).id, within_s=60)
    assert ended.status == "completed"
    assert ended.output_file_id is None
    assert ended.error_file_id is not None
    assert ended.errors is None
    assert ended.request_counts is not None
    assert ended.request_counts.completed == 0


def test_a_bad_file_fails_once_with_all_its_errors(client: OpenAI) -> None:
    lines = [chat_line("twice"), chat_line("twice"), {"custom_id": "no-body", "method": "POST"}]
    ended = wait_for_end(client, submit(client, lines).id, within_s=60)
    assert ended.status == "failed"
    assert ended.errors is not None
    found = {(e.code, e.line) for e in ended.errors.data or []}
    assert ("duplicate_custom_id", 2) in found
    assert ("missing_required_parameter", 3) in found
    with pytest.raises(ConflictError) as refused:
        client.batches.cancel(ended.id)
    assert "status 'failed'" in str(refused.value)


def test_an_unknown_input_file_fails_the_batch_not_the_create(client: OpenAI) -> None:
    batch = client.batches.create(
        input_file_id="file-unknown", endpoint="/v1/chat/completions", completion_window="24h"
    )
    ended = wait_for_end(client, batch.id, within_s=30)
    assert ended.status == "failed"
    assert ended.errors is not None
    assert ended.errors.data is not None
    assert ended.errors.data[0].code == "invalid_request"
    assert ended.errors.data[0].param == "file_id"


def test_a_file_deleted_after_create_does_not_break_its_batch(
    client: OpenAI, simulator: Simulator
) -> None:
    lines = [chat_line(f"deleted-{n}") for n in range(20)]
    batch = submit(client, lines)
    client.files.delete(batch.input_file_id)
    ended = wait_for_end(client, batch.id, within_s=60)
    assert ended.status == "completed"
    check_conservation(ended, results_of(client, ended), lines)
