"""Lines that name a stored prompt are accepted with their pins, which the plan holds."""

from __future__ import annotations

import json
import tracemalloc
from functools import partial
from typing import Any

import pytest
from msgspec import Raw

from schemas.records import PinnedPrompt
from streams.domain.intake import prompts as intake_prompts
from streams.domain.intake.intake import Accepted, Intake, Refused, Rules
from streams.domain.prompts.pins import MAX_PINS
from streams.domain.prompts.prompt import compile_prompt
from tests.support import intake_files as files


def test_lines_with_prompts_and_with_messages_mix_and_the_plan_holds_what_they_use() -> None:
    verdict = files.accepted(
        files.line(1, prompt_slug="greet", variables={"name": "A", "tone": "warm"}),
        files.literal(2),
        files.line(3, prompt_slug="greet", prompt_version=1, variables={"name": "B"}),
        files.line(4, prompt_slug="greet", variables={"name": "C", "tone": "cold"}),
        files.line(5, model=files.GONE, prompt_slug="chatty", variables={"text": "x"}),
        files.literal(6, model="other"),
    )
    assert files.row_pins(verdict) == [1, 0, 2, 1, 3, 0]
    assert [(pin.slug, pin.version) for pin in files.pins(verdict)] == [
        ("greet", 2),
        ("greet", 1),
        ("chatty", 1),
    ]
    assert json.loads(files.pins(verdict)[1].messages) == [
        {"role": "user", "content": "Hi {{name}}"}
    ]
    assert json.loads(files.pins(verdict)[2].model_config) == {"model": "other", "temperature": 0}
    assert verdict.prompts == (
        PinnedPrompt(slug="greet", version=2, lines=2),
        PinnedPrompt(slug="greet", version=1, lines=1),
        PinnedPrompt(slug="chatty", version=1, lines=1),
    )
    assert verdict.models == ("m", "other")


def test_a_file_without_prompts_has_no_pins() -> None:
    verdict = files.accepted(files.literal(1))
    assert (verdict.prompts, files.pins(verdict), verdict.unused_variables) == ((), (), 0)


def test_the_published_version_named_by_its_number_is_the_same_pin() -> None:
    given = {"name": "A", "tone": "x"}
    verdict = files.accepted(
        files.line(1, prompt_slug="greet", variables=given),
        files.line(2, prompt_slug="greet", prompt_version=2, variables=given),
    )
    assert files.row_pins(verdict) == [1, 1]
    assert verdict.prompts == (PinnedPrompt(slug="greet", version=2, lines=2),)


def test_a_template_may_handle_null() -> None:
    assert files.accepted(files.line(1, prompt_slug="maybe", variables={"name": None})).total == 1


def test_the_model_that_counts_must_be_served() -> None:
    lines = [
        files.line(1, model=files.GONE, prompt_slug="elsewhere"),
        files.line(2, model="m", prompt_slug="elsewhere"),
        files.line(3, model="gpt-8", prompt_slug="chatty", variables={"text": ""}),
        files.line(4, model=None, prompt_slug="chatty", variables={"text": ""}),
    ]
    assert files.errors_of(*lines) == [
        ("model_not_found", 1, "body.model"),
        ("model_not_found", 3, "body.model"),
    ]


@pytest.mark.parametrize("stream", [True, 1, "false"])
def test_a_prompt_line_can_not_stream_either(stream: object) -> None:
    assert files.errors_of(files.line(prompt_slug="plain", stream=stream)) == [
        ("streaming_unsupported", 1, "body.stream")
    ]


def test_a_repeated_custom_id_is_found_between_both_kinds_of_line() -> None:
    lines = [
        files.line("a", prompt_slug="plain"),
        files.literal("a"),
        files.line("a", prompt_slug="plain"),
    ]
    assert files.errors_of(*lines) == [
        ("duplicate_custom_id", 2, "custom_id"),
        ("duplicate_custom_id", 3, "custom_id"),
    ]


@pytest.mark.parametrize("slug", [None, files.GONE])
@pytest.mark.parametrize("value", [5, "x", [1], {"a": None}, None])
def test_without_a_slug_the_other_fields_are_the_upstreams_business(
    slug: object, value: object
) -> None:
    body = {"prompt_slug": slug, "prompt_version": value, "variables": value, "prompt": value}
    verdict = files.accepted(
        files.literal(1, **body), files.line(2, prompt_slug="plain"), files.literal(3, **body)
    )
    assert files.row_pins(verdict) == [0, 1, 0]


def test_a_version_in_digits_may_be_escaped_like_any_text() -> None:
    form = {"id": "greet", "version": "1", "variables": {"name": "A"}}
    lines = [
        files.line(n, url=files.RESPONSES, prompt=form).replace(b'"1"', b'"\\u0031"')
        for n in range(2)
    ]
    assert files.row_pins(files.accepted(*lines, endpoint=files.RESPONSES)) == [1, 1]


@pytest.mark.parametrize(
    "body",
    [
        {"prompt_slug": "greet", "variables": {"name": "A", "tone": "x"}},
        {"prompt_slug": "greet", "prompt_version": 2, "variables": {"name": "A", "tone": "x"}},
        {"prompt": {"id": "greet", "variables": {"name": "A", "tone": "x"}}},
        {"prompt": {"id": "greet", "version": "2", "variables": {"name": "A", "tone": "x"}}},
        {"prompt": {"id": "greet", "version": 2, "variables": {"name": "A", "tone": ["x"]}}},
        {
            "prompt": {
                "id": "greet",
                "variables": {"name": {"type": "input_text", "text": "A"}, "tone": {"a": 1}},
            }
        },
    ],
)
def test_responses_take_both_forms(body: dict[str, Any]) -> None:
    lines = [
        files.line(n, url=files.RESPONSES, **one)
        for n, one in enumerate([{"input": "x"}, body, body, body])
    ]
    verdict = files.accepted(*lines, endpoint=files.RESPONSES)
    assert files.row_pins(verdict) == [0, 1, 1, 1]
    assert verdict.prompts == (PinnedPrompt(slug="greet", version=2, lines=3),)


def test_the_prompt_of_a_completions_line_is_its_text() -> None:
    url = "/v1/completions"
    lines = [
        files.line(n, url=url, prompt=p) for n, p in enumerate(["plain", {"id": "plain"}, ["a"]])
    ]
    assert files.row_pins(files.accepted(*lines, endpoint=url)) == [0, 0, 0]


def test_a_model_of_null_is_left_to_the_prompt_at_intake_and_when_it_is_rendered() -> None:
    line = files.line(1, model=None, prompt_slug="chatty", variables={"text": ""})
    verdict = files.accepted(line)
    assert verdict.models == ("other",)
    (pin,) = files.pins(verdict)
    fields = {"model": Raw(b"null"), "temperature": Raw(b"null")}
    made = compile_prompt(pin.messages, pin.model_config).body(
        files.CHAT, fields, {"text": Raw(b'""')}
    )
    body = json.loads(made)
    assert (body["model"], body["temperature"]) == ("other", None)


def test_a_file_sees_one_state_of_each_prompt_while_others_are_published() -> None:
    prompts = files.book()
    intake = files.intake(prompts)
    given = {"name": "A", "tone": "x"}
    intake.feed(files.line(1, prompt_slug="greet", variables=given) + b"\n")
    intake.feed(files.line(2, prompt_slug="greet", prompt_version=1, variables=given) + b"\n")
    prompts.write("greet", {2: "Dear {{name}}, {{tone}}", 3: "{{more}}"}, published=3)
    intake.feed(files.line(3, prompt_slug="greet", variables=given) + b"\n")
    intake.feed(files.line(4, prompt_slug="greet", prompt_version=1, variables=given) + b"\n")
    prompts.write("greet", {}, published=None)
    intake.feed(files.line(5, prompt_slug="greet", variables=given) + b"\n")
    verdict = intake.finish()
    assert isinstance(verdict, Accepted)
    assert files.row_pins(verdict) == [1, 2, 1, 2, 1]
    assert [json.loads(pin.messages)[0]["content"] for pin in files.pins(verdict)] == [
        "Dear {{name}}, {{tone}}",
        "Hi {{name}}",
    ]


def test_another_tenants_prompts_are_unknown() -> None:
    registry = files.book().registry
    rules = {"prompts": partial(registry.resolve, "u"), "serves": files.MODELS.__contains__}
    intake = Intake(Rules(endpoint=files.CHAT, **rules))  # type: ignore[arg-type]
    intake.feed(files.line(prompt_slug="plain"))
    verdict = intake.finish()
    assert isinstance(verdict, Refused)
    assert verdict.errors[0].param == "body.prompt_slug"


def test_lines_with_variables_that_nothing_reads_are_counted() -> None:
    lines = [
        files.line(
            1, prompt_slug="greet", variables={"name": "A", "tone": "x", "more": 1, "and": 2}
        ),
        files.line(2, prompt_slug="greet", variables={"name": "A", "tone": "x"}),
        files.line(3, prompt_slug="plain", variables={"any": None}),
        files.line(4, prompt_slug="plain", variables={}),
        files.line(5, prompt_slug="plain"),
        files.line(6, prompt_slug="greet", prompt_version=1, variables={"name": "A", "tone": "x"}),
        files.literal(7, variables={"name": "A"}),
    ]
    assert files.accepted(*lines).unused_variables == 3


def test_each_lines_prompt_counts_as_input() -> None:
    lines = [files.line(n, prompt_slug="plain") for n in range(3)]
    verdict = files.accepted(*lines)
    (pin,) = files.pins(verdict)
    expected = sum(map(len, lines)) + 3 * (len(pin.messages) + len(pin.model_config))
    assert verdict.estimated_input_tokens == -(-expected // 4)


def test_a_version_that_can_not_be_compiled_is_named_and_tried_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts = files.book()
    prompts.write("broken", {1: "{% macro x() %}"}, published=1)
    compiled = []
    original = compile_prompt

    def counting(messages: bytes, config: bytes) -> Any:
        compiled.append(messages)
        return original(messages, config)

    monkeypatch.setattr(intake_prompts, "compile_prompt", counting)
    intake = files.intake(prompts)
    lines = [files.line(n, prompt_slug="broken", prompt_version=[None, 1][n % 2]) for n in range(6)]
    intake.feed(b"\n".join(lines))
    verdict = intake.finish()
    assert isinstance(verdict, Refused)
    assert [(e.line, e.param) for e in verdict.errors] == [
        (n, "body.prompt_slug") for n in range(1, 7)
    ]
    assert verdict.errors[0].message.startswith("Prompt 'broken' version 1 is not valid: ")
    assert len(compiled) == 1


def test_a_file_may_use_many_versions_but_not_any_number() -> None:
    prompts = files.PromptBook()
    for n in range(MAX_PINS + 1):
        prompts.write(f"p{n}", {1: f"text {n}"}, published=1)
    lines = [files.line(n, prompt_slug=f"p{n}") for n in range(MAX_PINS + 1)]
    intake = files.intake(prompts)
    intake.feed(b"\n".join(lines[:-1]) + b"\n" + files.line("again", prompt_slug="p0"))
    verdict = intake.finish()
    assert isinstance(verdict, Accepted)
    assert len(files.pins(verdict)) == MAX_PINS
    intake = files.intake(prompts)
    intake.feed(b"\n".join(lines))
    refused = intake.finish()
    assert isinstance(refused, Refused)
    assert [(e.line, e.param) for e in refused.errors] == [(MAX_PINS + 1, "body.prompt_slug")]


def test_the_prompts_of_a_file_have_a_size_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_prompts, "MAX_PINS_BYTES", 100)
    prompts = files.PromptBook()
    for n in range(3):
        prompts.write(f"p{n}", {1: "x" * 10}, published=1)
    lines = [files.line(n, prompt_slug=f"p{n}") for n in range(3)]
    intake = files.intake(prompts)
    intake.feed(b"\n".join(lines))
    verdict = intake.finish()
    assert isinstance(verdict, Refused)
    assert [(e.line, e.param) for e in verdict.errors] == [(3, "body.prompt_slug")]
    assert "100 bytes" in verdict.errors[0].message


def test_each_new_version_ends_a_step_so_that_others_may_have_the_loop() -> None:
    lines = [
        files.line(1, prompt_slug="plain"),
        files.line(2, prompt_slug="chatty", variables={"text": ""}),
        files.line(3, prompt_slug="plain", prompt_version=1),
        files.line(4, prompt_slug="plain"),
        files.literal(5),
    ]
    assert len(list(files.intake().steps(b"\n".join([*lines, b""])))) == 2


def test_a_hostile_object_of_variables_costs_bounded_memory() -> None:
    line = files.line(prompt_slug="plain", variables={"X": 0})
    line = line.replace(b'"X": 0', b",".join(b'"%x":0' % n for n in range(420_000)))
    intake = files.intake()
    intake.feed(files.line("a", prompt_slug="plain") + b"\n")
    tracemalloc.start()
    intake.feed(line + b"\n")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120 << 20
    assert isinstance(intake.finish(), Accepted)
