"""Batch-worker and collector as processes on a real broker: nothing lost, nobody held up."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from schemas.records import BatchStatus, ClaimCheck, OutcomeKind, ReadyLine
from schemas.topics import LINE_DONE, LINE_READY
from streams.domain.prompts.pins import Pin, encode_pins
from streams.settings import Settings
from tests.support.lines import (
    Lines,
    exit_code,
    raw_line,
    running_lines,
    running_upstream,
    terminate,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.kafka
LINES = 200


async def _exact(lines: Lines, batch: str, numbers: range) -> None:
    """Every line is counted once, and what is counted is what assembly will find."""
    await lines.all_counted(batch, numbers)
    counted = lines.counted(batch)
    assert {n: c.usage.output_tokens for n, c in counted.items()} == {n: n for n in numbers}
    found = await lines.rendered(batch)
    assert set(found) == set(numbers)
    for number, line in found.items():
        assert line["custom_id"] == f"c{number}"
        response = line["response"]
        assert isinstance(response, dict)
        assert response["body"]["echo"] == number


async def test_lines_come_out_as_segments_and_everything_is_committed(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    async with (
        running_upstream() as upstream,
        running_lines(kafka_settings, tmp_path, {"a": upstream.url}) as lines,
    ):
        lines.run("batch-worker")
        lines.run("collector")
        await lines.release("b1", range(LINES), tail=True)
        await lines.release("b2", range(50), partition=1)
        await _exact(lines, "b1", range(LINES))
        await _exact(lines, "b2", range(50))
        assert set(upstream.served.values()) == {1}
        assert len(lines.done) < LINES + 50
        assert len(lines.events) < len(lines.done)
        await lines.all_committed("batch-worker", LINE_READY)
        await lines.all_committed("collector", LINE_DONE)

        async def idle_again() -> bool:
            await lines.read()
            load = lines.loads[-1]
            return (
                load.worker == "batch-worker-0"
                and sum(p.next_offset for p in load.partitions) == LINES // 4 + 13
                and sum(p.committed for p in load.partitions) == LINES // 4 + 13
                and [(p.pool, p.held) for p in load.pools] == [("a", 0), ("a#templates", 0)]
                and load.pools[0].credits > 8
            )

        await eventually(idle_again, 5)


@pytest.mark.parametrize(
    ("role", "failpoint"),
    [
        ("batch-worker", "batch_worker.answered:30"),
        ("batch-worker", "batch_worker.outcome_sent:3"),
        ("batch-worker", "batch_worker.acked:3"),
        ("collector", "collector.segment_stored"),
        ("collector", "collector.event_sent"),
        ("collector", "collector.acked"),
    ],
)
async def test_nothing_is_lost_when_a_process_dies_between_two_steps(
    kafka_settings: Settings, tmp_path: Path, role: str, failpoint: str
) -> None:
    async with (
        running_upstream() as upstream,
        running_lines(kafka_settings, tmp_path, {"a": upstream.url}) as lines,
    ):
        await lines.release("b1", range(LINES), tail=True)
        other = "collector" if role == "batch-worker" else "batch-worker"
        lines.run(other)
        assert await exit_code(lines.run(role, failpoint)) == 137
        lines.run(role)
        await _exact(lines, "b1", range(LINES))
        assert set(upstream.served) == {("b1", n) for n in range(LINES)}
        await lines.all_committed("batch-worker", LINE_READY)
        await lines.all_committed("collector", LINE_DONE)


async def test_an_upstream_that_hangs_does_not_slow_the_other(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    async with (
        running_upstream() as good,
        running_upstream() as bad,
        running_lines(kafka_settings, tmp_path, {"a": good.url, "b": bad.url}) as lines,
    ):
        lines.run("batch-worker")
        lines.run("collector")
        await lines.release("stuck", range(40), pool="b", model="hang", slice_lines=1)
        await eventually(lambda: bad.running == 8, 15)
        await lines.release("b1", range(LINES), tail=True)
        await lines.all_counted("b1", range(LINES), within_s=8)
        assert bad.running == 8
        assert lines.outcomes("stuck") == []


async def test_lines_of_an_ended_batch_are_dropped_and_its_calls_are_cut(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    async with (
        running_upstream() as upstream,
        running_lines(kafka_settings, tmp_path, {"a": upstream.url}) as lines,
    ):
        await lines.set_status("gone", BatchStatus.CANCELLED)
        await lines.set_status("live", BatchStatus.IN_PROGRESS)
        await lines.release("gone", range(20))
        await lines.release("live", range(20), model="hang")
        worker = lines.run("batch-worker")
        await eventually(lambda: upstream.running == 8, 15)
        await lines.set_status("live", BatchStatus.CANCELLING)
        await eventually(lambda: upstream.running == 0, 5)
        await lines.all_committed("batch-worker", LINE_READY)
        await lines.read()
        assert lines.done == []
        assert not upstream.served
        assert upstream.cut == 8
        assert worker.poll() is None


async def test_a_worker_that_is_told_to_stop_finishes_its_calls_and_leaves_the_rest(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    async with (
        running_upstream(delay_s=1.0) as upstream,
        running_lines(kafka_settings, tmp_path, {"a": upstream.url}) as lines,
    ):
        worker = lines.run("batch-worker")
        await lines.release("b1", range(24), slice_lines=1)
        await eventually(lambda: upstream.running == 8, 15)
        terminate(worker)
        assert await exit_code(worker) == 0
        assert set(upstream.served.values()) == {1}
        served = len(upstream.served)

        async def said_so() -> bool:
            await lines.read()
            return lines.loads[-1].stopping

        await eventually(said_so, 5)
        assert len(lines.outcomes("b1")) == served < 24
        assert upstream.cut == 0
        lines.run("batch-worker")
        lines.run("collector")
        await lines.all_counted("b1", range(24))
        # What was answered before the stop was committed, so nothing ran again.
        assert set(upstream.served.values()) == {1}


async def test_a_collector_that_is_told_to_stop_tells_what_it_has_and_commits(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    async with (
        running_upstream() as upstream,
        running_lines(kafka_settings, tmp_path, {"a": upstream.url}) as lines,
    ):
        worker = lines.run("batch-worker")
        await lines.release("b1", range(20))
        await eventually(lambda: len(upstream.served) == 20, 15)
        terminate(worker)
        assert await exit_code(worker) == 0
        collector = lines.run("collector")
        await lines.all_counted("b1", range(20))
        terminate(collector)
        assert await exit_code(collector) == 0
        await lines.all_committed("collector", LINE_DONE, within_s=2)


async def test_large_lines_and_large_answers_travel_as_claim_checks(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    async with (
        running_upstream() as upstream,
        running_lines(kafka_settings, tmp_path, {"a": upstream.url}) as lines,
    ):
        large = raw_line("b1", 1, pad=100_000)
        await lines.store.put("files/t/file-1", raw_line("b1", 0) + b"\n" + large + b"\n")
        at = len(raw_line("b1", 0)) + 1
        claim = ClaimCheck(key="files/t/file-1", offset=at, length=len(large))
        lost = ClaimCheck(key="files/t/nowhere", offset=0, length=10)
        await lines.release(
            "b1",
            [0],
            tail=True,
            lines=[
                ReadyLine(line=1, attempt=1, claim=claim),
                ReadyLine(line=2, attempt=1, claim=lost),
            ],
        )
        lines.run("batch-worker")
        lines.run("collector")
        await lines.all_counted("b1", range(3))
        kinds = {n: c.kind for n, c in lines.counted("b1").items()}
        completed, failed = OutcomeKind.COMPLETED, OutcomeKind.FAILED
        assert kinds == {0: completed, 1: completed, 2: failed}
        assert upstream.served == {("b1", 0): 1, ("b1", 1): 1}


def _prompt_line(number: int, pin: int, **variables: object) -> ReadyLine:
    body = {"prompt_slug": "s", "variables": variables, "batch": "b1", "n": number}
    raw = json.dumps({"custom_id": f"c{number}", "body": body}).encode()
    return ReadyLine(line=number, attempt=1, raw=raw, pin=pin)


def _pin(template: str) -> Pin:
    messages = [{"role": "user", "content": template}]
    return Pin("s", 1, json.dumps(messages).encode(), b'{"model": "m", "top_p": 0.5}')


async def test_lines_of_stored_prompts_reach_the_upstream_rendered(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    async with (
        running_upstream() as upstream,
        running_lines(kafka_settings, tmp_path, {"a": upstream.url}) as lines,
    ):
        loop = "{% for word in words %}<{{ word }}>{% endfor %}"
        stored = encode_pins([_pin("Sum up: {{text}}"), _pin(loop)])
        await lines.store.put("batches/b1/plan/1", b"rows" + stored)
        pins = ClaimCheck(key="batches/b1/plan/1", offset=4, length=len(stored))
        asked = [
            _prompt_line(1, 1, text="x" * 10 + "{{ text }}"),
            _prompt_line(2, 2, words=["a", '"b"']),
            _prompt_line(3, 2, words=7),
        ]
        await lines.release("b1", [0], tail=True, lines=asked, pins=pins)
        lines.run("batch-worker")
        lines.run("collector")
        await lines.all_counted("b1", range(4))
        kinds = {n: c.kind for n, c in lines.counted("b1").items()}
        completed, failed = OutcomeKind.COMPLETED, OutcomeKind.FAILED
        assert kinds == {0: completed, 1: completed, 2: completed, 3: failed}
        told = {n: body["messages"][0]["content"] for (_, n), body in upstream.bodies.items() if n}
        assert told == {1: "Sum up: xxxxxxxxxx{{ text }}", 2: '<a><"b">'}
        assert upstream.bodies["b1", 1]["top_p"] == 0.5
        rendered = await lines.rendered("b1")
        error = rendered[3]["error"]
        assert isinstance(error, dict)
        assert error["code"] == "prompt_render_failed"


async def test_a_killed_worker_repeats_only_what_it_held(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    async with (
        running_upstream(delay_s=0.05) as upstream,
        running_lines(kafka_settings, tmp_path, {"a": upstream.url}) as lines,
    ):
        worker = lines.run("batch-worker")
        lines.run("collector")
        await lines.release("b1", range(LINES), slice_lines=1, tail=True)
        await eventually(lambda: len(upstream.served) > LINES // 2, 20)
        worker.send_signal(signal.SIGKILL)
        await exit_code(worker)
        lines.run("batch-worker")
        await _exact(lines, "b1", range(LINES))
        again = sum(count - 1 for count in upstream.served.values())
        # Eight in flight, and what was finished within one commit interval.
        assert again <= 8 + 160
