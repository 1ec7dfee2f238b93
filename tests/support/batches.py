"""Batches for acceptance tests: making input files, waiting, and holding the results to account."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from openai import OpenAI
from openai.types import Batch

from tests.support.waiting import deadline_in

ENDED = ("completed", "failed", "expired", "cancelled")


def chat_line(
    key: str, *, model: str = "sim", text: str = "Say hello.", script: str | None = None
) -> dict[str, Any]:
    """A chat line whose custom id is also the simulator's request key.

    script: what the simulator does at each attempt, such as '503*2,ok' (streams.simulator.call).
    """
    body: dict[str, Any] = {
        "model": model,
        "user": key,
        "messages": [{"role": "user", "content": text}],
    }
    if script is not None:
        body["metadata"] = {"sim": script}
    return {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}


def jsonl(lines: Iterable[dict[str, Any]]) -> bytes:
    """The lines as a file's bytes."""
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def submit(client: OpenAI, lines: Sequence[dict[str, Any]], **options: Any) -> Batch:
    """Uploads the lines and creates a batch on them."""
    file = client.files.create(file=("input.jsonl", jsonl(lines)), purpose="batch")
    arguments = {"endpoint": "/v1/chat/completions", "completion_window": "24h", **options}
    return client.batches.create(input_file_id=file.id, **arguments)


def wait_for_end(client: OpenAI, batch_id: str, within_s: float, poll_s: float = 0.1) -> Batch:
    """Polls until the batch has ended; its counts must never contradict themselves meanwhile."""
    deadline = deadline_in(within_s)
    done_before = 0
    while True:
        batch = client.batches.retrieve(batch_id)
        counts = batch.request_counts
        assert counts is not None
        done = counts.completed + counts.failed
        assert done <= counts.total, "completed + failed may not pass total"
        assert done >= done_before, "counts may not go back"
        done_before = done
        if batch.status in ENDED:
            return batch
        if time.monotonic() > deadline:
            raise AssertionError(f"not ended in time: {batch.status}, {counts}")
        time.sleep(poll_s)


@dataclass
class Results:
    """The output and error files of an ended batch, line by line, in file order."""

    output: list[dict[str, Any]] = field(default_factory=list)
    error: list[dict[str, Any]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Sum of total tokens over the output file."""
        return sum(line["response"]["body"]["usage"]["total_tokens"] for line in self.output)


def results_of(client: OpenAI, batch: Batch) -> Results:
    """Downloads and parses both files."""

    def lines(file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        return [json.loads(line) for line in client.files.content(file_id).content.splitlines()]

    return Results(lines(batch.output_file_id), lines(batch.error_file_id))


def check_conservation(batch: Batch, results: Results, submitted: Sequence[dict[str, Any]]) -> None:
    """Every line in exactly one file, once, in input order; counts and usage as the files say."""
    order = {line["custom_id"]: n for n, line in enumerate(submitted)}
    for part in (results.output, results.error):
        places = [order[line["custom_id"]] for line in part]
        assert places == sorted(places), "lines must be in input order"
    seen = [line["custom_id"] for line in results.output + results.error]
    assert len(seen) == len(submitted), f"{len(seen)} lines in the files, {len(submitted)} sent"
    assert set(seen) == set(order), "every line must be in one of the files"
    counts = batch.request_counts
    assert counts is not None
    assert counts.total == len(submitted)
    assert counts.completed == len(results.output)
    assert counts.failed == len(results.error)
    assert batch.usage is not None
    assert batch.usage.total_tokens == results.tokens, "usage must be that of the output file"
