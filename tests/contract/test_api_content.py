"""A file's content: whole and in ranges, with headers that can't be misused, cut off or stalled."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from tests.support.gateway import GatewayUnderTest

DATA = bytes(range(256)) * 4096


async def upload(gateway: GatewayUnderTest, name: str = "data.bin", data: bytes = DATA) -> str:
    made = await gateway.client().files.create(file=(name, data), purpose="user_data")
    return f"/v1/files/{made.id}/content"


async def test_the_whole_content_comes_with_its_length_and_a_tag(
    gateway: GatewayUnderTest,
) -> None:
    url = await upload(gateway)
    async with gateway.http().get(url) as answer:
        assert answer.status == 200
        assert await answer.read() == DATA
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert answer.headers["Accept-Ranges"] == "bytes"
        assert answer.content_length == len(DATA)
        assert answer.headers["ETag"].startswith('"')


async def test_a_head_request_gets_the_headers_only(gateway: GatewayUnderTest) -> None:
    url = await upload(gateway)
    async with gateway.http().head(url) as answer:
        assert (answer.status, answer.content_length) == (200, len(DATA))
        assert await answer.read() == b""


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-99", 0, 100),
        ("bytes=1000-", 1000, len(DATA)),
        ("bytes=-10", len(DATA) - 10, len(DATA)),
        ("bytes=-99999999999", 0, len(DATA)),
        (f"bytes=5-{len(DATA) * 2}", 5, len(DATA)),
        (f"bytes={len(DATA) - 1}-{len(DATA) - 1}", len(DATA) - 1, len(DATA)),
    ],
)
async def test_a_range_is_served_as_asked(
    gateway: GatewayUnderTest, asked: str, start: int, end: int
) -> None:
    url = await upload(gateway)
    for method in ("GET", "HEAD"):
        async with gateway.http().request(method, url, headers={"Range": asked}) as answer:
            assert answer.status == 206
            assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(DATA)}"
            assert answer.content_length == end - start
            assert await answer.read() == (DATA[start:end] if method == "GET" else b"")


@pytest.mark.parametrize(
    "asked", [f"bytes={len(DATA)}-", "bytes=9999999999-9999999999", "bytes=-0"]
)
async def test_a_range_behind_the_end_is_not_satisfiable(
    gateway: GatewayUnderTest, asked: str
) -> None:
    url = await upload(gateway)
    async with gateway.http().get(url, headers={"Range": asked}) as answer:
        assert answer.status == 416
        assert answer.headers["Content-Range"] == f"bytes */{len(DATA)}"
        assert (await answer.json())["error"]["code"] == "range_not_satisfiable"


@pytest.mark.parametrize(
    "asked", ["bytes=5-2", "bytes=-", "lines=1-2", "bytes=0-1,5-6", "bytes=a-b", "bytes 1-2"]
)
async def test_what_is_not_one_good_range_is_ignored(gateway: GatewayUnderTest, asked: str) -> None:
    url = await upload(gateway)
    async with gateway.http().get(url, headers={"Range": asked}) as answer:
        assert answer.status == 200
        assert await answer.read() == DATA


async def test_a_range_of_another_version_is_answered_with_the_whole(
    gateway: GatewayUnderTest,
) -> None:
    url = await upload(gateway)
    async with gateway.http().head(url) as answer:
        tag = answer.headers["ETag"]
    for if_range, status in ((tag, 206), ('"other"', 200)):
        headers = {"Range": "bytes=0-9", "If-Range": if_range}
        async with gateway.http().get(url, headers=headers) as answer:
            assert answer.status == status


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("plain name-1.jsonl", 'filename="plain name-1.jsonl"'),
        ('a"; filename="evil.exe', 'filename="a__ filename__evil.exe"'),
        ("naïve.jsonl", "filename*=UTF-8''na%C3%AFve.jsonl"),
        ("../../etc/passwd", "filename*=UTF-8''..%2F..%2Fetc%2Fpasswd"),
        ("a\r\nX-Evil: 1", "filename*=UTF-8''a%0D%0AX-Evil%3A%201"),
    ],
)
async def test_a_file_name_cannot_break_out_of_its_header(
    gateway: GatewayUnderTest, name: str, header: str
) -> None:
    url = await upload(gateway, name)
    async with gateway.http().head(url) as answer:
        disposition = answer.headers["Content-Disposition"]
        assert disposition.startswith("attachment; ")
        assert header in disposition
        assert "X-Evil" not in answer.headers
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_store_that_fails_before_the_first_byte_is_an_error_answer(
    gateway: GatewayUnderTest,
) -> None:
    url = await upload(gateway)
    gateway.store.fail(1, "size")
    async with gateway.http().get(url) as answer:
        assert answer.status == 503
        assert answer.headers["Retry-After"] == "1"
        assert (await answer.json())["error"]["code"] == "unavailable"


async def test_bytes_that_are_missing_in_the_store_are_never_taken_for_a_whole(
    gateway: GatewayUnderTest,
) -> None:
    url = await upload(gateway)
    (key,) = gateway.store.objects
    gateway.store.objects[key] = DATA[:-1]
    # At once, and not when the connection has been idle for too long.
    async with asyncio.timeout(60), gateway.http().get(url) as answer:
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
    del gateway.store.objects[key]
    async with gateway.http().get(url) as answer:
        assert answer.status == 503


async def test_a_download_given_up_by_its_client_does_no_harm(gateway: GatewayUnderTest) -> None:
    url = await upload(gateway, data=DATA * 20)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    key = gateway.keys["acme"]
    writer.write(f"GET {url} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n".encode())
    assert b"200" in await reader.readline()
    writer.transport.abort()
    async with gateway.http().get(url, headers={"Range": "bytes=0-9"}) as answer:
        assert answer.status == 206
