"""How a body names a stored prompt, and what is wrong with one that does so badly."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from streams.domain.prompts.request import PROMPT_FORM, SLUG_FORM, UseError, is_slug, prompt_use

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


def _fields(body: dict[str, Any]) -> dict[str, Raw]:
    return msgspec.json.decode(json.dumps(body).encode(), type=dict[str, Raw])


def test_a_body_without_a_prompt_names_none() -> None:
    assert prompt_use(_fields({"messages": []}), CHAT) is None
    assert prompt_use(_fields({"prompt_slug": None, "messages": []}), CHAT) is None
    # On the completions endpoint `prompt` is the ordinary input.
    assert prompt_use(_fields({"prompt": "Once upon a time"}), "/v1/completions") is None


def test_slug_version_and_variables_are_read() -> None:
    body = {"prompt_slug": "sum-1.x", "prompt_version": 2, "variables": {"a": "x", "b": [1]}}
    use = prompt_use(_fields(body), CHAT)
    assert use is not None
    assert (use.slug, use.version, use.names) == ("sum-1.x", 2, SLUG_FORM)
    assert {k: bytes(v) for k, v in use.variables.items()} == {"a": b'"x"', "b": b"[1]"}
    least = prompt_use(_fields({"prompt_slug": "s", "messages": None, "variables": None}), CHAT)
    assert least is not None
    assert (least.version, least.variables) == (None, {})


def test_the_form_of_responses_means_the_same() -> None:
    variables = {"a": {"type": "input_text", "text": 'x"y'}, "b": {"type": "other"}, "c": 1}
    body = {"prompt": {"id": "s", "version": "12", "variables": variables}}
    use = prompt_use(_fields(body), RESPONSES)
    assert use is not None
    assert (use.slug, use.version, use.names) == ("s", 12, PROMPT_FORM)
    assert json.loads(bytes(use.variables["a"])) == 'x"y'
    assert json.loads(bytes(use.variables["b"])) == {"type": "other"}
    assert bytes(use.variables["c"]) == b"1"


@pytest.mark.parametrize(
    ("endpoint", "body", "param"),
    [
        (CHAT, {"prompt_slug": "s", "messages": []}, "messages"),
        (RESPONSES, {"prompt_slug": "s", "input": "x"}, "input"),
        (RESPONSES, {"prompt": {"id": "s"}, "input": "x"}, "input"),
        (RESPONSES, {"prompt": {"id": "s"}, "prompt_slug": "s"}, "prompt_slug"),
        ("/v1/embeddings", {"prompt_slug": "s"}, "prompt_slug"),
        ("/v1/completions", {"prompt_slug": "s", "prompt": "x"}, "prompt_slug"),
        (CHAT, {"prompt_slug": 1}, "prompt_slug"),
        (CHAT, {"prompt_slug": ""}, "prompt_slug"),
        (CHAT, {"prompt_slug": "a/b"}, "prompt_slug"),
        (CHAT, {"prompt_slug": "é"}, "prompt_slug"),
        (CHAT, {"prompt_slug": "s" * 129}, "prompt_slug"),
        (CHAT, {"prompt_slug": "s", "prompt_version": "2"}, "prompt_version"),
        (CHAT, {"prompt_slug": "s", "prompt_version": 0}, "prompt_version"),
        (CHAT, {"prompt_slug": "s", "prompt_version": -1}, "prompt_version"),
        (CHAT, {"prompt_slug": "s", "prompt_version": 1.0}, "prompt_version"),
        (CHAT, {"prompt_slug": "s", "prompt_version": True}, "prompt_version"),
        (CHAT, {"prompt_slug": "s", "prompt_version": 10**10}, "prompt_version"),
        (CHAT, {"prompt_slug": "s", "variables": []}, "variables"),
        (CHAT, {"prompt_slug": "s", "variables": "x"}, "variables"),
        (RESPONSES, {"prompt": "s"}, "prompt"),
        (RESPONSES, {"prompt": {}}, "prompt.id"),
        (RESPONSES, {"prompt": {"id": "s", "version": "two"}}, "prompt.version"),
        (RESPONSES, {"prompt": {"id": "s", "version": [2]}}, "prompt.version"),
        (RESPONSES, {"prompt": {"id": "s", "variables": 1}}, "prompt.variables"),
        (
            RESPONSES,
            {"prompt": {"id": "s", "variables": {"a": {"type": "input_image"}}}},
            "prompt.variables.a",
        ),
    ],
)
def test_what_is_wrong_is_named(endpoint: str, body: dict[str, Any], param: str) -> None:
    with pytest.raises(UseError) as caught:
        prompt_use(_fields(body), endpoint)
    assert caught.value.param == param
    assert caught.value.message.endswith(".")


@pytest.mark.parametrize("slug", ["a", "A.b_c-9", "0", "x" * 128])
def test_slugs(slug: str) -> None:
    assert is_slug(slug)


@pytest.mark.parametrize("slug", ["", "-a", ".", "_x", "a b", "a\n", "x" * 129, "ä", "a/b"])
def test_not_slugs(slug: str) -> None:
    assert not is_slug(slug)
