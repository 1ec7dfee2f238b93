"""POST /v1/batches/from-prompt: rows of variables become a file and a batch."""

from __future__ import annotations

import asyncio
import io
import json
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
import structlog

from api.gateway import MAX_MAKINGS, SHARE
from schemas.records import BatchCreate, FileRecord
from schemas.topics import FILE
from streams.adapters.object_store_fake import FakeObjectStore
from streams.settings import Settings
from tests.support.gateway import GatewayUnderTest, running_gateway

PATH = "/v1/batches/from-prompt"
Json = dict[str, Any]
ROWS: list[Json] = [{"id": "a", "text": "First"}, {"id": "b", "text": "Second", "n": [1, None]}]


@pytest.fixture(autouse=True)
async def summarize(gateway: GatewayUnderTest) -> None:
    await made(gateway)


async def made(gateway: GatewayUnderTest, tenant: str = "acme", **fields: Any) -> None:
    """The prompt 'summarize', whose version 1 is published."""
    body = {
        "slug": "summarize",
        "messages": [{"role": "user", "content": "Summarize {{text}}"}],
        "model_config": {"model": "m1"},
        **fields,
    }
    status, answer = await post(gateway, "/v1/prompts", body, tenant=tenant)
    assert status == 200, answer


async def post(
    gateway: GatewayUnderTest,
    path: str,
    body: Any,
    *,
    key: str | None = None,
    tenant: str = "acme",
) -> tuple[int, Json]:
    # Not as bytes: aiohttp warns of large ones.
    data = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
    headers = {} if key is None else {"Idempotency-Key": key}
    async with gateway.http(tenant).post(path, data=data, headers=headers) as answer:
        return answer.status, await answer.json()


async def batch(gateway: GatewayUnderTest, rows: Any = ROWS, **fields: Any) -> Json:
    key = fields.pop("key", None)
    body = {"slug": "summarize", "variables": rows, **fields}
    status, answer = await post(gateway, PATH, body, key=key)
    assert status == 200, answer
    return answer


async def refused(gateway: GatewayUnderTest, **fields: Any) -> tuple[int, Json]:
    """The status and the error; no file and no batch are left behind."""
    body = {"slug": "summarize", "variables": ROWS, **fields}
    status, answer = await post(gateway, PATH, {k: v for k, v in body.items() if v != "absent"})
    assert status >= 400, answer
    assert gateway.store.objects == {}
    assert gateway.log.of(FILE) == []
    assert gateway.commands(BatchCreate) == []
    return status, answer["error"]


async def lines_of(gateway: GatewayUnderTest, file_id: str) -> list[Json]:
    content = await gateway.client().files.content(file_id)
    assert content.content.endswith(b"\n")
    return [json.loads(line) for line in content.content.splitlines()]


async def test_each_row_becomes_a_line_of_the_batchs_file(gateway: GatewayUnderTest) -> None:
    found = await batch(gateway, id_column="id", metadata={"team": "red"}, priority=7)
    assert found["priority"] == 7
    assert found["status"] == "validating"
    assert found["endpoint"] == "/v1/chat/completions"
    assert found["completion_window"] == "24h"
    assert found["metadata"] == {"team": "red"}
    file = await gateway.client().files.retrieve(found["input_file_id"])
    assert (file.filename, file.purpose) == ("summarize.jsonl", "batch")
    assert file.expires_at is not None
    assert await lines_of(gateway, file.id) == [
        {
            "custom_id": row["id"],
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "prompt_slug": "summarize",
                "variables": {name: value for name, value in row.items() if name != "id"},
            },
        }
        for row in ROWS
    ]
    (command,) = gateway.commands(BatchCreate)
    assert isinstance(command, BatchCreate)
    assert command.input is not None
    assert command.input_purpose == "batch"
    assert command.key_id is not None
    assert found["api_key_id"] == command.key_id


async def test_version_model_endpoint_and_the_id_go_into_the_lines(
    gateway: GatewayUnderTest,
) -> None:
    found = await batch(
        gateway,
        version=1,
        model="a/b",
        endpoint="/v1/responses",
        id_column="id",
        keep_id=True,
        output_expires_after={"anchor": "created_at", "seconds": 7200},
    )
    assert found["endpoint"] == "/v1/responses"
    first = (await lines_of(gateway, found["input_file_id"]))[0]
    assert first["url"] == "/v1/responses"
    assert first["body"] == {
        "model": "a/b",
        "prompt_slug": "summarize",
        "prompt_version": 1,
        "variables": ROWS[0],
    }


async def test_values_stay_as_they_were_written_whatever_the_spaces(
    gateway: GatewayUnderTest,
) -> None:
    body = b"""{"slug": "summarize", "variables": [
        {"text": "\\u00e9 {{x}}", "n": 1.50, "big": 123456789012345678901234567890,
         "deep": {"a":\r\n [1, {"b": null}]}}
    ] }"""
    status, answer = await post(gateway, PATH, body)
    assert status == 200, answer
    content = await gateway.client().files.content(answer["input_file_id"])
    assert b'"n":1.50,"big":123456789012345678901234567890' in content.content
    assert b'"text":"\\u00e9 {{x}}"' in content.content
    assert b'"deep":{"a":[1,{"b":null}]}' in content.content
    assert content.content.count(b"\n") == 1


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "param", "code"),
        [
            ({"slug": "absent"}, "slug", "missing_required_parameter"),
            ({"slug": 7}, "slug", "invalid_type"),
            ({"variables": "absent"}, "variables", "missing_required_parameter"),
            ({"variables": {}}, "variables", "invalid_type"),
            ({"variables": "text"}, "variables", "invalid_type"),
            ({"variables": []}, "variables", "empty_array"),
            ({"variables": [{"text": "t"}, 7]}, "variables[1]", "invalid_type"),
            ({"variables": [["text"]]}, "variables[0]", "invalid_type"),
            ({"variables": [None]}, "variables[0]", "invalid_type"),
            ({"variables": [{}]}, "variables[0].text", "missing_required_parameter"),
            (
                {"variables": [{"text": "t"}, {"txt": "t"}]},
                "variables[1].text",
                "missing_required_parameter",
            ),
            ({"variables": [{"text": None}]}, "variables[0].text", "invalid_value"),
            ({"id_column": "nr"}, "variables[0].nr", "invalid_value"),
            ({"id_column": "text", "keep_id": False}, "variables[0].text", None),
            ({"variables": [ROWS[0], ROWS[0]], "id_column": "id"}, "variables[1].id", None),
            ({"variables": [{"id": "", "text": "t"}], "id_column": "id"}, "variables[0].id", None),
            ({"id_column": 1}, "id_column", "invalid_type"),
            ({"id_column": ""}, "id_column", "empty_string"),
            ({"keep_id": True}, "id_column", "missing_required_parameter"),
            ({"keep_id": "yes", "id_column": "id"}, "keep_id", "invalid_type"),
            ({"version": 0}, "version", "integer_below_min_value"),
            ({"version": "1"}, "version", "invalid_type"),
            ({"version": True}, "version", "invalid_type"),
            ({"model": 1}, "model", "invalid_type"),
            ({"model": ""}, "model", "empty_string"),
            ({"endpoint": "/v1/embeddings"}, "endpoint", "invalid_value"),
            ({"endpoint": "/v1/nope"}, "endpoint", "invalid_value"),
            ({"completion_window": "1h"}, "completion_window", "invalid_value"),
            ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
            ({"priority": 101}, "priority", "integer_above_max_value"),
            ({"rows": []}, "rows", "unknown_parameter"),
            ({"idempotency_key": " "}, "idempotency_key", "invalid_value"),
        ],
    )
    async def test_what_is_wrong_is_named_and_nothing_is_left_behind(
        self, gateway: GatewayUnderTest, fields: Json, param: str, code: str | None
    ) -> None:
        status, error = await refused(gateway, **fields)
        assert status == 400
        assert error["param"] == param
        assert code is None or error["code"] == code

    @pytest.mark.parametrize(
        ("fields", "status", "code"),
        [
            ({"slug": "other"}, 404, "prompt_not_found"),
            ({"slug": "no slug/at all"}, 404, "prompt_not_found"),
            ({"version": 2}, 404, "prompt_version_not_found"),
        ],
    )
    async def test_a_prompt_that_is_not_there_is_told(
        self, gateway: GatewayUnderTest, fields: Json, status: int, code: str
    ) -> None:
        found, error = await refused(gateway, **fields)
        assert (found, error["code"]) == (status, code)

    async def test_another_tenants_prompt_is_not_there(self, gateway: GatewayUnderTest) -> None:
        await made(gateway, "rival", slug="secret")
        status, error = await refused(gateway, slug="secret")
        assert (status, error["code"]) == (404, "prompt_not_found")

    async def test_a_prompt_without_published_version_needs_one_named(
        self, gateway: GatewayUnderTest
    ) -> None:
        await post(gateway, "/v1/prompts/summarize/publish", {"version": None})
        status, error = await refused(gateway)
        assert (status, error["code"]) == (400, "prompt_not_published")
        await batch(gateway, version=1)

    async def test_a_prompt_without_model_needs_one(self, gateway: GatewayUnderTest) -> None:
        await made(gateway, slug="bare", model_config={})
        status, error = await refused(gateway, slug="bare")
        assert (status, error["param"]) == (400, "model")
        await batch(gateway, slug="bare", model="m1")

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"[]",
            b"not json",
            b'{"slug": "summarize", "variables": [{"text": "t"},]}',
            b'{"slug": "summarize", "variables": [{"text": "\xff"}]}',
            b'{"slug": "summarize", "variables": [{"text": NaN}]}',
            b'{"slug": "summarize", "variables": [{"text": "t", "n": 1e999}]}',
            b'{"slug": "summarize", "variables": [{"text": "t"}], "version": ' + b"9" * 5000 + b"}",
            b'{"slug": "summarize", "variables": [' + b"9" * 5000 + b"]}",
            b'{"slug": "summarize", "variables": [{"text": ' + b"9" * 5000 + b"}]}",
            b'{"slug": "summarize", "variables": ' + b"[" * 100_000,
            b'{"slug": "summarize", "variables": [{"text": ' + b"[" * 900 + b"]" * 900 + b"}]}",
        ],
    )
    async def test_a_body_that_is_no_good_json_is_refused(
        self, gateway: GatewayUnderTest, body: bytes
    ) -> None:
        status, answer = await post(gateway, PATH, body)
        assert status in (200, 400), answer
        assert (status == 200) == (b"[[" in body and b"]]" in body), answer

    async def test_the_number_of_rows_and_their_size_have_limits(self) -> None:
        settings = Settings(max_batch_lines=3, max_line_bytes=1024)
        async with running_gateway(settings=settings) as gateway:
            await made(gateway)
            await batch(gateway, [{"text": "t"}] * 3)
            body = {"slug": "summarize", "variables": [{"text": "t"}] * 4}
            status, answer = await post(gateway, PATH, body)
            assert (status, answer["error"]["code"]) == (400, "array_above_max_length")
            for size in (1024, 950):
                body["variables"] = [{"text": "t"}, {"text": "x" * size}]
                status, answer = await post(gateway, PATH, body)
                assert answer["error"]["param"] == "variables[1]"
                assert (status, answer["error"]["code"]) == (400, "line_too_large")

    async def test_a_body_that_is_too_large_is_refused(self, gateway: GatewayUnderTest) -> None:
        body = b'{"slug": "summarize", "variables": [' + b" " * (32 << 20) + b"]}"
        try:
            status, answer = await post(gateway, PATH, body)
        except aiohttp.ClientOSError:
            return  # cut off while it was still being sent
        assert (status, answer["error"]["code"]) == (413, "request_too_large")

    async def test_only_so_many_are_made_at_once(self, gateway: GatewayUnderTest) -> None:
        async with AsyncExitStack() as held:
            for number in range(MAX_MAKINGS):
                await held.enter_async_context(gateway.gateway.makings.wait(f"t{number}"))
            status, answer = await post(gateway, PATH, {})
            assert (status, answer["error"]["code"]) == (503, "overloaded")
        await batch(gateway)

    async def test_a_tenant_has_its_share_and_leaves_room_for_others(
        self, gateway: GatewayUnderTest
    ) -> None:
        await made(gateway, "rival")
        async with AsyncExitStack() as held:
            for _ in range(SHARE):
                await held.enter_async_context(gateway.gateway.makings.wait("acme"))
            status, answer = await post(gateway, PATH, {})
            assert (status, answer["error"]["code"]) == (429, "too_many_at_once")
            body = {"slug": "summarize", "variables": ROWS}
            assert (await post(gateway, PATH, body, tenant="rival"))[0] == 200


class TestIdempotency:
    async def test_a_repeat_is_answered_with_the_same_batch_and_makes_no_second_file(
        self, gateway: GatewayUnderTest
    ) -> None:
        first = await batch(gateway, key="k1")
        again = await batch(gateway, key="k1")
        assert again["id"] == first["id"]
        assert again["input_file_id"] == first["input_file_id"]
        assert len(gateway.commands(BatchCreate)) == 1
        assert len(gateway.log.of(FILE)) == 1

    async def test_repeats_at_the_same_time_make_one_batch(self, gateway: GatewayUnderTest) -> None:
        found = await asyncio.gather(*(batch(gateway, key="k1") for _ in range(SHARE)))
        assert len({each["id"] for each in found}) == 1
        assert len({each["input_file_id"] for each in found}) == 1
        assert len(gateway.store.objects) == 1

    @pytest.mark.parametrize(
        "change",
        [
            {"variables": [{"text": "other"}]},
            {"version": 1},
            {"model": "a/b"},
            {"id_column": "id"},
            {"metadata": {"a": "b"}},
            {"priority": 1},
        ],
    )
    async def test_another_request_with_the_key_conflicts(
        self, gateway: GatewayUnderTest, change: Json
    ) -> None:
        await batch(gateway, key="k1")
        body = {"slug": "summarize", "variables": ROWS, **change}
        status, answer = await post(gateway, PATH, body, key="k1")
        assert (status, answer["error"]["code"]) == (409, "idempotency_conflict")
        assert len(gateway.log.of(FILE)) == 1

    async def test_a_key_of_a_plain_create_is_taken_too(self, gateway: GatewayUnderTest) -> None:
        body = {
            "input_file_id": "file-1",
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        status, _ = await post(gateway, "/v1/batches", body, key="k1")
        assert status == 200
        status, answer = await post(
            gateway, PATH, {"slug": "summarize", "variables": ROWS}, key="k1"
        )
        assert (status, answer["error"]["code"]) == (409, "idempotency_conflict")

    async def test_a_try_that_ended_after_the_file_is_finished_by_the_next(
        self, gateway: GatewayUnderTest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        body = {"slug": "summarize", "variables": ROWS}
        with monkeypatch.context() as patch:
            patch.setattr("api.routes.from_prompt.create_batch", _dies)
            status, _ = await post(gateway, PATH, body, key="k1")
            assert status == 503
        (stored,) = gateway.log.of(FILE)
        assert isinstance(stored.record, FileRecord)
        found = await batch(gateway, key="k1")
        assert found["input_file_id"] == stored.record.file_id
        assert len(gateway.log.of(FILE)) == 1

    async def test_a_repeat_finds_its_batch_though_the_prompt_is_gone(
        self, gateway: GatewayUnderTest
    ) -> None:
        first = await batch(gateway, key="k1")
        async with gateway.http().delete("/v1/prompts/summarize") as answer:
            assert answer.status == 200
        assert (await batch(gateway, key="k1"))["id"] == first["id"]


async def _dies(*_: object) -> None:
    raise TimeoutError


async def test_a_store_that_fails_leaves_nothing_behind(gateway: GatewayUnderTest) -> None:
    assert isinstance(gateway.store, FakeObjectStore)
    gateway.store.full = True
    status, answer = await post(gateway, PATH, {"slug": "summarize", "variables": ROWS})
    assert (status, answer["error"]["code"]) == (507, "storage_full")
    assert gateway.log.of(FILE) == []


async def test_many_rows_are_made_at_once(gateway: GatewayUnderTest) -> None:
    found = await batch(gateway, [{"text": f"row {n}"} for n in range(50_000)])
    lines = await lines_of(gateway, found["input_file_id"])
    assert len(lines) == 50_000
    assert lines[-1]["custom_id"] == "row-050000"


async def test_no_word_of_the_rows_is_logged(gateway: GatewayUnderTest) -> None:
    rows = [{"text": "MARK-value", "MARK-name": 1}]
    with structlog.testing.capture_logs() as logged:
        await batch(gateway, rows, key="k1")
        await post(gateway, PATH, {"slug": "summarize", "variables": [{"MARK-name": 1}]})
        await post(gateway, PATH, {"slug": "summarize", "variables": rows * 2, "id_column": "text"})
    assert "MARK" not in repr(logged)
    assert any(entry.get("action") == "batch_from_prompt" for entry in logged)
