"""/v1/files through the official SDK: upload, list, get, delete, and every error there is."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest
from openai import APIStatusError, BadRequestError, InternalServerError, NotFoundError
from openai.types import FileObject

from api.gateway import MAX_UPLOADS, UPLOAD_SHARE
from schemas.records import FileRecord
from schemas.topics import FILE
from streams.domain.clock import ManualClock
from streams.settings import Settings
from tests.support.gateway import SDK, TIMEOUTS, GatewayUnderTest, running_gateway
from tests.support.waiting import eventually

LINE = b'{"custom_id": "1"}'
DAY_S = 24 * 3600


def uploading(data: bytes = LINE, name: str = "in.jsonl", **changes: Any) -> Any:
    body = {"purpose": "batch", **changes}
    return lambda client: client.files.create(file=(name, data), **body)


async def test_an_upload_is_answered_with_the_whole_file_object(
    sdk: SDK, gateway: GatewayUnderTest
) -> None:
    file = await sdk(uploading(LINE + b"\n"))
    assert isinstance(file, FileObject)
    assert file.id.startswith("file-")
    assert (file.object, file.bytes, file.filename) == ("file", len(LINE) + 1, "in.jsonl")
    assert (file.purpose, file.status) == ("batch", "processed")
    assert file.expires_at == file.created_at + 30 * DAY_S
    assert await sdk(lambda c: c.files.retrieve(file.id)) == file
    (sent,) = gateway.log.of(FILE)
    assert isinstance(sent.record, FileRecord)
    assert sent.record.object.sha256 == hashlib.sha256(LINE + b"\n").hexdigest()
    assert gateway.store.objects == {f"files/acme/{file.id}": LINE + b"\n"}


@pytest.mark.parametrize("purpose", ["assistants", "fine-tune", "vision", "user_data", "evals"])
async def test_files_of_other_purposes_are_stored_and_served_as_they_are(
    sdk: SDK, purpose: str
) -> None:
    data = bytes(range(256)) * 10
    file = await sdk(uploading(data, "p.bin", purpose=purpose))
    assert (file.purpose, file.expires_at) == (purpose, None)
    assert (await sdk(lambda c: c.files.content(file.id))).content == data


async def test_an_empty_file_of_another_purpose_is_stored(sdk: SDK) -> None:
    file = await sdk(uploading(b"", "empty", purpose="user_data"))
    assert file.bytes == 0
    assert (await sdk(lambda c: c.files.content(file.id))).content == b""


async def test_a_file_expires_when_its_uploader_says(sdk: SDK) -> None:
    file = await sdk(uploading(expires_after={"anchor": "created_at", "seconds": 3600}))
    assert file.expires_at == file.created_at + 3600


@pytest.mark.parametrize(
    "data",
    [
        LINE,
        LINE + b"\n",
        LINE + b"\r\n" + LINE + b"\r\n",
        b"\xef\xbb\xbf" + LINE + b"\n",
        LINE + b"\n\n\nthis is judged at create",
        '{"custom_id": "🚀"}'.encode(),
    ],
    ids=["no newline", "newline", "CRLF", "BOM", "later lines", "emoji"],
)
async def test_a_first_line_of_json_is_taken(sdk: SDK, data: bytes) -> None:
    assert (await sdk(uploading(data))).bytes == len(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n" + LINE,
        b"\r\n",
        b"\xef\xbb\xbf",
        b"custom_id,method,url",
        b"\x00\x01\x02\xff\xfe" * 100,
        LINE.decode().encode("utf-16"),
        b'{"custom_id": "\xff"}',
        b'{"a": NaN}',
        b"[" * 100_000,
        b"PK\x03\x04" + b"\x00" * 1000,
    ],
    ids=[
        *("0 bytes", "empty line", "CRLF only", "BOM only", "CSV", "binary", "UTF-16"),
        *("bad UTF-8", "NaN", "nesting", "zip"),
    ],
)
async def test_a_batch_file_whose_first_line_is_not_json_is_refused_and_leaves_nothing(
    sdk: SDK, gateway: GatewayUnderTest, data: bytes
) -> None:
    error = await sdk.refused(uploading(data))
    assert isinstance(error, BadRequestError)
    assert "Invalid file format." in error.message
    assert ".jsonl" in error.message
    assert (error.type, error.param) == ("invalid_request_error", "file")
    assert gateway.store.objects == {}
    assert gateway.store.writers == 0
    assert gateway.log.of(FILE) == []


async def test_a_first_line_longer_than_a_line_may_be_is_left_to_validation(sdk: SDK) -> None:
    data = b'{"custom_id": "' + b"x" * 5_000_000
    assert (await sdk(uploading(data))).bytes == len(data)


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"purpose": "batch_output"}, "invalid_value", "purpose"),
        ({"purpose": "nonsense"}, "invalid_value", "purpose"),
        (
            {"expires_after": {"anchor": "created_at", "seconds": 3599}},
            "integer_below_min_value",
            "expires_after.seconds",
        ),
        (
            {"expires_after": {"anchor": "created_at", "seconds": 2_592_001}},
            "integer_above_max_value",
            "expires_after.seconds",
        ),
        (
            {"expires_after": {"anchor": "last_active_at", "seconds": 3600}},
            "invalid_value",
            "expires_after.anchor",
        ),
        (
            {"expires_after": {"anchor": "created_at"}},
            "missing_required_parameter",
            "expires_after.seconds",
        ),
        ({"extra_body": {"color": "red"}}, "unknown_parameter", "color"),
        ({"name": "n" * 256}, "string_above_max_length", "file"),
    ],
)
async def test_a_wrong_upload_names_the_parameter_and_leaves_nothing(
    sdk: SDK, gateway: GatewayUnderTest, changes: dict[str, Any], code: str, param: str
) -> None:
    error = await sdk.refused(uploading(**changes))
    assert isinstance(error, BadRequestError)
    assert (error.code, error.param) == (code, param)
    assert gateway.store.objects == {}


#: A batch file may have 1000 bytes, another file 3000.
SMALL_LIMITS = Settings(max_batch_file_bytes=1000, max_file_bytes=3000)


@pytest.mark.parametrize(("purpose", "limit"), [("batch", 1000), ("user_data", 3000)])
async def test_a_file_at_its_limit_is_taken_and_one_byte_more_is_too_large(
    purpose: str, limit: int
) -> None:
    async with running_gateway(settings=SMALL_LIMITS) as gateway:
        client = gateway.client()
        data = LINE + b"\n" + b"x" * (limit - len(LINE) - 1)
        assert (await uploading(data, purpose=purpose)(client)).bytes == limit
        with pytest.raises(APIStatusError) as caught:
            await uploading(data + b"x", purpose=purpose)(client)
        assert caught.value.status_code == 413
        assert (caught.value.code, caught.value.param) == ("file_too_large", "file")
        assert str(limit) in caught.value.message
        assert len(gateway.store.objects) == 1


async def test_an_upload_announced_as_far_too_large_is_refused_before_it_is_read() -> None:
    async with running_gateway(settings=SMALL_LIMITS) as gateway:
        with pytest.raises(APIStatusError) as caught:
            await uploading(b"x" * 1_000_000)(gateway.client())
        assert caught.value.status_code == 413
        assert gateway.store.writers == 0


def form(*parts: tuple[str, str | None, bytes]) -> tuple[bytes, dict[str, str]]:
    body = b""
    for name, filename, data in parts:
        extra = f'; filename="{filename}"' if filename is not None else ""
        body += f'--b\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode()
        body += data + b"\r\n"
    return body + b"--b--\r\n", {"Content-Type": "multipart/form-data; boundary=b"}


async def answer_to(
    gateway: GatewayUnderTest, body: Any, headers: dict[str, str]
) -> tuple[int, dict[str, Any]]:
    async with gateway.http().post("/v1/files", data=body, headers=headers) as answer:
        assert answer.headers["x-request-id"]
        return answer.status, await answer.json()


async def test_the_file_may_come_before_its_purpose(gateway: GatewayUnderTest) -> None:
    body, headers = form(("file", "a.jsonl", LINE), ("purpose", None, b"batch"))
    status, answer = await answer_to(gateway, body, headers)
    assert (status, answer["purpose"]) == (200, "batch")
    too_late, headers = form(("file", "a.jsonl", LINE), ("purpose", None, b"nonsense"))
    status, answer = await answer_to(gateway, too_late, headers)
    assert (status, answer["error"]["param"]) == (400, "purpose")
    assert len(gateway.store.objects) == 1


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ([("purpose", None, b"batch")], "file"),
        ([("file", "a", LINE)], "purpose"),
        ([], None),
        ([("file", "a", LINE), ("file", "b", LINE), ("purpose", None, b"batch")], "file"),
        ([("purpose", None, b"x" * 5000), ("file", "a", LINE)], "purpose"),
    ],
    ids=["no file", "no purpose", "nothing", "two files", "a huge field"],
)
async def test_a_form_without_its_parts_is_refused(
    gateway: GatewayUnderTest, parts: list[tuple[str, str | None, bytes]], param: str | None
) -> None:
    body, headers = form(*parts)
    status, answer = await answer_to(gateway, body, headers)
    assert status == 400
    assert param is None or answer["error"]["param"] == param
    assert gateway.store.objects == {}
    assert gateway.store.writers == 0


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data", "text/plain"])
async def test_what_is_not_a_form_is_refused(gateway: GatewayUnderTest, kind: str) -> None:
    status, answer = await answer_to(gateway, b"{}", {"Content-Type": kind})
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("keep", [1, 60, 150, 210, -8])
async def test_a_truncated_form_is_refused_and_leaves_nothing(
    gateway: GatewayUnderTest, keep: int
) -> None:
    body, headers = form(("purpose", None, b"batch"), ("file", "a.jsonl", (LINE + b"\n") * 10))
    status, answer = await answer_to(gateway, body[:keep], headers)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert gateway.store.objects == {}
    assert gateway.store.writers == 0


async def test_a_client_that_goes_away_in_mid_upload_leaves_nothing(
    gateway: GatewayUnderTest,
) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    body, headers = form(("purpose", None, b"batch"), ("file", "a.jsonl", LINE * 1000))
    writer.write(
        b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
        + f"Authorization: Bearer {gateway.keys['acme']}\r\n".encode()
        + f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode()
        + body[:5000]
    )
    await writer.drain()
    await eventually(lambda: gateway.store.writers == 1)
    writer.transport.abort()
    await eventually(lambda: gateway.store.writers == 0)
    assert gateway.store.objects == {}
    assert gateway.log.of(FILE) == []


async def test_a_full_store_is_said_once_and_leaves_nothing(gateway: GatewayUnderTest) -> None:
    gateway.store.full = True
    with pytest.raises(InternalServerError) as caught:
        await uploading()(gateway.client(retries=2))
    assert caught.value.status_code == 507
    assert caught.value.code == "storage_full"
    assert caught.value.request.headers["x-stainless-retry-count"] == "0"
    assert gateway.store.writers == 0
    gateway.store.full = False
    assert gateway.store.objects == {}
    await uploading()(gateway.client())


@pytest.mark.parametrize("operation", ["write", "close"])
async def test_a_store_that_fails_for_a_moment_is_tried_again_by_the_sdk(
    gateway: GatewayUnderTest, operation: str
) -> None:
    gateway.store.fail(1, operation)
    file = await uploading()(gateway.client(retries=2))
    assert list(gateway.store.objects) == [f"files/acme/{file.id}"]


async def test_an_upload_without_a_log_is_unavailable(gateway: GatewayUnderTest) -> None:
    gateway.log.unreachable = True
    error = await SDK(gateway.client()).refused(uploading())
    assert (error.status_code, error.code) == (503, "unavailable")
    assert error.response.headers["retry-after"] == "1"


async def test_a_slow_upload_is_cut_off() -> None:
    async with running_gateway(timeouts=replace(TIMEOUTS, body_idle_s=1.0)) as gateway:
        body, headers = form(("purpose", None, b"batch"), ("file", "a.jsonl", LINE))

        async def stalled() -> Any:
            yield body[:-10]
            await eventually(lambda: gateway.store.writers == 1)
            await eventually(lambda: gateway.store.writers == 0)
            yield body[-10:]

        status, answer = await answer_to(gateway, stalled(), headers)
        assert (status, answer["error"]["code"]) == (408, "timeout")
        assert gateway.store.objects == {}


async def test_too_many_uploads_at_once_are_told_to_come_back(gateway: GatewayUnderTest) -> None:
    async with AsyncExitStack() as held:
        for number in range(MAX_UPLOADS):
            await held.enter_async_context(gateway.gateway.uploads.wait(f"t{number}"))
        error = await SDK(gateway.client()).refused(uploading())
        assert (error.status_code, error.code) == (503, "overloaded")
    await uploading()(gateway.client())


async def test_a_tenant_that_uploads_slowly_leaves_room_for_others(
    gateway: GatewayUnderTest,
) -> None:
    async with AsyncExitStack() as held:
        for _ in range(UPLOAD_SHARE):
            await held.enter_async_context(gateway.gateway.uploads.wait("acme"))
        error = await SDK(gateway.client()).refused(uploading())
        assert (error.status_code, error.code) == (429, "too_many_at_once")
        await uploading()(gateway.client("rival"))


async def test_files_are_listed_by_age_purpose_and_page(
    sdk: SDK, gateway: GatewayUnderTest
) -> None:
    made = [await gateway.upload() for _ in range(5)]
    other = (await sdk(uploading(b"x", purpose="vision"))).id
    await gateway.upload(tenant="rival")
    newest_first = [other, *made[::-1]]
    assert [f.id for f in await sdk.all(lambda c: c.files.list())] == newest_first
    assert [f.id for f in await sdk.all(lambda c: c.files.list(limit=2))] == newest_first
    oldest_first = await sdk.all(lambda c: c.files.list(order="asc", limit=4))
    assert [f.id for f in oldest_first] == newest_first[::-1]
    batch_only = await sdk.all(lambda c: c.files.list(purpose="batch", limit=2))
    assert [f.id for f in batch_only] == made[::-1]
    page = (await sdk(lambda c: c.files.list(limit=2))).to_dict()
    assert (page["first_id"], page["last_id"], page["has_more"]) == (other, made[4], True)


async def test_pages_go_on_behind_a_file_deleted_meanwhile(gateway: GatewayUnderTest) -> None:
    made = [await gateway.upload() for _ in range(4)]
    client = gateway.client()
    first = await client.files.list(limit=2)
    await client.files.delete(first.data[-1].id)
    rest = await client.files.list(after=first.data[-1].id)
    assert [f.id for f in rest.data] == made[1::-1]


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ({"limit": 0}, "integer_below_min_value", "limit"),
        ({"limit": 10_001}, "integer_above_max_value", "limit"),
        ({"extra_query": {"limit": "1.5"}}, "invalid_type", "limit"),
        ({"order": "newest"}, "invalid_value", "order"),
        ({"after": "file-none"}, "invalid_value", "after"),
    ],
)
async def test_a_wrong_list_query_is_a_bad_request(
    sdk: SDK, query: dict[str, Any], code: str, param: str
) -> None:
    error = await sdk.refused(lambda c: c.files.list(**query))
    assert isinstance(error, BadRequestError)
    assert (error.code, error.param) == (code, param)


async def test_a_deleted_file_is_gone_at_once(sdk: SDK, gateway: GatewayUnderTest) -> None:
    file_id = await gateway.upload()
    deleted = await sdk(lambda c: c.files.delete(file_id))
    assert deleted.to_dict() == {"id": file_id, "object": "file", "deleted": True}
    for call in (
        lambda c: c.files.retrieve(file_id),
        lambda c: c.files.content(file_id),
        lambda c: c.files.delete(file_id),
    ):
        assert isinstance(await sdk.refused(call), NotFoundError)
    assert await sdk.all(lambda c: c.files.list()) == []


@pytest.mark.parametrize("call", ["retrieve", "content", "delete"])
@pytest.mark.parametrize("whose", ["nobody", "rival"])
async def test_a_file_that_is_not_the_tenants_is_not_found(
    sdk: SDK, gateway: GatewayUnderTest, call: str, whose: str
) -> None:
    file_id = "file-none" if whose == "nobody" else await gateway.upload(tenant="rival")
    error = await sdk.refused(lambda c: getattr(c.files, call)(file_id))
    assert isinstance(error, NotFoundError)
    assert f"No such File object: {file_id}" in error.message
    assert (error.type, error.param) == ("invalid_request_error", "id")


async def test_an_expired_file_is_gone_at_that_second() -> None:
    clock = ManualClock()
    async with running_gateway(clock=clock) as gateway:
        client = gateway.client()
        file = await uploading(expires_after={"anchor": "created_at", "seconds": 3600})(client)
        clock.advance(3599)
        assert await client.files.retrieve(file.id) == file
        clock.advance(1)
        for call in (client.files.retrieve, client.files.content, client.files.delete):
            with pytest.raises(NotFoundError):
                await call(file.id)
        assert [f.id async for f in client.files.list()] == []
