"""Lines that name a stored prompt, with the real SDK, against an upstream that records bodies."""

from __future__ import annotations

import csv
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests.support.batches import chat_line, check_conservation, results_of, wait_for_end
from tests.support.prompt_api import Prompts, check_bodies, exact, pins_shown, unused_shown
from tests.support.prompt_world import (
    MARK,
    PromptWorld,
    leaks,
    prompt_world,
    run_of,
    submit_mixed,
)
from tests.support.prompts import (
    CHAT,
    RESPONSES,
    Book,
    Version,
    mixed_jsonl,
    mixed_lines,
    prompt_line,
    responses_lines,
)
from tests.support.stack import BACKHAUL

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def world(kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PromptWorld]:
    with prompt_world(kafka_bootstrap, tmp_path_factory.mktemp("prompts")) as world:
        yield world


@pytest.fixture
def client(world: PromptWorld) -> Iterator[OpenAI]:
    with world.client() as client:
        yield client


@pytest.fixture
def prompts(client: OpenAI) -> Prompts:
    return Prompts(client)


def _slow_lines(run: str, slug: str, count: int, **fields: Any) -> list[dict[str, Any]]:
    return [
        prompt_line(f"{run}-{n}", slug, {"text": f"{MARK} {n}"}, model="slow", **fields)
        for n in range(count)
    ]


def _saying(word: str) -> Version:
    return Version([{"role": "user", "content": f"{MARK} {word}: {{{{ text }}}}"}])


def test_the_issues_lines_and_a_thousand_mixed_ones_are_sent_as_the_rules_say(
    client: OpenAI, world: PromptWorld
) -> None:
    run = run_of("mixed")
    rules = [
        prompt_line(f"{run}-doc-1", "summarize", {"text": "First document…", "language": "nl"}),
        chat_line(f"{run}-doc-2", text=f"{MARK} {{{{text}}}}"),
        prompt_line(f"{run}-doc-3", "summarize", {"text": "A specific version…"}, prompt_version=2),
    ]
    for line in rules:
        line["body"]["model"] = "gpt-4o-mini"
    lines = rules + mixed_lines(run, 1_000, random.Random(4), f"-{MARK}")

    batch = submit_mixed(client, lines)
    ended = wait_for_end(client, batch.id, within_s=120)

    assert ended.status == "completed", ended.errors
    results = results_of(client, ended)
    check_conservation(ended, results, lines)
    assert results.error == []
    check_bodies(world.recorded, world.shelf, lines, run)
    assert pins_shown(ended) == world.shelf.pins(lines)
    assert unused_shown(ended) == world.shelf.unused(lines) > 0


def test_lines_for_responses_name_prompts_in_both_forms(client: OpenAI, world: PromptWorld) -> None:
    run = run_of("responses")
    lines = responses_lines(run, 120, random.Random(5), f"-{MARK}")
    ended = wait_for_end(client, submit_mixed(client, lines, RESPONSES).id, within_s=60)
    assert ended.status == "completed", ended.errors
    results = results_of(client, ended)
    check_conservation(ended, results, lines)
    assert results.error == []
    check_bodies(world.recorded, world.shelf, lines, run)
    assert pins_shown(ended) == world.shelf.pins(lines)
    assert not unused_shown(ended)


def test_a_batch_without_prompts_shows_none(client: OpenAI) -> None:
    lines = [chat_line(f"{run_of('literal')}-{n}") for n in range(3)]
    ended = wait_for_end(client, submit_mixed(client, lines).id, within_s=60)
    assert ended.status == "completed"
    assert pins_shown(ended) == {}
    assert unused_shown(ended) is None


def test_a_version_published_in_mid_batch_is_for_later_batches(
    client: OpenAI, prompts: Prompts, world: PromptWorld
) -> None:
    run, shelf = run_of("pinned"), Book()
    slug = shelf.add(run_of("slug"), _saying("one"), _saying("two"), published=2)
    prompts.make(shelf)
    lines = _slow_lines(run, slug, 400) + _slow_lines(f"{run}-1", slug, 10, prompt_version=1)
    wanted = shelf.pins(lines)

    with world.mid_batch(client, lines) as batch:
        assert pins_shown(batch) == wanted
        assert prompts.add(slug, _saying("three")) == 3
        prompts.publish(slug, 3)
        assert prompts.get(slug)["published_version"] == 3
        assert pins_shown(client.batches.retrieve(batch.id)) == wanted

    ended = wait_for_end(client, batch.id, within_s=120)
    assert ended.status == "completed"
    assert pins_shown(ended) == wanted
    check_conservation(ended, results_of(client, ended), lines)
    check_bodies(world.recorded, shelf, lines, run)

    shelf.add(slug, _saying("one"), _saying("two"), _saying("three"), published=3)
    run = run_of("later")
    later = [prompt_line(f"{run}-{n}", slug, {"text": "t"}) for n in range(5)]
    ended = wait_for_end(client, submit_mixed(client, later).id, within_s=60)
    assert pins_shown(ended) == {(slug, 3): 5}
    check_bodies(world.recorded, shelf, later, run)


def test_a_prompt_deleted_in_mid_batch_does_not_break_the_batch(
    client: OpenAI, prompts: Prompts, world: PromptWorld
) -> None:
    run, shelf = run_of("deleted"), Book()
    slug = shelf.add(run_of("slug"), _saying("kept"))
    prompts.make(shelf)
    lines = _slow_lines(run, slug, 300)

    with world.mid_batch(client, lines) as batch:
        prompts.delete(slug)

    ended = wait_for_end(client, batch.id, within_s=120)
    assert ended.status == "completed"
    results = results_of(client, ended)
    check_conservation(ended, results, lines)
    assert results.error == []
    check_bodies(world.recorded, shelf, lines, run)
    assert pins_shown(ended) == {(slug, 1): 300}
    again = [prompt_line(f"{run_of('gone')}-0", slug, {"text": "t"})]
    refused = wait_for_end(client, submit_mixed(client, again).id, within_s=60)
    assert refused.status == "failed"


def test_a_version_published_right_before_create_is_the_one_that_is_used(
    client: OpenAI, prompts: Prompts, world: PromptWorld
) -> None:
    """Read your own writes, across gateway and file-worker, twenty times in a row."""
    run, shelf = run_of("rush"), Book()
    slug = shelf.add(run_of("slug"), _saying("first"))
    prompts.make(shelf)
    made = []
    for number in range(2, 22):
        shelf.versions[slug].append(_saying(f"number {number}"))
        lines = [prompt_line(f"{run}-{number}-{n}", slug, {"text": "t"}) for n in range(3)]
        file = client.files.create(file=("in.jsonl", mixed_jsonl(lines)), purpose="batch")
        assert prompts.add(slug, shelf.versions[slug][-1]) == number
        prompts.publish(slug, number)
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        made.append((number, batch, lines))
    for number, batch, lines in made:
        ended = wait_for_end(client, batch.id, within_s=60)
        ((_, shelf.published[slug]),) = pins_shown(ended)
        assert shelf.published[slug] >= number, "a later one may have been published meanwhile"
        check_bodies(world.recorded, shelf, lines, f"{run}-{number}-")


def test_rows_become_a_batch_by_the_route_and_by_the_command(
    client: OpenAI, prompts: Prompts, world: PromptWorld, tmp_path: Path
) -> None:
    run, slug = run_of("rows"), run_of("slug")
    version = Version([{"role": "user", "content": f"{run} {{{{ text }}}}"}], {"model": "sim"})
    prompts.create(slug, version)
    rows = [{"id": f"{run}-{n}", "text": f'row {n}, "{n}"'} for n in range(40)]
    made = prompts.batch_from(slug, rows[:20], id_column="id")
    by_route = wait_for_end(client, made, within_s=60)

    with (tmp_path / "rows.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, ["id", "text"])
        writer.writeheader()
        writer.writerows(rows[20:])
    command = [BACKHAUL, "submit", "--prompt", slug, "--variables", str(tmp_path / "rows.csv")]
    where = ["--base-url", world.stack.base_url, "--api-key", world.stack.api_key]
    done = subprocess.run(
        [*command, "--id-column", "id", "--wait", *where], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    by_command = next(iter(client.batches.list(limit=1)))

    sent = sorted(exact(body) for body in world.recorded.with_text(run))
    assert sent == sorted(exact(version.body(CHAT, {"variables": row})) for row in rows)
    for ended, part in ((by_route, rows[:20]), (by_command, rows[20:])):
        assert ended.status == "completed", ended.errors
        assert pins_shown(ended) == {(slug, 1): 20}
        assert unused_shown(ended) is None
        results = results_of(client, ended)
        assert [line["custom_id"] for line in results.output] == [row["id"] for row in part]


def test_no_log_metric_or_dead_letter_header_has_anything_of_all_this(world: PromptWorld) -> None:
    """The last test of this module: it looks at what all the others left behind."""
    assert leaks(world) == []
