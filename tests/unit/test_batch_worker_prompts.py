"""Lines that name a stored prompt, from the slice to the body that the upstream gets."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from schemas.records import ClaimCheck, OutcomeKind, ReadyLine
from streams.adapters.inference_fake import Hang, Reply
from streams.domain.clock import SystemClock
from streams.domain.prompts import template as prompt_template
from streams.domain.prompts.pins import Pin
from streams.domain.prompts.template import RenderFailed, RenderTimeout, RenderTooLarge
from streams.rendering.renderer import RendererStoppedError
from tests.support.prompts import Book, book, mixed_jsonl, mixed_lines, responses_lines
from tests.support.worker_bench import CHAT, Bench, lines, until
from tests.support.worker_prompts import PLAIN, SYSTEM, ask, pin, planned, prompt_raw, ran, user

RESPONSES = "/v1/responses"


async def test_a_prompt_line_becomes_the_request_that_its_author_wrote() -> None:
    bench = Bench()
    pins = await planned(bench, PLAIN)
    text = 'First "document"…\nline {{two}} \\ \u0001 \U0001f600'
    await ran(bench, ask(variables={"text": text, "unused": [1]}), pins=pins)
    assert bench.bodies() == [
        {
            "model": "small",
            "temperature": 0.5,
            "messages": [SYSTEM, user(f"Sum up: {text}")],
        }
    ]
    (outcome,) = bench.outcomes
    assert (outcome.kind, outcome.model) == (OutcomeKind.COMPLETED, "small")
    assert json.loads(outcome.rendered or b"")["custom_id"] == "c0"


async def test_fields_of_the_line_override_those_of_the_version() -> None:
    bench = Bench()
    pins = await planned(bench, PLAIN)
    line = ask(model="large", temperature=1, top_p=0.1, prompt_version=1, variables={"text": 7})
    await ran(bench, line, pins=pins)
    assert bench.bodies() == [
        {
            "model": "large",
            "temperature": 1,
            "top_p": 0.1,
            "messages": [SYSTEM, user("Sum up: 7")],
        }
    ]
    assert bench.outcomes[0].model == "large"


async def test_literal_lines_and_lines_of_several_versions_share_a_slice() -> None:
    bench = Bench()
    pins = await planned(bench, PLAIN, pin(user("Bonjour {{ name }}"), model="french"))
    items = [
        *lines(0),
        ask(1, 2, prompt_version=2, variables={"name": "Ada"}),
        ask(2, 1, variables={"text": {"a": [1, True, "é"]}}),
        *lines(3),
    ]
    await ran(bench, *items, pins=pins)
    bodies = sorted(bench.bodies(), key=json.dumps)
    assert bodies == sorted(
        [
            {"model": "m", "n": 0},
            {"model": "french", "messages": [user("Bonjour Ada")]},
            {
                "model": "small",
                "temperature": 0.5,
                "messages": [SYSTEM, user('Sum up: {"a": [1, true, "é"]}')],
            },
            {"model": "m", "n": 3},
        ],
        key=json.dumps,
    )
    assert sorted((o.line, o.model) for o in bench.outcomes) == [
        (0, "m"),
        (1, "french"),
        (2, "small"),
        (3, "m"),
    ]


@pytest.mark.parametrize("seed", range(3))
async def test_a_file_of_all_kinds_of_lines_becomes_what_the_rules_say(seed: int) -> None:
    rng = random.Random(seed)
    prompts = book()
    styled = prompts.versions["styled"][0].by_hand
    assert styled is not None
    for endpoint, made in ((CHAT, mixed_lines), (RESPONSES, responses_lines)):
        bench = Bench(limit=16)
        # Its first text is plain, the second one goes to the renderer.
        bench.renderer.answer = lambda variables: styled(variables)[1:]
        asked = made("r", 132, rng)
        versions = list(prompts.pins(asked))
        pins = await planned(bench, *(stored(slug, n, prompts) for slug, n in versions))
        items = []
        for number, raw in enumerate(mixed_jsonl(asked).splitlines()):
            version = prompts.pin_of(asked[number])
            at = versions.index(version) + 1 if version else 0
            items.append(ReadyLine(line=number, attempt=1, raw=raw, pin=at))
        await ran(bench, *items, pins=pins, endpoint=endpoint)
        got = {key_of(body): body for body in bench.bodies()}
        assert got == {line["custom_id"]: prompts.body(line) for line in asked}
        assert {o.kind for o in bench.outcomes} == {OutcomeKind.COMPLETED}


def stored(slug: str, number: int, prompts: Book) -> Pin:
    """A version as the registry stores it."""
    version = prompts.versions[slug][number - 1]
    messages, config = version.messages, version.model_config
    return Pin(slug, number, json.dumps(messages).encode(), json.dumps(config).encode())


def key_of(body: Any) -> str:
    """The custom id of the line that a body was made of."""
    return str(body["user"])


async def test_a_batch_without_prompts_reads_no_pins() -> None:
    bench = Bench()
    await ran(bench, *lines(0, 1))
    assert (bench.store.most_reads, len(bench.cache)) == (0, 0)


@pytest.mark.parametrize(
    "body",
    [
        {"prompt_slug": "summarize", "variables": {"text": "x"}},
        {"prompt": {"id": "summarize", "version": "1", "variables": {"text": "x"}}},
        {"prompt": {"id": "s", "variables": {"text": {"type": "input_text", "text": "x"}}}},
    ],
)
async def test_both_forms_work_on_responses(body: dict[str, Any]) -> None:
    bench = Bench()
    pins = await planned(bench, PLAIN)
    line = ReadyLine(line=0, attempt=1, raw=prompt_raw(0, body), pin=1)
    await ran(bench, line, pins=pins, endpoint=RESPONSES)
    expected = [SYSTEM, user("Sum up: x")]
    assert bench.bodies() == [{"model": "small", "temperature": 0.5, "input": expected}]
    assert bench.clients["a"].requests[0][0] == RESPONSES


@pytest.mark.parametrize("own", [{"model": "alias"}, {"model": None}, {}])
async def test_the_upstreams_name_of_a_prompts_model_stands_in_the_body(own: Any) -> None:
    bench = Bench()
    pins = await planned(bench, pin(user("Hi"), model="alias"))
    await ran(bench, ask(**own), pins=pins)
    assert bench.bodies() == [{"model": "real", "messages": [user("Hi")]}]
    assert bench.outcomes[0].model == "alias"


async def test_a_line_that_overrides_a_renamed_model_keeps_its_own() -> None:
    bench = Bench()
    pins = await planned(bench, pin(user("Hi"), model="alias"))
    await ran(bench, ask(model="m"), pins=pins)
    assert bench.bodies() == [{"model": "m", "messages": [user("Hi")]}]


async def test_a_large_prompt_line_is_read_by_its_claim_check() -> None:
    bench = Bench()
    pins = await planned(bench, PLAIN)
    text = "x" * 300_000
    raw = ask(variables={"text": text}).raw or b""
    await bench.store.put("files/t/f", b"--" + raw)
    claim = ClaimCheck(key="files/t/f", offset=2, length=len(raw))
    await ran(bench, ReadyLine(line=0, attempt=1, claim=claim, pin=1), pins=pins)
    assert bench.bodies()[0]["messages"][1] == user(f"Sum up: {text}")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'{"custom_id":1,"body":{"prompt_slug":"s"}}',
        b'{"custom_id":"c","body":[]}',
        b'{"custom_id":"c","body":{"prompt_slug":"s","variables":[]}}',
        b'{"custom_id":"c","body":{"prompt_slug":"s","model":1}}',
        b'{"custom_id":"c","body":{"prompt":7}}',
    ],
)
async def test_a_prompt_line_that_can_not_be_read_back_fails_for_good(raw: bytes) -> None:
    bench = Bench()
    pins = await planned(bench, pin(user("Hi"), model="m"))
    line = ReadyLine(line=0, attempt=1, raw=raw, pin=1)
    await ran(bench, line, pins=pins, endpoint=RESPONSES)
    assert [(o.kind, o.reason) for o in bench.outcomes] == [(OutcomeKind.FAILED, "input_lost")]
    assert bench.requests() == 0


# What is not plain goes through the renderer.

SANDBOXED = pin(
    user("{% if long %}Long{% endif %} {{text}}"), user("{{ text|upper }}"), SYSTEM, model="small"
)


async def test_texts_that_are_not_plain_are_rendered_apart_and_put_in_place() -> None:
    bench = Bench()
    pins = await planned(bench, SANDBOXED)
    bench.renderer.answer = lambda _variables: ['Long "doc"\n', "DOC"]
    await ran(bench, ask(variables={"text": "doc", "long": True}), pins=pins)
    sources, variables, fair_key = bench.renderer.asked[0]
    assert sources == ("{% if long %}Long{% endif %} {{text}}", "{{ text|upper }}")
    assert (variables, fair_key) == ({"text": "doc", "long": True}, "b1")
    messages = [user('Long "doc"\n'), user("DOC"), SYSTEM]
    assert bench.bodies() == [{"model": "small", "messages": messages}]


async def test_the_renderer_gets_plain_texts_from_typed_ones() -> None:
    bench = Bench()
    pins = await planned(bench, SANDBOXED)
    bench.renderer.answer = lambda _variables: ["a", "b"]
    text = {"type": "input_text", "text": "doc"}
    body = {"prompt": {"id": "s", "variables": {"text": text, "long": 0}}}
    line = ReadyLine(line=0, attempt=1, raw=prompt_raw(0, body), pin=1)
    await ran(bench, line, pins=pins, endpoint=RESPONSES)
    assert bench.renderer.asked[0][1] == {"text": "doc", "long": 0}


@pytest.mark.parametrize(
    ("error", "reason", "code"),
    [
        (RenderFailed(), "prompt_failed", "prompt_render_failed"),
        (RenderTimeout(), "prompt_timeout", "prompt_render_timeout"),
        (RenderTooLarge(), "prompt_too_large", "prompt_too_large"),
    ],
)
async def test_a_line_that_does_not_render_fails_for_good_with_its_custom_id(
    error: Exception, reason: str, code: str
) -> None:
    bench = Bench()
    pins = await planned(bench, SANDBOXED)
    bench.renderer.error = error
    await ran(bench, ask(variables={"text": "secret", "long": 1}), pins=pins)
    (outcome,) = bench.outcomes
    assert (outcome.kind, outcome.reason) == (OutcomeKind.FAILED, reason)
    assert outcome.model == "small"
    rendered = json.loads(outcome.rendered or b"")
    assert (rendered["custom_id"], rendered["response"]) == ("c0", None)
    assert rendered["error"]["code"] == code
    assert "secret" not in str(rendered)
    assert bench.requests() == 0


async def test_a_plain_prompt_that_becomes_too_large_fails_for_good() -> None:
    bench = Bench()
    times = prompt_template.MAX_RENDERED_BYTES // 100_000 + 1
    pins = await planned(bench, pin(user("{{text}}" * times), model="small"))
    await ran(bench, ask(variables={"text": "x" * 100_000}), pins=pins)
    assert [(o.kind, o.reason) for o in bench.outcomes] == [
        (OutcomeKind.FAILED, "prompt_too_large")
    ]


@pytest.mark.parametrize("variables", [{}, {"text": None}])
async def test_a_variable_that_is_missing_after_all_fails_its_line(variables: Any) -> None:
    bench = Bench()
    pins = await planned(bench, PLAIN)
    await ran(bench, ask(variables=variables), *lines(1), pins=pins)
    assert sorted((o.line, o.reason) for o in bench.outcomes) == [(0, "prompt_failed"), (1, "")]


async def test_a_line_that_waits_for_its_rendering_holds_up_no_other() -> None:
    bench = Bench()
    pins = await planned(bench, SANDBOXED, PLAIN)
    bench.renderer.gate.clear()
    bench.take(ask(0, variables={"text": "slow", "long": 1}), pins=pins, offset=1)
    await until(lambda: bench.renderer.asked)
    bench.take(ask(1, 2, variables={"text": "fast"}), *lines(2), pins=pins, offset=2)
    await until(lambda: bench.finished == [2])
    assert bench.held() == 1
    bench.renderer.answer = lambda _variables: ["a", "b"]
    bench.renderer.gate.set()
    await until(lambda: bench.finished == [2, 1])


async def test_the_end_of_a_batch_cuts_a_line_that_waits_for_its_rendering() -> None:
    bench = Bench()
    pins = await planned(bench, SANDBOXED)
    bench.renderer.gate.clear()
    bench.take(ask(variables={"text": "x", "long": 1}), pins=pins)
    await until(lambda: bench.renderer.asked)
    bench.worker.end("b1")
    await until(lambda: bench.worker.pools["a"].running == 0)
    assert (bench.finished, bench.sent, bench.held()) == ([0], [], 0)


async def test_a_line_whose_window_ends_while_it_is_rendered_is_not_sent() -> None:
    bench = Bench()
    pins = await planned(bench, SANDBOXED)
    bench.renderer.gate.clear()
    soon_ms = SystemClock().now_ms() + 150
    bench.take(ask(variables={"text": "x", "long": 1}), pins=pins, deadline_ms=soon_ms)
    await until(lambda: bench.renderer.asked)
    await until(lambda: SystemClock().now_ms() > soon_ms)
    bench.renderer.answer = lambda _variables: ["a", "b"]
    bench.renderer.gate.set()
    await until(lambda: bench.finished)
    assert (bench.requests(), bench.sent) == (0, [])


async def test_a_line_that_was_not_rendered_because_the_worker_stops_stays_unfinished() -> None:
    bench = Bench()
    pins = await planned(bench, SANDBOXED)
    bench.renderer.error = RendererStoppedError()
    bench.take(ask(variables={"text": "x", "long": 1}), pins=pins)
    await until(lambda: bench.renderer.asked)
    await until(lambda: bench.worker.pools["a"].running == 0)
    assert (bench.finished, bench.sent) == ([], [])


async def test_a_prompt_line_delivered_again_joins_the_one_that_is_rendered() -> None:
    bench = Bench()
    pins = await planned(bench, SANDBOXED)
    bench.renderer.gate.clear()
    line = ask(variables={"text": "x", "long": 1})
    bench.take(line, pins=pins, offset=1)
    await until(lambda: bench.renderer.asked)
    bench.take(line, pins=pins, offset=2)
    bench.renderer.answer = lambda _variables: ["a", "b"]
    bench.renderer.gate.set()
    await until(lambda: len(bench.finished) == 2)
    assert (len(bench.renderer.asked), bench.requests(), len(bench.outcomes)) == (1, 1, 1)


async def test_no_text_of_a_prompt_is_ever_logged(capfd: pytest.CaptureFixture[str]) -> None:
    bench = Bench(a=lambda _p, _b: Reply(status=500))
    secret = pin(user("hush {{text}}"), model="small")
    pins = await planned(bench, secret, Pin("s", 1, b'[{"hush": 1}]', b"{}"))
    bench.store.fail(1, "get_range")
    items = [
        ask(0, 1, variables={"text": "hush"}),
        ask(1, 1, variables={}),
        ask(2, 2, variables={"text": "hush"}),
    ]
    await ran(bench, *items, pins=pins)
    out, err = capfd.readouterr()
    assert "hush" not in out + err
    assert "store_failed" in out + err


async def test_a_fault_while_rendering_is_a_failed_attempt_and_not_a_dead_worker() -> None:
    bench = Bench(a=lambda _p, _b: Hang())
    pins = await planned(bench, SANDBOXED)
    bench.renderer.error = ZeroDivisionError()
    await ran(bench, ask(variables={"text": "x", "long": 1}), pins=pins)
    assert [o.kind for o in bench.outcomes] == [OutcomeKind.RETRY]
