"""What every request meets: keys, ids, headers, the error envelope, and a gateway in trouble."""

from __future__ import annotations

import asyncio
import re
from typing import NoReturn

import pytest
from openai import AsyncOpenAI, AuthenticationError, InternalServerError, NotFoundError

from api.accounts.keys import change_key, create_key, list_keys, revoke_key
from api.errors import NotFound
from api.log_fake import FakeLog
from api.read_model.queries import Caller
from schemas.topics import ACCOUNT
from tests.support.gateway import SDK, GatewayUnderTest, running_gateway

ENVELOPE = {"message", "type", "param", "code"}


async def with_key(gateway: GatewayUnderTest, key: str) -> AsyncOpenAI:
    client = AsyncOpenAI(base_url=gateway.url, api_key=key, max_retries=0)
    gateway.clients.append(client)
    return client


@pytest.mark.parametrize("key", ["bh_wrong", "x" * 5000])
async def test_a_wrong_key_is_an_authentication_error(gateway: GatewayUnderTest, key: str) -> None:
    client = await with_key(gateway, key)
    with pytest.raises(AuthenticationError) as caught:
        await client.batches.list()
    assert (caught.value.code, caught.value.type) == ("invalid_api_key", "invalid_request_error")
    assert caught.value.response.headers["www-authenticate"] == "Bearer"
    assert key not in caught.value.message


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "bh_x", "Bearer ÿ🚀"]
)
async def test_no_key_is_an_authentication_error(
    gateway: GatewayUnderTest, header: str | None
) -> None:
    headers = {} if header is None else {"Authorization": header}
    async with gateway.http(None).get("/v1/batches", headers=headers) as answer:
        assert answer.status == 401
        assert (await answer.json())["error"]["code"] == "invalid_api_key"


async def test_a_key_made_a_moment_ago_works(gateway: GatewayUnderTest) -> None:
    _, secret = await create_key(gateway.log, "new", "a key")
    client = await with_key(gateway, secret)
    assert (await client.batches.list()).data == []


async def test_a_revoked_key_stops_working_at_once(gateway: GatewayUnderTest) -> None:
    key, secret = await create_key(gateway.log, "new", "a key")
    client = await with_key(gateway, secret)
    await client.batches.list()
    await revoke_key(gateway.log, key)
    await gateway.gateway.sync()
    with pytest.raises(AuthenticationError):
        await client.batches.list()


async def test_no_change_made_at_the_same_time_brings_a_revoked_key_back() -> None:
    log = FakeLog()
    record, _ = await create_key(log, "acme", "one")
    revoked = await revoke_key(log, record)
    changed = await change_key(log, record, {"budget_micros": 5})
    # As compaction leaves it: of each record key the last.
    last = {read.key: read for read in log.of(ACCOUNT)}
    kept = FakeLog()
    for read in last.values():
        await kept.send(ACCOUNT, read.key, read.record)
    for some in (log, kept):
        (found,) = await list_keys(some.reader([ACCOUNT]))
        assert found.revoked_at_ms == revoked.revoked_at_ms
    async with running_gateway(log=kept) as gateway:
        assert changed.budget_micros == 5
        assert await gateway.gateway.queries.caller_of_key(record.secret_sha256) is None


async def test_a_key_revoked_while_it_is_looked_up_is_not_remembered(
    gateway: GatewayUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, secret = await create_key(gateway.log, "new", "a key")
    await gateway.gateway.sync()
    look_up = gateway.gateway.queries.caller_of_key

    async def revoked_meanwhile(hashed: str) -> Caller | None:
        found = await look_up(hashed)
        await revoke_key(gateway.log, key)
        await gateway.gateway.sync()
        return found

    monkeypatch.setattr(gateway.gateway.queries, "caller_of_key", revoked_meanwhile)
    client = await with_key(gateway, secret)
    await client.batches.list()
    monkeypatch.undo()
    with pytest.raises(AuthenticationError):
        await client.batches.list()


async def test_two_keys_of_a_tenant_see_the_same_objects(gateway: GatewayUnderTest) -> None:
    batch_id = await gateway.create()
    _, secret = await create_key(gateway.log, "acme", "another")
    client = await with_key(gateway, secret)
    assert (await client.batches.retrieve(batch_id)).id == batch_id


async def test_every_answer_has_an_id_a_time_and_safe_headers(gateway: GatewayUnderTest) -> None:
    ids = set()
    for path in ("/v1/batches", "/v1/batches/none", "/v1/nothing", "/", "/v1/files"):
        async with gateway.http().get(path) as answer:
            assert re.fullmatch(r"req_[0-9a-f]{32}", answer.headers["x-request-id"])
            assert answer.headers["openai-processing-ms"].isdigit()
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Cache-Control"] == "no-store"
            assert "aiohttp" not in answer.headers["Server"]
            ids.add(answer.headers["x-request-id"])
    assert len(ids) == 5


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/audio/speech", "/v1/batches/", "/v2/files"])
@pytest.mark.parametrize("tenant", ["acme", None])
async def test_an_unknown_path_is_not_found_in_the_envelope(
    gateway: GatewayUnderTest, path: str, tenant: str | None
) -> None:
    async with gateway.http(tenant).get(path) as answer:
        assert answer.status == 404
        error = (await answer.json())["error"]
        assert set(error) == ENVELOPE
        assert error["message"] == f"Invalid URL (GET {path})"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/batches/batch_1", "GET, HEAD, POST"),
        ("GET", "/v1/batches/batch_1/cancel", "POST"),
        ("PUT", "/v1/files", "GET, HEAD, POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("PATCH", "/v1/batches", "GET, HEAD, POST"),
    ],
)
async def test_another_method_is_not_allowed_in_the_envelope(
    gateway: GatewayUnderTest, method: str, path: str, allowed: str
) -> None:
    async with gateway.http().request(method, path) as answer:
        assert answer.status == 405
        assert answer.headers["Allow"] == allowed
        error = (await answer.json())["error"]
        assert set(error) == ENVELOPE
        assert error["code"] == "method_not_supported"


@pytest.mark.parametrize(
    "path",
    ["/v1/batches/%FF%FE", "/v1/files/%00", "/v1/files/..%2F..%2Fetc", "/v1/models/%ED%A0%80"],
)
async def test_a_strange_id_is_just_not_found(gateway: GatewayUnderTest, path: str) -> None:
    _, answer = await raw(gateway, f"GET {path} HTTP/1.1\r\nHost: x\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404")
    assert b'"error"' in answer


@pytest.mark.parametrize(
    "head",
    [
        b"NOT HTTP AT ALL\r\n",
        b"GET /v1/batches HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000 + b"\r\n",
        b"GET /v1/files/" + b"y" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n",
        b"POST /v1/batches HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n",
    ],
    ids=["no HTTP", "a huge header", "a huge path", "a bad length"],
)
async def test_what_is_not_good_http_gets_the_envelope_too(
    gateway: GatewayUnderTest, head: bytes
) -> None:
    status, answer = await raw(gateway, head)
    assert 400 <= status < 500
    assert b'{"error":{"message":"' in answer


async def raw(gateway: GatewayUnderTest, head: bytes) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    key = gateway.keys["acme"]
    writer.write(head + f"Authorization: Bearer {key}\r\nConnection: close\r\n\r\n".encode())
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    return int(answer.split(b" ")[1]), answer


async def test_models_are_those_of_the_upstream_table(sdk: SDK) -> None:
    models = await sdk.all(lambda c: c.models.list())
    assert [(m.id, m.object, m.owned_by) for m in models] == [
        ("a/b", "model", "one"),
        ("m1", "model", "one"),
    ]
    assert (await sdk(lambda c: c.models.retrieve("a/b"))).id == "a/b"
    error = await sdk.refused(lambda c: c.models.retrieve("m2"))
    assert isinstance(error, NotFoundError)
    assert (error.code, error.param) == ("model_not_found", "model")


async def test_while_the_log_is_away_reads_of_what_is_known_go_on(
    gateway: GatewayUnderTest,
) -> None:
    batch_id = await gateway.create()
    client = gateway.client()
    gateway.log.unreachable = True
    assert (await client.batches.retrieve(batch_id)).id == batch_id
    assert len((await client.batches.list()).data) == 1
    # But nobody can say that something does not exist.
    with pytest.raises(InternalServerError) as caught:
        await client.batches.retrieve("batch_none")
    assert (caught.value.status_code, caught.value.code) == (503, "unavailable")
    assert caught.value.response.headers["retry-after"] == "1"
    gateway.log.unreachable = False
    with pytest.raises(NotFoundError):
        await gateway.client(retries=5).batches.retrieve("batch_none")


async def test_a_gateway_that_has_not_read_the_topics_yet_says_so() -> None:
    async with running_gateway() as gateway:
        gateway.gateway.follower.caught_up = False
        with pytest.raises(InternalServerError) as caught:
            await gateway.client().batches.list()
        assert (caught.value.status_code, caught.value.code) == (503, "starting")


async def test_too_many_requests_at_once_are_told_to_come_back(
    gateway: GatewayUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.http.middleware.MAX_IN_FLIGHT", 0)
    with pytest.raises(InternalServerError) as caught:
        await gateway.client().batches.list()
    assert (caught.value.status_code, caught.value.code) == (503, "overloaded")
    monkeypatch.setattr("api.http.middleware.MAX_IN_FLIGHT", 1)
    for _ in range(3):
        await gateway.client().batches.list()


async def test_a_tenants_slow_requests_leave_room_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("api.http.middleware.MAX_IN_FLIGHT", 8)
    begun, may_end = asyncio.Semaphore(0), asyncio.Event()

    async def slow(*_: object) -> NoReturn:
        begun.release()
        await may_end.wait()
        raise NotFound("It is gone.")

    async with running_gateway() as gateway:
        monkeypatch.setattr(gateway.gateway.queries, "file", slow)
        reading = [asyncio.create_task(_status(gateway, "/v1/files/file-1")) for _ in range(6)]
        for _ in reading:
            await begun.acquire()
        async with gateway.http().get("/v1/batches") as answer:
            assert answer.status == 429
            assert answer.headers["Retry-After"] == "1"
            assert (await answer.json())["error"]["code"] == "too_many_at_once"
        await gateway.client("rival").batches.list()
        # Whoever has no key is told so, as ever.
        assert await _status(gateway, "/v1/batches", tenant=None) == 401
        may_end.set()
        assert await asyncio.gather(*reading) == [404] * 6
        await gateway.client().batches.list()


async def _status(gateway: GatewayUnderTest, path: str, tenant: str | None = "acme") -> int:
    async with gateway.http(tenant).get(path) as answer:
        return answer.status


async def test_a_defect_is_an_error_with_an_id_and_without_its_trace(
    gateway: GatewayUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError("a secret detail")

    monkeypatch.setattr(gateway.gateway.queries, "batches", broken)
    async with gateway.http().get("/v1/batches") as answer:
        assert answer.status == 500
        text = await answer.text()
        assert "secret" not in text
        assert '"type":"server_error"' in text


async def test_a_flood_of_unknown_ids_asks_the_broker_once_at_a_time(
    gateway: GatewayUnderTest,
) -> None:
    http = gateway.http()
    before = gateway.log.ends_asked

    async def ask(number: int) -> int:
        async with http.get(f"/v1/batches/batch_{number}") as answer:
            return answer.status

    assert set(await asyncio.gather(*(ask(n) for n in range(300)))) == {404}
    assert gateway.log.ends_asked - before < 150
