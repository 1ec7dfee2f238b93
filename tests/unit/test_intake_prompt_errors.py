"""What is wrong with a line that names a stored prompt is said with its line and parameter."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from streams.domain.intake.intake import Accepted, Refused
from streams.domain.intake.lines import ENDPOINTS
from tests.support import intake_files as files


@pytest.mark.parametrize(
    ("changes", "param", "message"),
    [
        ({"prompt_slug": "nope"}, "prompt_slug", "No prompt found with slug 'nope'."),
        ({"prompt_slug": "gone"}, "prompt_slug", "No prompt found with slug 'gone'."),
        (
            {"prompt_slug": "draft"},
            "prompt_slug",
            "Prompt 'draft' has no published version: publish one, or name a version.",
        ),
        ({"prompt_version": 9}, "prompt_version", "Prompt 'greet' has no version 9."),
        ({"variables": {"tone": "x"}}, "variables.name", None),
        ({"variables": None}, "variables.name", None),
        ({"variables": files.GONE}, "variables.name", None),
        ({"variables": {"name": None, "tone": "x"}}, "variables.name", None),
        ({"variables": ["name"]}, "variables", None),
        ({"variables": "name"}, "variables", None),
        ({"prompt_slug": 7}, "prompt_slug", None),
        ({"prompt_slug": ""}, "prompt_slug", None),
        ({"prompt_slug": "a/b"}, "prompt_slug", None),
        ({"prompt_slug": "x" * 129}, "prompt_slug", None),
        ({"prompt_version": 0}, "prompt_version", None),
        ({"prompt_version": -1}, "prompt_version", None),
        ({"prompt_version": "1"}, "prompt_version", None),
        ({"prompt_version": 1.0}, "prompt_version", None),
        ({"prompt_version": True}, "prompt_version", None),
        ({"prompt_version": 10**30}, "prompt_version", None),
        ({"messages": []}, "messages", None),
        ({"model": ""}, "model", "Model parameter is required."),
        ({"model": files.GONE}, "model", "Model parameter is required."),
        ({"model": None}, "model", "Model parameter is required."),
        ({"model": 5}, "model", None),
    ],
)
def test_what_is_wrong_with_a_prompt_line_is_named(
    changes: dict[str, Any], param: str, message: str | None
) -> None:
    good: dict[str, Any] = {"prompt_slug": "greet", "variables": {"name": "A", "tone": "x"}}
    assert isinstance(files.check(files.line(**good)), Accepted)
    found = files.refusal(files.line(**(good | changes)))
    assert found[0] == f"body.{param}"
    assert message in (None, found[1])


def test_a_missing_variable_is_named_with_its_prompt() -> None:
    _, missing = files.refusal(files.line(prompt_slug="greet", variables={"name": "A"}))
    assert missing == "Missing variable 'tone' of prompt 'greet' version 2."
    _, null = files.refusal(files.line(prompt_slug="greet", variables={"name": None, "tone": "x"}))
    assert null == "Null is not possible for variable 'name' of prompt 'greet' version 2."


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": {"id": "nope"}}, "prompt.id"),
        ({"prompt": {"id": "draft"}}, "prompt.id"),
        ({"prompt": {}}, "prompt.id"),
        ({"prompt": {"id": 7}}, "prompt.id"),
        ({"prompt": {"id": "greet", "version": "9"}}, "prompt.version"),
        ({"prompt": {"id": "greet", "version": "02"}}, "prompt.version"),
        ({"prompt": {"id": "greet", "version": "latest"}}, "prompt.version"),
        ({"prompt": {"id": "greet", "version": 0}}, "prompt.version"),
        ({"prompt": {"id": "greet", "variables": []}}, "prompt.variables"),
        ({"prompt": {"id": "greet", "variables": {"tone": ""}}}, "prompt.variables.name"),
        (
            {"prompt": {"id": "greet", "variables": {"name": None, "tone": ""}}},
            "prompt.variables.name",
        ),
        (
            {"prompt": {"id": "greet", "variables": {"name": {"type": "input_image"}, "tone": 1}}},
            "prompt.variables.name",
        ),
        ({"prompt": "greet"}, "prompt"),
        ({"prompt": {"id": "plain"}, "input": "x"}, "input"),
        ({"prompt_slug": "plain", "input": "x"}, "input"),
        ({"prompt": {"id": "plain"}, "prompt_slug": "plain"}, "prompt_slug"),
        ({"prompt": None, "prompt_slug": "nope"}, "prompt_slug"),
    ],
)
def test_what_is_wrong_on_responses_is_named_in_the_form_that_was_used(
    body: dict[str, Any], param: str
) -> None:
    found, _ = files.refusal(files.line(url=files.RESPONSES, **body), endpoint=files.RESPONSES)
    assert found == f"body.{param}"


@pytest.mark.parametrize("url", ["/v1/embeddings", "/v1/completions"])
def test_other_endpoints_take_no_prompts(url: str) -> None:
    needed = ENDPOINTS[url].needed
    for body in ({}, {needed: "x"}):
        param, message = files.refusal(
            files.line(url=url, prompt_slug="plain", **body), endpoint=url
        )
        assert param == "body.prompt_slug"
        assert message == "Stored prompts are not available on this endpoint."
    others: dict[str, Any] = {needed: "x", "prompt_slug": None, "variables": 7}
    assert files.accepted(files.line(url=url, **others), endpoint=url).total == 1


@pytest.mark.parametrize(
    "value",
    [
        rb'"\ud800"',
        rb'"\udc00 and more"',
        rb'["\ud83d"]',
        rb'{"\ud83d": 1}',
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'"a\x00b"',
        rb'"\x41"',
        b"NaN",
        b"[-Infinity]",
        b"01",
        b"1.",
        b"[1,]",
        b"tru",
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
    ],
)
def test_the_json_of_variables_is_as_strict_as_that_of_messages(value: bytes) -> None:
    literal = files.literal().replace(b'"hello"', value)
    assert files.errors_of(literal) == [("invalid_json_line", 1, None)]
    for name in ("name", "more"):
        good = files.line(prompt_slug="greet", variables={"name": "", "tone": "", name: "X"})
        bad = good.replace(b'"X"', value)
        assert files.errors_of(bad) == [("invalid_json_line", 1, None)]
        assert files.errors_of(files.line("a", prompt_slug="plain"), bad) == [
            ("invalid_json_line", 2, None)
        ]


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        (b"1e999", False),
        (b"-1E+999", False),
        (b'[0, {"a": 1e400}]', False),
        (b"1" * 4301, False),
        (b"-" + b"1" * 4301, False),
        (b"1" * 400 + b".5", False),
        (b'["\\"1e999", 1e999]', False),
        (b"1e308", True),
        (b"1" * 4300, True),
        (b"-" + b"1" * 4300, True),
        (b"0." + b"1" * 5000, True),
        (b'"1e999"', True),
        (b'["1e999", "\\"1e999\\\\", "' + b"1" * 9000 + b'"]', True),
        (b"true", True),
        ('{"é": ["日本", 1.5e3, null]}'.encode(), True),
    ],
)
def test_a_number_that_can_not_be_written_out_is_refused_before_any_line_runs(
    value: bytes, fits: bool
) -> None:
    line = files.line("x", prompt_slug="greet", variables={"name": "X", "tone": ""})
    line = line.replace(b'"X"', value)
    if fits:
        assert files.accepted(line).total == 1
        json.loads(value)
    else:
        param, message = files.refusal(line)
        assert param == "body.variables.name"
        assert message == "A number is too large in variable 'name' of prompt 'greet' version 2."
    unread = files.line(prompt_slug="plain", variables={"name": "X"}).replace(b'"X"', value)
    assert files.accepted(unread).unused_variables == 1


def test_what_callers_sent_is_cut_in_errors() -> None:
    name = "n" * 100_000
    image = {"id": "plain", "variables": {name: {"type": "input_image"}}}
    lines = [
        files.line(1, url=files.RESPONSES, prompt=image),
        files.line(2, url=files.RESPONSES, prompt_slug=name),
    ]
    verdict = files.check(b"\n".join(lines), endpoint=files.RESPONSES)
    assert isinstance(verdict, Refused)
    assert len(verdict.errors) == 2
    assert len(msgspec.json.encode(verdict.errors)) < 2000
