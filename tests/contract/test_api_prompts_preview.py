"""POST /v1/prompts/{slug}/render: what a line would send, or why it could not."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from tests.support.gateway import TIMEOUTS, GatewayUnderTest, running_gateway
from tests.support.prompts_api import PromptsApi, says

#: Takes far more time than a line has, from little input.
SLOW = "{% for a in l %}{% for b in l %}{% for c in l %}{{ c|upper }}" + "{% endfor %}" * 3


def _short(value: object) -> str:
    return repr(value)[:40]


@pytest.fixture
async def prompts(gateway: GatewayUnderTest) -> PromptsApi:
    """The prompts of 'acme'."""
    return PromptsApi(gateway)


async def test_a_preview_is_the_body_that_a_line_would_send(prompts: PromptsApi) -> None:
    config = {"model": "m1", "temperature": 0.5}
    await prompts.create("s", "{{greeting}}, {{who}}!", model_config=config)
    preview = await prompts.render(
        "s",
        variables={"greeting": "{{who}}", "who": {"a": [1, True]}, "unused": None},
        body={"temperature": 0},
    )
    messages = says('{{who}}, {"a": [1, true]}!')
    assert preview.body == {
        "object": "prompt.rendering",
        "slug": "s",
        "version": 1,
        "messages": messages,
        "body": {"model": "m1", "temperature": 0, "messages": messages},
    }
    responses = await prompts.render(
        "s", variables={"greeting": "Hi", "who": "x"}, endpoint="/v1/responses"
    )
    assert responses.body["body"] == {**config, "input": says("Hi, x!")}
    assert responses.body["input"] == says("Hi, x!")
    assert "messages" not in responses.body


async def test_a_preview_without_a_body_renders_a_prompt_without_variables(
    prompts: PromptsApi,
) -> None:
    await prompts.create("s", "Hello")
    assert (await prompts.call("POST", "/s/render")).body["messages"] == says("Hello")


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({}, 400, "missing_required_parameter", "variables.it"),
        ({"variables": {"it": None}}, 400, "invalid_value", "variables.it"),
        ({"variables": []}, 400, "invalid_type", "variables"),
        ({"variables": "x"}, 400, "invalid_type", "variables"),
        ({"version": 2}, 404, "prompt_version_not_found", "version"),
        ({"version": "1"}, 400, "invalid_type", "version"),
        ({"endpoint": "/v1/embeddings"}, 400, "invalid_value", "endpoint"),
        ({"endpoint": 7}, 400, "invalid_type", "endpoint"),
        ({"body": []}, 400, "invalid_type", "body"),
        ({"body": {"messages": []}}, 400, "invalid_value", "body.messages"),
        ({"body": {"prompt_slug": "t"}}, 400, "invalid_value", "body.prompt_slug"),
        ({"variable": {}}, 400, "unknown_parameter", "variable"),
    ],
    ids=_short,
)
async def test_a_preview_that_cannot_be_is_refused_by_param(
    prompts: PromptsApi, body: Any, status: int, code: str, param: str
) -> None:
    await prompts.create("s", "Say {{it}}.")
    refused = await prompts.call("POST", "/s/render", raw=json.dumps(body).encode())
    assert refused.refusal == (status, code, param)


async def test_a_preview_that_grows_too_large_is_refused(prompts: PromptsApi) -> None:
    await prompts.create("s", "{{it}}" * 1000)
    refused = await prompts.render("s", variables={"it": "x" * 10_000})
    assert refused.refusal == (400, "prompt_too_large", "variables")


async def test_previews_and_reads_write_nothing(
    gateway: GatewayUnderTest, prompts: PromptsApi
) -> None:
    await prompts.create("s")
    before = sum(map(len, gateway.log.records.values()))
    await prompts.render("s", variables={"it": 1})
    await prompts.get("/s")
    await prompts.get("/s/versions")
    assert sum(map(len, gateway.log.records.values())) == before


async def test_a_preview_of_a_template_with_logic_is_rendered_in_a_process_started_for_it(
    gateway: GatewayUnderTest, prompts: PromptsApi
) -> None:
    await prompts.create("plain", "{{a}}")
    await prompts.create("s", "{% if a %}{{ b|upper }}{% else %}none{% endif %} \\n{{c}}")
    await prompts.render("plain", variables={"a": 1})
    assert gateway.gateway.renderer.pids == []
    preview = await prompts.render("s", variables={"a": True, "b": "{{c}} ü", "c": '"\\'})
    assert preview.body["messages"] == says('{{C}} Ü \\n"\\')
    assert len(gateway.gateway.renderer.pids) == 1
    missing = await prompts.render("s", variables={"a": False, "c": 1})
    assert missing.status in (200, 400)


async def test_a_template_that_takes_too_long_is_stopped_and_harms_no_other_request(
    gateway: GatewayUnderTest, prompts: PromptsApi
) -> None:
    await prompts.create("slow", SLOW)
    await prompts.create("good", "{{ a|upper }}")
    many = {"l": ["x"] * 2000}
    slow, good, read = await asyncio.gather(
        prompts.render("slow", variables=many),
        PromptsApi(gateway).render("good", variables={"a": "x"}),
        prompts.get("/good"),
    )
    assert slow.refusal[0::2] == (400, "variables")
    assert slow.error["code"] in ("prompt_render_timeout", "prompt_too_large")
    assert good.body["messages"] == says("X")
    assert read.status == 200
    again = await prompts.render("good", variables={"a": "y"})
    assert again.body["messages"] == says("Y")


async def test_variables_that_a_template_cannot_use_are_refused_without_their_text(
    prompts: PromptsApi,
) -> None:
    await prompts.create("s", "{% for x in l %}{{ x.name }}{% endfor %}")
    refused = await prompts.render("s", variables={"l": [{"other": "s3cr3t"}]})
    assert refused.refusal == (400, "prompt_render_failed", "variables")
    assert "s3cr3t" not in refused.error["message"]


async def test_a_preview_that_never_gets_its_turn_is_told_to_come_back() -> None:
    async with running_gateway(timeouts=replace(TIMEOUTS, preview_s=0.0)) as gateway:
        prompts = PromptsApi(gateway)
        await prompts.create("s", "{{ a|upper }}")
        refused = await prompts.render("s", variables={"a": "x"})
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
