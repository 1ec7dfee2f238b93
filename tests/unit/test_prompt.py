"""A stored prompt's version: what may be one, and the request bodies that it makes."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from streams.domain.prompts.prompt import Prompt, PromptError, VariableRefusal, compile_prompt
from streams.domain.prompts.template import (
    MAX_RENDERED_BYTES,
    MAX_SOURCE_BYTES,
    RenderFailed,
    RenderTooLarge,
)

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
_NO_CONFIG: dict[str, Any] = {}


def _compiled(messages: Any, config: Any = _NO_CONFIG) -> Prompt:
    return compile_prompt(json.dumps(messages).encode(), json.dumps(config).encode())


def _raws(values: dict[str, Any]) -> dict[str, Raw]:
    return msgspec.json.decode(json.dumps(values).encode(), type=dict[str, Raw])


def _body(
    prompt: Prompt,
    variables: dict[str, Any],
    fields: dict[str, Any] | None = None,
    endpoint: str = CHAT,
) -> Any:
    return json.loads(prompt.body(endpoint, _raws(fields or {}), _raws(variables)))


def test_placeholders_in_texts_and_text_parts_are_filled() -> None:
    prompt = _compiled(
        [
            {"role": "system", "content": 'Be "brief", {{ who }}.\n'},
            {
                "role": "user",
                "name": "{{who}} stays, for a name is no text",
                "content": [
                    {"type": "text", "text": "{{text}}"},
                    {"type": "image_url", "image_url": {"url": "https://x/{{text}}"}},
                ],
            },
        ]
    )
    assert prompt.variables == prompt.required == {"who", "text"}
    body = _body(prompt, {"who": "Zoë 🦊", "text": 'a "b"\\ {{who}} {% x %}\n'})
    assert body == {
        "messages": [
            {"role": "system", "content": 'Be "brief", Zoë 🦊.\n'},
            {
                "role": "user",
                "name": "{{who}} stays, for a name is no text",
                "content": [
                    {"type": "text", "text": 'a "b"\\ {{who}} {% x %}\n'},
                    {"type": "image_url", "image_url": {"url": "https://x/{{text}}"}},
                ],
            },
        ]
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("", ""),
        (0, "0"),
        (-7, "-7"),
        (10**40, "1" + "0" * 40),
        (1.5, "1.5"),
        (True, "true"),
        (False, "false"),
        ([1, "é", None], '[1, "é", null]'),
        ({"b": {"a": []}, "a": 1}, '{"b": {"a": []}, "a": 1}'),
    ],
)
def test_values_other_than_text_are_written_as_json(value: object, text: str) -> None:
    prompt = _compiled([{"role": "user", "content": "<{{x}}>"}])
    assert _body(prompt, {"x": value})["messages"][0]["content"] == f"<{text}>"


@pytest.mark.parametrize(
    ("raw", "text"), [(b"1e5", "100000.0"), (b"-0", "0"), (b"1.50", "1.5"), (b'"\\u00e9"', "é")]
)
def test_how_a_caller_spells_a_value_does_not_matter(raw: bytes, text: str) -> None:
    prompt = _compiled([{"role": "user", "content": "{{x}}"}])
    body = json.loads(prompt.body(CHAT, {}, {"x": Raw(raw)}))
    assert body["messages"][0]["content"] == text


@pytest.mark.parametrize("raw", [b"null", b"1e999", b"[" * 100_000, b"1" * 5000])
def test_a_value_that_has_no_text_fails_the_line(raw: bytes) -> None:
    prompt = _compiled([{"role": "user", "content": "{{x}}"}])
    with pytest.raises(RenderFailed):
        prompt.body(CHAT, {}, {"x": Raw(raw)})
    with pytest.raises(RenderFailed):
        prompt.body(CHAT, {}, {})


def test_the_lines_own_fields_override_the_model_config() -> None:
    config = {"model": "a", "temperature": 0.2, "response_format": {"type": "json_object"}}
    prompt = _compiled([{"role": "user", "content": "Hi"}], config)
    assert prompt.model == "a"
    fields = {
        "model": "b",
        "temperature": None,
        "max_tokens": 5,
        "prompt_slug": "s",
        "prompt_version": 1,
        "variables": {"x": 1},
    }
    assert _body(prompt, {}, fields) == {
        "model": "b",
        "temperature": None,
        "response_format": {"type": "json_object"},
        "max_tokens": 5,
        "messages": [{"role": "user", "content": "Hi"}],
    }


def test_on_responses_the_prompt_is_the_input_and_parts_have_its_names() -> None:
    prompt = _compiled(
        [
            {"role": "user", "content": [{"type": "text", "text": "{{x}}"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Yes"}]},
            {"role": "user", "content": [{"type": "input_text", "text": "Go"}]},
        ]
    )
    body = _body(prompt, {"x": 1}, {"prompt": {"id": "s"}, "input": None}, RESPONSES)
    assert body == {
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "1"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "Yes"}]},
            {"role": "user", "content": [{"type": "input_text", "text": "Go"}]},
        ]
    }
    chat = _body(prompt, {"x": 1})
    kinds = [part["type"] for message in chat["messages"] for part in message["content"]]
    assert kinds == ["text", "text", "text"]


def test_sandboxed_texts_take_their_rendered_places() -> None:
    prompt = _compiled(
        [
            {"role": "system", "content": "{% if x %}A{% endif %}"},
            {"role": "user", "content": "{{y}} and {{ z|upper }}"},
            {"role": "user", "content": "{% if x %}A{% endif %}"},
        ]
    )
    assert prompt.sandboxed == ("{% if x %}A{% endif %}", "{{y}} and {{ z|upper }}")
    assert prompt.variables == {"x", "y", "z"}
    rendered = [b'"one\\n"', b'"two"']
    body = json.loads(prompt.body(CHAT, {}, {}, rendered))
    assert [m["content"] for m in body["messages"]] == ["one\n", "two", "one\n"]


def test_a_message_with_tool_calls_may_have_no_content() -> None:
    messages = [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]
    assert _body(_compiled(messages), {}) == {"messages": messages}


def test_missing_and_null_variables_are_named() -> None:
    prompt = _compiled([{"role": "user", "content": "{{b}}{{a}}"}])
    assert prompt.refusal(_raws({})) == VariableRefusal("a", "missing")
    assert prompt.refusal(_raws({"a": 1, "b": None})) == VariableRefusal("b", "null")
    assert prompt.refusal(_raws({"a": "", "b": 0, "c": None})) is None


def test_a_rendered_prompt_has_a_largest_size() -> None:
    prompt = _compiled([{"role": "user", "content": "{{x}}" * 100}])
    fits = "x" * (MAX_RENDERED_BYTES // 100 - 1000)
    assert len(_body(prompt, {"x": fits})["messages"][0]["content"]) == 100 * len(fits)
    with pytest.raises(RenderTooLarge):
        prompt.body(CHAT, {}, _raws({"x": "x" * (MAX_RENDERED_BYTES // 100)}))


_OK = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("messages", "config", "param"),
    [
        ({}, {}, "messages"),
        ([], {}, "messages"),
        (_OK * 1001, {}, "messages"),
        (["x"], {}, "messages[0]"),
        ([*_OK, {"content": "x"}], {}, "messages[1].role"),
        ([{"role": 1, "content": "x"}], {}, "messages[0].role"),
        ([{"role": "user"}], {}, "messages[0].content"),
        ([{"role": "user", "content": None}], {}, "messages[0].content"),
        ([{"role": "user", "content": 1}], {}, "messages[0].content"),
        ([{"role": "user", "content": ["x"]}], {}, "messages[0].content[0]"),
        ([{"role": "user", "content": [{}]}], {}, "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], {}, "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "x"}] * 1001}], {}, "messages[0].content"),
        ([{"role": "user", "content": "{{ x() }}"}], {}, "messages[0].content"),
        ([{"role": "user", "content": "{% if %}"}], {}, "messages[0].content"),
        (
            [{"role": "user", "content": f"{{% if x %}}{n}{{% endif %}}"} for n in range(65)],
            {},
            "messages[64].content",
        ),
        (_OK, [], "model_config"),
        (_OK, {"model": 1}, "model_config.model"),
        (_OK, {"model": ""}, "model_config.model"),
        (_OK, {"model": "m" * 257}, "model_config.model"),
        (_OK, {"stream": True}, "model_config.stream"),
        (_OK, {"messages": []}, "model_config.messages"),
        (_OK, {"variables": {}}, "model_config.variables"),
        ([{"role": "user", "content": "x" * MAX_SOURCE_BYTES}], {}, "messages"),
    ],
)
def test_a_version_that_cant_be_used_is_refused_by_name(
    messages: object, config: object, param: str
) -> None:
    with pytest.raises(PromptError) as caught:
        _compiled(messages, config)
    assert caught.value.param == param
    assert caught.value.message


@pytest.mark.parametrize(
    ("messages", "config"),
    [
        (b"[", b"{}"),
        (b'[{"role":"user","content":"\\ud83d"}]', b"{}"),
        (b'[{"role":"user","content":"x","name":"\\ud83d"}]', b"{}"),
        (b'[{"role":"user","content":"x","name":NaN}]', b"{}"),
        (b"[" * 50_000, b"{}"),
        (b'[{"role":"user","content":"x"}]', b'{"a":' * 10_000),
        (b'[{"role":"user","content":"x"}]', b'{"a":"\xff"}'),
    ],
)
def test_bytes_that_are_not_strict_json_are_refused(messages: bytes, config: bytes) -> None:
    with pytest.raises(PromptError):
        compile_prompt(messages, config)


_json = st.recursive(
    st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner),
    max_leaves=6,
)
_texts = st.lists(
    st.sampled_from(["{{a}}", "{{ b }}", "{{  c_1\t}}", "{", "}}", " ", '"', "\\", "é", "\n", "a"]),
    max_size=8,
).map("".join)


@given(st.lists(_texts, min_size=1, max_size=3), st.fixed_dictionaries(dict.fromkeys("abc", _json)))
def test_plain_templates_render_as_text_replacement_says(
    texts: list[str], values: dict[str, Any]
) -> None:
    variables = {"a": values["a"], "b": values["b"], "c_1": values["c"]}
    written = {
        name: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)
        for name, v in variables.items()
    }
    try:
        prompt = _compiled([{"role": "user", "content": text} for text in texts])
    except PromptError:  # such as "{{{a}}", which is Jinja2, and wrong
        return
    if prompt.sandboxed:
        return
    expected = [
        re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: written[found[1]], text) for text in texts
    ]
    got = [message["content"] for message in _body(prompt, variables)["messages"]]
    assert got == expected
