"""/v1/prompts: every route, every answer and every error of the registry."""

from __future__ import annotations

import json
from typing import Any

import pytest

from streams.settings import Settings
from tests.support.gateway import GatewayUnderTest, running_gateway
from tests.support.prompts_api import PromptsApi, says

PROMPT_FIELDS = {
    *("id", "object", "slug", "description", "created_at", "updated_at"),
    *("published_version", "latest_version", "variables", "versions"),
}
VERSION_FIELDS = {
    *("object", "slug", "version", "created_at", "published", "messages", "model_config"),
    *("variables", "required_variables"),
}


def _short(value: object) -> str:
    return repr(value)[:40]


@pytest.fixture
async def prompts(gateway: GatewayUnderTest) -> PromptsApi:
    """The prompts of 'acme'."""
    return PromptsApi(gateway)


async def test_a_new_prompt_has_one_version_which_is_published(prompts: PromptsApi) -> None:
    made = await prompts.create("summarize", "Sum up {{text}} in {{words}}.", description="Short")
    assert made.status == 200
    assert set(made.body) == PROMPT_FIELDS
    assert made.body["id"].startswith("prompt_")
    assert made.body["object"] == "prompt"
    assert made.body["description"] == "Short"
    assert (made.body["published_version"], made.body["latest_version"]) == (1, 1)
    assert made.body["variables"] == ["text", "words"]
    assert made.body["versions"] == [
        {"version": 1, "created_at": made.body["created_at"], "published": True}
    ]
    assert made.etag == '"1"'
    shown = await prompts.get("/summarize")
    assert (shown.body, shown.etag) == (made.body, made.etag)


async def test_a_version_is_shown_as_it_was_sent(prompts: PromptsApi) -> None:
    messages = [
        {"role": "system", "content": "Be {{tone}}.\r\nÜber alles 🚀"},
        {"role": "user", "content": [{"type": "text", "text": "{{text}}"}], "name": "x"},
    ]
    config = {"model": "m1", "temperature": 0.1, "seed": 12345678901234567890, "stop": ["\u2028"]}
    await prompts.create("s", messages=messages, model_config=config)
    shown = await prompts.get("/s/versions/1")
    assert set(shown.body) == VERSION_FIELDS
    assert shown.body["messages"] == messages
    assert shown.body["model_config"] == config
    assert shown.body["variables"] == shown.body["required_variables"] == ["text", "tone"]
    assert (shown.body["published"], shown.etag) == (True, '"1"')


async def test_versions_are_numbered_and_published_when_told(prompts: PromptsApi) -> None:
    await prompts.create("s", "one {{a}}")
    added = await prompts.add("s", "two {{b}}", model_config={"model": "m1"})
    assert set(added.body) == VERSION_FIELDS
    assert (added.body["version"], added.body["published"], added.etag) == (2, False, '"2"')
    before = (await prompts.get("/s")).body
    assert (before["published_version"], before["latest_version"]) == (1, 2)
    assert before["variables"] == ["a"]
    after = await prompts.publish("s", 2)
    assert (after.body["published_version"], after.body["variables"]) == (2, ["b"])
    assert [v["published"] for v in after.body["versions"]] == [False, True]
    back = await prompts.publish("s", 1)
    assert (back.body["published_version"], back.etag) == (1, '"4"')
    same = await prompts.publish("s", 1)
    assert (same.status, same.etag) == (200, '"4"')


async def test_a_prompt_can_be_withdrawn(prompts: PromptsApi) -> None:
    await prompts.create("s")
    withdrawn = await prompts.publish("s", None)
    assert (withdrawn.body["published_version"], withdrawn.body["variables"]) == (None, [])
    assert (await prompts.get("/s/versions/1")).body["published"] is False
    refused = await prompts.render("s", variables={"it": "x"})
    assert refused.refusal == (400, "prompt_not_published", "version")
    assert (await prompts.render("s", variables={"it": "x"}, version=1)).status == 200


async def test_a_description_is_changed_and_taken_away(prompts: PromptsApi) -> None:
    await prompts.create("s", description="old")
    changed = await prompts.call("PATCH", "/s", description="new")
    assert (changed.body["description"], changed.etag) == ("new", '"2"')
    kept = await prompts.call("PATCH", "/s", raw=b"{}")
    assert (kept.body["description"], kept.etag) == ("new", '"2"')
    gone = await prompts.call("PATCH", "/s", description=None)
    assert gone.body["description"] is None
    assert gone.body["versions"] == changed.body["versions"]


async def test_a_deleted_prompt_is_gone_with_its_versions(prompts: PromptsApi) -> None:
    made = await prompts.create("s")
    gone = await prompts.delete("s")
    assert gone.body == {
        "id": made.body["id"],
        "slug": "s",
        "object": "prompt",
        "deleted": True,
    }
    missing = (404, "prompt_not_found", "slug")
    assert (await prompts.get("/s")).refusal == missing
    assert (await prompts.get("/s/versions")).refusal == missing
    assert (await prompts.get("/s/versions/1")).refusal == missing
    assert (await prompts.add("s")).refusal == missing
    assert (await prompts.publish("s", 1)).refusal == missing
    assert (await prompts.render("s", variables={"it": 1})).refusal == missing
    assert (await prompts.call("PATCH", "/s", description="x")).refusal == missing
    assert (await prompts.delete("s")).refusal == missing
    assert (await prompts.get()).body["data"] == []


async def test_a_slug_made_again_goes_on_numbering(prompts: PromptsApi) -> None:
    first = await prompts.create("s", "old {{a}}")
    await prompts.add("s", "older {{b}}")
    await prompts.delete("s")
    again = await prompts.create("s", "new {{c}}")
    assert again.status == 200
    assert again.body["id"] != first.body["id"]
    assert [v["version"] for v in again.body["versions"]] == [3]
    assert (again.body["published_version"], again.etag) == (3, '"4"')
    for number in (1, 2):
        gone = await prompts.get(f"/s/versions/{number}")
        assert gone.refusal == (404, "prompt_version_not_found", "version")
    assert (await prompts.publish("s", 1)).status == 404


@pytest.mark.parametrize(
    "number",
    ["0", "-1", "2", "x", "1.0", "1e3", "9" * 30, "٣", "01", "0" * 19 + "1" + "9" * 5000],
    ids=_short,
)
async def test_a_version_that_is_not_there_is_not_found(prompts: PromptsApi, number: str) -> None:
    await prompts.create("s")
    found = await prompts.get(f"/s/versions/{number}")
    assert found.refusal == (404, "prompt_version_not_found", "version")


async def test_another_tenants_prompts_do_not_exist(
    gateway: GatewayUnderTest, prompts: PromptsApi
) -> None:
    mine = await prompts.create("s", "mine {{a}}")
    rival = PromptsApi(gateway, "rival")
    assert (await rival.get("/s")).status == 404
    assert (await rival.get()).body["data"] == []
    assert (await rival.delete("s")).status == 404
    assert (await rival.get(after=mine.body["id"])).refusal == (400, "invalid_value", "after")
    theirs = await rival.create("s", "theirs {{b}}")
    assert (theirs.status, theirs.body["versions"][0]["version"]) == (200, 1)
    await rival.add("s", "more")
    assert (await prompts.get("/s")).body == mine.body


async def test_an_existing_slug_is_a_conflict(prompts: PromptsApi) -> None:
    await prompts.create("s")
    again = await prompts.create("s", "other")
    assert again.refusal == (409, "prompt_exists", "slug")
    assert again.headers["x-should-retry"] == "false"


async def test_lists_are_newest_first_and_stable_while_prompts_come_and_go(
    prompts: PromptsApi,
) -> None:
    for number in range(7):
        await prompts.create(f"p{number}")
    first = (await prompts.get(limit=3)).body
    assert [p["slug"] for p in first["data"]] == ["p6", "p5", "p4"]
    assert first["has_more"] is True
    assert set(first["data"][0]) == PROMPT_FIELDS - {"versions"}
    assert first["last_id"] == first["data"][-1]["id"]
    await prompts.create("late")
    await prompts.publish("p3", None)
    for gone in ("p4", "p2"):
        await prompts.delete(gone)
    second = (await prompts.get(limit=3, after=first["last_id"])).body
    assert [p["slug"] for p in second["data"]] == ["p3", "p1", "p0"]
    assert second["has_more"] is False
    assert len((await prompts.get()).body["data"]) == 6


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ({"limit": 0}, "integer_below_min_value", "limit"),
        ({"limit": 101}, "integer_above_max_value", "limit"),
        ({"after": "prompt_none"}, "invalid_value", "after"),
        ({"order": "asc"}, "unknown_parameter", "order"),
    ],
)
async def test_a_wrong_list_parameter_is_named(
    prompts: PromptsApi, query: Any, code: str, param: str
) -> None:
    assert (await prompts.get(**query)).refusal == (400, code, param)


async def test_versions_are_listed_newest_first_in_pages(prompts: PromptsApi) -> None:
    await prompts.create("s", "v1 {{a}}")
    for number in range(2, 6):
        await prompts.add("s", f"v{number}")
    first = (await prompts.get("/s/versions", limit=2)).body
    assert [v["version"] for v in first["data"]] == [5, 4]
    assert (first["first_id"], first["last_id"], first["has_more"]) == ("5", "4", True)
    await prompts.add("s", "v6")
    second = (await prompts.get("/s/versions", limit=3, after=first["last_id"])).body
    assert [v["version"] for v in second["data"]] == [3, 2, 1]
    assert second["has_more"] is False
    assert second["data"][-1] == (await prompts.get("/s/versions/1")).body
    assert (await prompts.get("/s/versions", after="x")).refusal == (400, "invalid_type", "after")


@pytest.mark.parametrize(
    "slug", ["", " ", "a b", "../x", "-a", ".a", "_a", "a/b", "é", "a\n", "🚀"]
)
async def test_what_cannot_be_a_slug_is_refused(prompts: PromptsApi, slug: str) -> None:
    assert (await prompts.create(slug)).refusal == (400, "invalid_value", "slug")


@pytest.mark.parametrize(
    "path", ["/%2e%2e", "/a%2Fb", "/%00", "/" + "x" * 129, "/%ff", "/a%20b", "/%F0%9F%9A%80"]
)
async def test_a_path_that_names_no_slug_is_not_found_without_asking_the_log(
    gateway: GatewayUnderTest, prompts: PromptsApi, path: str
) -> None:
    asked = gateway.log.ends_asked
    assert (await prompts.get(path)).status == 404
    assert (await prompts.delete(path.removeprefix("/"))).status == 404
    assert gateway.log.ends_asked == asked


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"slug": None}, "missing_required_parameter", "slug"),
        ({"slug": 7}, "invalid_type", "slug"),
        ({"slug": "x" * 129}, "string_above_max_length", "slug"),
        ({"messages": None}, "missing_required_parameter", "messages"),
        ({"messages": "hi"}, "invalid_value", "messages"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [7]}, "invalid_value", "messages[0]"),
        ({"messages": [{"content": "x"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "invalid_value", "messages[0].content"),
        ({"messages": [{"role": "user", "content": 1}]}, "invalid_value", "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "invalid_value",
            "messages[0].content[0].text",
        ),
        ({"messages": says("{% for %}")}, "invalid_value", "messages[0].content"),
        ({"messages": says("{{ a.__class__ }}")}, "invalid_value", "messages[0].content"),
        ({"messages": says("{{ range(9) }}")}, "invalid_value", "messages[0].content"),
        ({"messages": says("{% include 'x' %}")}, "invalid_value", "messages[0].content"),
        ({"messages": says("{{ a ** 9 }}")}, "invalid_value", "messages[0].content"),
        ({"messages": says("x" * 70_000)}, "invalid_value", "messages"),
        ({"model_config": []}, "invalid_value", "model_config"),
        ({"model_config": {"stream": True}}, "invalid_value", "model_config.stream"),
        ({"model_config": {"model": 7}}, "invalid_value", "model_config.model"),
        ({"model_config": {"messages": []}}, "invalid_value", "model_config.messages"),
        ({"description": 7}, "invalid_type", "description"),
        ({"description": "x" * 2001}, "string_above_max_length", "description"),
        ({"text": "hi"}, "unknown_parameter", "text"),
        ({"version": 1}, "unknown_parameter", "version"),
    ],
    ids=_short,
)
async def test_a_wrong_prompt_is_refused_by_param(
    prompts: PromptsApi, body: Any, code: str, param: str
) -> None:
    whole = {"slug": "s", "messages": says("x"), **body}
    refused = await prompts.call("POST", raw=json.dumps(whole).encode())
    assert refused.refusal == (400, code, param)
    assert (await prompts.get()).body["data"] == []


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{",
        b'{"slug": "s", "messages": [{"role": "user", "content": "\xff"}]}',
        b'{"slug": "s", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"slug": "s", "messages": [{"role": "user", "content": "x", "n": NaN}]}',
        b'{"slug": "s", "messages": [{"role": "user", "content": "x", "n": 1e999}]}',
        b'{"slug": "s", "messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"slug": "s", "messages": [{"role": "user", "content": "x", "n": '
        + b"[" * 600
        + b"]" * 600
        + b"}]}",
        b'{"slug": "s", "messages": [{"role": "user", "content": "x", "n": ' + b"9" * 5000 + b"}]}",
    ],
    ids=_short,
)
async def test_hostile_json_is_stored_faithfully_or_a_clear_refusal(
    prompts: PromptsApi, raw: bytes
) -> None:
    answer = await prompts.call("POST", raw=raw)
    if answer.status == 200:
        shown = await prompts.get("/s/versions/1")
        assert shown.body["messages"] == json.loads(raw)["messages"]
    else:
        assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")


async def test_a_body_above_its_limit_is_too_large(prompts: PromptsApi) -> None:
    for method, path in (("POST", ""), ("POST", "/s/versions"), ("PATCH", "/s")):
        answer = await prompts.call(method, path, raw=b" " * (256 * 1024 + 1))
        assert answer.refusal == (413, "request_too_large", None)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "missing_required_parameter"),
        ({"version": "1"}, "invalid_type"),
        ({"version": True}, "invalid_type"),
        ({"version": 1.0}, "invalid_type"),
        ({"version": 0}, "integer_below_min_value"),
        ({"version": 10**10}, "integer_above_max_value"),
    ],
)
async def test_a_wrong_version_to_publish_is_refused(
    prompts: PromptsApi, body: Any, code: str
) -> None:
    await prompts.create("s")
    raw = json.dumps(body).encode()
    refused = await prompts.call("POST", "/s/publish", raw=raw)
    assert refused.refusal == (400, code, "version")
    missing = await prompts.publish("s", 2)
    assert missing.refusal == (404, "prompt_version_not_found", "version")
    assert (await prompts.get("/s")).etag == '"1"'


async def test_unknown_parameters_are_refused_by_name(prompts: PromptsApi) -> None:
    await prompts.create("s")
    for method, path in (
        ("PATCH", "/s"),
        ("POST", "/s/publish"),
        ("POST", "/s/versions"),
        ("POST", "/s/render"),
    ):
        refused = await prompts.call(method, path, slug="t")
        assert refused.refusal == (400, "unknown_parameter", "slug")


QUOTAS = [
    ({"max_prompts": 2}, "at most 2 prompts"),
    ({"max_prompt_bytes": 150}, "at most 150 bytes"),
]


@pytest.mark.parametrize(("limits", "says_so"), QUOTAS, ids=["prompts", "bytes"])
async def test_a_tenants_prompts_have_a_limit_which_deleting_makes_room_under(
    limits: dict[str, Any], says_so: str
) -> None:
    async with running_gateway(settings=Settings(**limits)) as gateway:
        prompts, rival = PromptsApi(gateway), PromptsApi(gateway, "rival")
        text = "x" * 30
        for slug in ("a", "b"):
            assert (await prompts.create(slug, text)).status == 200
        full = await prompts.create("c", text)
        assert full.refusal == (400, "prompt_quota_exceeded", None)
        assert says_so in full.error["message"]
        assert (await rival.create("c", text)).status == 200
        await prompts.delete("a")
        assert (await prompts.create("c", text)).status == 200
        if "max_prompt_bytes" in limits:
            assert (await prompts.add("c", text)).error["code"] == "prompt_quota_exceeded"


async def test_a_prompts_versions_have_a_limit() -> None:
    async with running_gateway(settings=Settings(max_prompt_versions=2)) as gateway:
        prompts = PromptsApi(gateway)
        await prompts.create("s")
        assert (await prompts.add("s")).status == 200
        full = await prompts.add("s")
        assert full.refusal == (400, "prompt_quota_exceeded", None)
        assert "at most 2 versions" in full.error["message"]


async def test_every_route_needs_a_key(gateway: GatewayUnderTest) -> None:
    http = gateway.http(None)
    for method, path in (
        ("POST", ""),
        ("GET", ""),
        ("GET", "/s"),
        ("PATCH", "/s"),
        ("DELETE", "/s"),
        ("GET", "/s/versions"),
        ("POST", "/s/versions"),
        ("GET", "/s/versions/1"),
        ("POST", "/s/publish"),
        ("POST", "/s/render"),
    ):
        async with http.request(method, f"/v1/prompts{path}") as answer:
            assert answer.status == 401
