"""Lines that can't run: wrong ones, hostile templates, and variables that a template can't take."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI
from openai.types import Batch

from schemas.topics import BATCH_COMMAND, PROMPT
from tests.support.batches import check_conservation, results_of, wait_for_end
from tests.support.prompt_api import Prompts, check_bodies, error_codes
from tests.support.prompt_world import (
    MARK,
    PromptWorld,
    dead_letters,
    leaks,
    prompt_world,
    run_of,
    send_garbage,
    submit_mixed,
)
from tests.support.prompts import CHAT, RESPONSES, Book, Version, mixed_lines, prompt_line
from tests.support.waiting import eventually_sync

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
def other(world: PromptWorld) -> Iterator[OpenAI]:
    """A client of another tenant."""
    with OpenAI(base_url=world.stack.base_url, api_key=world.stack.new_key("other")) as client:
        yield client


@pytest.fixture
def prompts(client: OpenAI) -> Prompts:
    return Prompts(client)


def _saying(word: str) -> Version:
    return Version([{"role": "user", "content": f"{MARK} {word}: {{{{ text }}}}"}])


def _codes_of(batch: Batch) -> list[tuple[int | None, str | None, str | None]]:
    assert batch.errors is not None
    return [(e.line, e.code, e.param) for e in batch.errors.data or []]


def test_every_wrong_line_is_told_with_its_line_and_param(
    client: OpenAI, prompts: Prompts, world: PromptWorld
) -> None:
    run, mark = run_of("wrong"), f"-{MARK}"
    withdrawn, deleted = run_of("withdrawn"), run_of("removed")
    for slug in (withdrawn, deleted):
        prompts.create(slug, _saying("gone"))
    prompts.publish(withdrawn, None)
    prompts.delete(deleted)
    text = {"text": f"{MARK} secret", "language": "en"}
    good: dict[str, Any] = {"model": "sim", "prompt_slug": "summarize", "variables": text}
    styled = {"name": "N", "formal": True, "items": [], "note": None}
    cases: list[tuple[dict[str, Any], str | None]] = [
        (good, None),
        ({**good, "messages": [{"role": "user", "content": MARK}]}, "messages"),
        ({**good, "prompt_slug": f"no-such-{MARK}"}, "prompt_slug"),
        ({**good, "prompt_slug": 7}, "prompt_slug"),
        ({**good, "prompt_slug": ""}, "prompt_slug"),
        ({**good, "prompt_slug": "a" * 129}, "prompt_slug"),
        ({**good, "prompt_slug": deleted}, "prompt_slug"),
        ({**good, "prompt_slug": withdrawn}, "prompt_slug"),
        ({**good, "prompt_slug": withdrawn, "prompt_version": 1}, None),
        ({**good, "prompt_version": 9}, "prompt_version"),
        ({**good, "prompt_version": "2"}, "prompt_version"),
        ({**good, "prompt_version": 0}, "prompt_version"),
        ({**good, "prompt_version": 1.5}, "prompt_version"),
        ({**good, "variables": [1]}, "variables"),
        ({**good, "variables": "text"}, "variables"),
        ({**good, "variables": {"text": "t"}}, "variables.language"),
        ({**good, "variables": {**text, "text": None}}, "variables.text"),
        ({"model": "sim", "prompt_slug": "summarize"}, "variables.language"),
        ({**good, "prompt_slug": f"styled{mark}", "variables": styled}, None),
        (
            {**good, "prompt_slug": f"styled{mark}", "variables": {**styled, "name": None}},
            "variables.name",
        ),
        ({"prompt_slug": f"parts{mark}", "variables": {"a": "A", "b": "B"}}, "model"),
        ({**good, "stream": True}, "stream"),
    ]
    lines = [
        {"custom_id": f"{run}-{n}", "method": "POST", "url": CHAT, "body": {**body, "user": run}}
        for n, (body, _) in enumerate(cases)
    ]
    ended = wait_for_end(client, submit_mixed(client, lines).id, within_s=60)
    assert ended.status == "failed"
    wanted = {n: param for n, (_, param) in enumerate(cases, 1) if param is not None}
    found = _codes_of(ended)
    assert {line: param for line, _, param in found} == {
        line: f"body.{param}" for line, param in wanted.items()
    }
    assert len(found) == len(wanted)
    codes = {code for _, code, param in found if param not in ("body.stream", "body.model")}
    assert codes == {"invalid_request"}
    assert world.recorded.by_key(run) == {}, "nothing runs before all lines are good"


def test_wrong_lines_of_the_responses_form_are_told_by_its_own_names(
    client: OpenAI, world: PromptWorld
) -> None:
    run = run_of("wrong-form")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"prompt": {"id": f"no-{MARK}"}}, "prompt.id"),
        ({"prompt": {"id": "summarize", "version": "9"}}, "prompt.version"),
        ({"prompt": {"id": "summarize", "variables": {"text": "t"}}}, "prompt.variables.language"),
        ({"prompt": {"id": "summarize"}, "input": "both"}, "input"),
        ({"prompt_slug": "summarize", "input": "both"}, "input"),
    ]
    lines = [
        {
            "custom_id": f"{run}-{n}",
            "method": "POST",
            "url": RESPONSES,
            "body": {"model": "sim", **body},
        }
        for n, (body, _) in enumerate(cases)
    ]
    ended = wait_for_end(client, submit_mixed(client, lines, RESPONSES).id, within_s=60)
    assert _codes_of(ended) == [
        (n, "invalid_request", f"body.{param}") for n, (_, param) in enumerate(cases, 1)
    ]


def test_other_endpoints_take_no_prompts(client: OpenAI, world: PromptWorld) -> None:
    body = {"model": "sim", "prompt_slug": "summarize", "variables": {}, "input": "x"}
    line = {"custom_id": "e", "method": "POST", "url": "/v1/embeddings", "body": body}
    ended = wait_for_end(client, submit_mixed(client, [line], "/v1/embeddings").id, within_s=60)
    assert _codes_of(ended) == [(1, "invalid_request", "body.prompt_slug")]


#: Take far longer than they may: a loop in a loop in a loop.
_TOO_LONG = {"xs": list(range(400))}
_HOSTILE = Version(
    [
        {
            "role": "user",
            "content": f"{MARK}{{% for a in xs %}}{{% for b in xs %}}{{% for c in xs %}}"
            "{% if a == b and b == c %}{% endif %}{% endfor %}{% endfor %}{% endfor %}",
        }
    ]
)


def test_a_hostile_template_stalls_no_plain_lines_of_its_tenant_or_another(
    client: OpenAI, other: OpenAI, prompts: Prompts, world: PromptWorld
) -> None:
    run, slug = run_of("hostile"), run_of("slow-slug")
    prompts.create(slug, _HOSTILE)
    Prompts(other).make(world.shelf)
    hostile_lines = [prompt_line(f"{run}-h{n}", slug, _TOO_LONG) for n in range(100)]
    mixed = mixed_lines(f"{run}-p", 330, random.Random(6), f"-{MARK}")
    plain = [line for line in mixed if line["body"].get("prompt_slug") != f"styled-{MARK}"]
    halves = {client: plain[::2], other: plain[1::2]}

    hostile = submit_mixed(client, hostile_lines)
    eventually_sync(lambda: client.batches.retrieve(hostile.id).status == "in_progress", 60)
    for tenant, lines in halves.items():
        ended = wait_for_end(tenant, submit_mixed(tenant, lines).id, within_s=60)
        check_conservation(ended, results_of(tenant, ended), lines)
        assert ended.request_counts is not None
        assert ended.request_counts.failed == 0
    still = client.batches.retrieve(hostile.id)
    assert still.status == "in_progress", "the hostile one must have outlasted the others"
    check_bodies(world.recorded, world.shelf, plain, f"{run}-p")

    client.batches.cancel(hostile.id)
    cancelled = wait_for_end(client, hostile.id, within_s=60)
    check_conservation(cancelled, results_of(client, cancelled), hostile_lines)
    assert world.recorded.by_key(f"{run}-h") == {}, "what can't be rendered is never sent"


def test_lines_that_can_not_be_rendered_stand_in_the_error_file_with_their_codes(
    client: OpenAI, prompts: Prompts, world: PromptWorld
) -> None:
    run, shelf = run_of("unrendered"), Book()
    loops = Version(
        [{"role": "user", "content": f"{MARK}{{% for x in xs %}}[{{{{ x }}}}]{{% endfor %}}"}],
        by_hand=lambda v: [MARK + "".join(f"[{x}]" for x in v["xs"])],
    )
    slug = shelf.add(run_of("loops"), loops)
    prompts.make(shelf)
    prompts.create(twice := run_of("twice"), Version([{"role": "user", "content": "{{t}}" * 3}]))
    prompts.create(slow := run_of("slow"), _HOSTILE)
    good = [prompt_line(f"{run}-good-{n}", slug, {"xs": ["a", n]}) for n in range(5)]
    bad = [
        prompt_line(f"{run}-too-long", slow, _TOO_LONG),
        prompt_line(f"{run}-not-a-list", slug, {"xs": 7}),
        prompt_line(f"{run}-too-large", twice, {"t": "x" * 1_500_000}),
    ]
    lines = good[:3] + bad + good[3:]
    ended = wait_for_end(client, submit_mixed(client, lines).id, within_s=60)
    assert ended.status == "completed", ended.errors
    results = results_of(client, ended)
    check_conservation(ended, results, lines)
    assert error_codes(results) == {
        f"{run}-too-long": "prompt_render_timeout",
        f"{run}-not-a-list": "prompt_render_failed",
        f"{run}-too-large": "prompt_too_large",
    }
    check_bodies(world.recorded, shelf, good, f"{run}-good")
    assert world.recorded.by_key(f"{run}-not") == world.recorded.by_key(f"{run}-too") == {}


def test_no_log_metric_or_dead_letter_header_has_anything_of_all_this(world: PromptWorld) -> None:
    """The last test of this module: it looks at what all the others left behind."""
    for topic in (BATCH_COMMAND, PROMPT):
        send_garbage(world, topic.name, MARK.encode())
    eventually_sync(lambda: dead_letters(world), 30, "a record that nobody can read is buried")
    with world.client() as client:
        batch = submit_mixed(client, [prompt_line("last", "summarize", {}, prompt_version=2)])
        assert wait_for_end(client, batch.id, within_s=60).status == "failed"
    assert leaks(world) == []
