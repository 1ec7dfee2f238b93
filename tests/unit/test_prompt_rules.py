"""Rendered bodies against an independent rendering: lines of every kind, and made-up ones."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from streams.domain.prompts.prompt import Prompt, compile_prompt
from streams.domain.prompts.request import prompt_use
from streams.domain.prompts.sandbox import Sandbox
from tests.support.prompt_api import exact
from tests.support.prompts import (
    CHAT,
    RESPONSES,
    Version,
    book,
    mixed_jsonl,
    mixed_lines,
    responses_lines,
)

BOOK = book()
SANDBOX = Sandbox()


class _Line(msgspec.Struct):
    body: dict[str, Raw]


def compiled(version: Version) -> Prompt:
    messages, config = json.dumps(version.messages), json.dumps(version.model_config)
    return compile_prompt(messages.encode(), config.encode())


def sent(prompt: Prompt, endpoint: str, line: bytes) -> Any:
    fields = msgspec.json.decode(line, type=_Line).body
    use = prompt_use(fields, endpoint)
    assert use is not None
    assert prompt.refusal(use.variables) is None
    values = {name: json.loads(bytes(raw)) for name, raw in use.variables.items()}
    texts = [json.dumps(SANDBOX.render(text, values)).encode() for text in prompt.sandboxed]
    return json.loads(prompt.body(endpoint, fields, use.variables, texts))


@pytest.mark.parametrize("endpoint", [CHAT, RESPONSES])
def test_lines_of_every_kind_become_what_the_rules_say(endpoint: str) -> None:
    make = mixed_lines if endpoint == CHAT else responses_lines
    lines = make("r", 1_000, random.Random(1))
    checked = 0
    for line, raw in zip(lines, mixed_jsonl(lines).split(b"\n"), strict=False):
        pin = BOOK.pin_of(line)
        if pin is None:
            continue
        prompt = compiled(BOOK.versions[pin[0]][pin[1] - 1])
        assert exact(sent(prompt, endpoint, raw)) == exact(BOOK.body(line))
        checked += 1
    assert checked > 700


def test_the_variables_of_each_version_are_known() -> None:
    for versions in BOOK.versions.values():
        for version in versions:
            assert compiled(version).variables == version.reads


_names = st.sampled_from(["a", "b", "c_1", "text"])
_values = st.recursive(
    st.text() | st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner | st.none()) | st.dictionaries(st.text(), inner | st.none()),
    max_leaves=5,
)
_template = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{}\r"))
    | st.sampled_from(["}}", "} }", "{ { ", '"', "\\"])
    | st.builds("{{{{{1}{0}{2}}}}}".format, _names, *[st.sampled_from(["", " ", "\t\n"])] * 2)
).map("".join)


@given(_template, st.fixed_dictionaries(dict.fromkeys(("a", "b", "c_1", "text"), _values)))
def test_any_plain_template_with_any_values(template: str, variables: dict[str, Any]) -> None:
    version = Version([{"role": "user", "content": template}], {"seed": 1})
    body = {"prompt_slug": "s", "variables": variables, "seed": 2}
    wanted = exact(version.body(CHAT, body))
    prompt = compiled(version)
    for ascii_only in (True, False):
        line = json.dumps({"body": body}, ensure_ascii=ascii_only).encode()
        assert exact(sent(prompt, CHAT, line)) == wanted
