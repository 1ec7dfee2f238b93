"""Retry over HTTP: the new batch's file, what it takes from its origin, repeats and refusals."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from typing import Any

import pytest

from api.gateway import SHARE
from schemas.errors import LineCode
from schemas.records import BatchCreate, BatchStatus, FileRecord, ObjectRef
from schemas.topics import FILE
from streams.domain.ids import line_request_id
from streams.domain.outcome import render
from tests.support.gateway import GatewayUnderTest

_ENDED = BatchStatus.COMPLETED
#: A byte order mark, CRLF, and no newline at the end: all as callers send them.
_LINES = [
    b'{"custom_id": "a", "n": 1}',
    b'{"custom_id": "b",   "n": 2}\r',
    '{"custom_id": "ü", "n": 3}'.encode(),
    b'{"custom_id": "d", "n": 4}',
]
_INPUT = b"\xef\xbb\xbf" + b"\n".join(_LINES)


async def _ended(
    gateway: GatewayUnderTest,
    *failed: int,
    status: BatchStatus = _ENDED,
    data: bytes = _INPUT,
    **changes: Any,
) -> str:
    """An ended batch whose error file has these lines."""
    batch_id = await gateway.create(await gateway.upload(data))
    lines = [
        render.unanswered(batch_id, n, b"null", LineCode.BATCH_EXPIRED)
        if n % 2
        else render.answered(batch_id, n, b'"x"', 400, "r", b'{"text":"' + b"y" * 300_000 + b'"}')
        for n in failed
    ]
    error_file_id = f"file-error-{batch_id}" if failed else None
    if error_file_id is not None:
        await _file(gateway, error_file_id, b"".join(line + b"\n" for line in lines))
    at = {} if status is BatchStatus.IN_PROGRESS else {f"{status.value}_at_ms": 1}
    await gateway.show(batch_id, status=status, error_file_id=error_file_id, **at, **changes)
    return batch_id


async def _file(gateway: GatewayUnderTest, file_id: str, data: bytes) -> None:
    gateway.store.objects[f"batches/x/{file_id}"] = data
    record = FileRecord(
        file_id=file_id,
        tenant="acme",
        object=ObjectRef(key=f"batches/x/{file_id}", size_bytes=len(data)),
        filename="e.jsonl",
        purpose="batch_output",
        created_at_ms=1,
    )
    await gateway.gateway.publish(FILE, file_id, record)


async def _retry(
    gateway: GatewayUnderTest,
    batch_id: str,
    body: Any = None,
    key: str | None = None,
    tenant: str = "acme",
) -> tuple[int, dict[str, Any]]:
    headers = {} if key is None else {"Idempotency-Key": key}
    url = f"/v1/batches/{batch_id}/retry"
    async with gateway.http(tenant).post(url, json=body, headers=headers) as answer:
        return answer.status, await answer.json()


async def _input_of(gateway: GatewayUnderTest, batch: dict[str, Any]) -> bytes:
    return (await gateway.client().files.content(batch["input_file_id"])).content


@pytest.mark.parametrize(
    "status", [BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED]
)
@pytest.mark.parametrize("failed", [(0,), (1, 3), (0, 1, 2, 3), (2,)])
async def test_the_new_batch_has_exactly_the_failed_lines_in_their_order(
    gateway: GatewayUnderTest, failed: tuple[int, ...], status: BatchStatus
) -> None:
    origin = await _ended(gateway, *failed, status=status)
    code, batch = await _retry(gateway, origin)
    assert (code, batch["status"], batch["origin_batch_id"]) == (200, "validating", origin)
    assert await _input_of(gateway, batch) == b"".join(_LINES[n] + b"\n" for n in failed)
    shown = (await gateway.client().batches.retrieve(batch["id"])).to_dict()
    assert shown == batch
    assert (await gateway.client().batches.retrieve(origin)).to_dict()["origin_batch_id"] is None


async def test_what_is_not_said_is_as_in_the_origin(gateway: GatewayUnderTest) -> None:
    origin = await _ended(
        gateway, 0, metadata={"job": "7"}, priority=9, output_expires_after_s=7200
    )
    _, same = await _retry(gateway, origin, {})
    assert (same["metadata"], same["priority"]) == ({"job": "7"}, 9)
    _, other = await _retry(gateway, origin, {"metadata": {"job": "8"}, "priority": -1})
    assert (other["metadata"], other["priority"]) == ({"job": "8"}, -1)
    creates = [c for c in gateway.commands(BatchCreate) if isinstance(c, BatchCreate)]
    made = [c.output_expires_after_s for c in creates if c.origin_batch_id == origin]
    assert made == [7200, 7200]
    assert all(c.key_id is not None and c.key_id.startswith("key_") for c in creates)


async def test_a_repeat_with_its_key_makes_nothing_and_without_key_another_batch(
    gateway: GatewayUnderTest,
) -> None:
    origin = await _ended(gateway, 1)
    _, first = await _retry(gateway, origin, key="k")
    files = len(gateway.log.of(FILE))
    await gateway.client().files.delete(f"file-error-{origin}")
    assert (await _retry(gateway, origin, key="k"))[1]["id"] == first["id"]
    assert len(gateway.log.of(FILE)) == files + 1, "the delete, and no new file"
    code, answer = await _retry(gateway, origin, {"priority": 1}, key="k")
    assert (code, answer["error"]["code"]) == (409, "idempotency_conflict")
    origin = await _ended(gateway, 1)
    assert (await _retry(gateway, origin, key="k"))[0] == 409, "of another origin"
    made = {(await _retry(gateway, origin))[1]["id"] for _ in range(2)}
    assert len(made) == 2


@pytest.mark.parametrize("status", list(BatchStatus)[1:])
async def test_a_batch_that_runs_or_has_no_failed_line_is_refused(
    gateway: GatewayUnderTest, status: BatchStatus
) -> None:
    ended = status in (_ENDED, BatchStatus.EXPIRED, BatchStatus.CANCELLED, BatchStatus.FAILED)
    origin = await _ended(gateway, status=BatchStatus.IN_PROGRESS)
    await gateway.show(origin, status=status, **{f"{status.value}_at_ms": 1} if ended else {})
    code, answer = await _retry(gateway, origin)
    assert code == 409
    assert f"status '{status.value}'" in answer["error"]["message"]
    assert ("no failed lines" in answer["error"]["message"]) is ended


@pytest.mark.parametrize("gone", ["input", "error", "bytes"])
async def test_where_a_file_is_gone_the_answer_says_so_and_nothing_is_left_behind(
    gateway: GatewayUnderTest, gone: str
) -> None:
    origin = await _ended(gateway, 1)
    batch = await gateway.client().batches.retrieve(origin)
    if gone == "bytes":
        (key,) = [key for key in gateway.store.objects if key.startswith("files/")]
        del gateway.store.objects[key]
    else:
        file_id = batch.input_file_id if gone == "input" else batch.error_file_id
        await gateway.client().files.delete(str(file_id))
    before = set(gateway.store.objects)
    code, answer = await _retry(gateway, origin)
    assert (code, answer["error"]["code"]) == (409, "file_gone")
    assert set(gateway.store.objects) == before
    assert len(gateway.commands(BatchCreate)) == 1


async def test_an_error_file_that_does_not_fit_makes_no_batch(gateway: GatewayUnderTest) -> None:
    for line in (json.dumps({"id": line_request_id("batch_other", 0)}).encode(), b"junk"):
        origin = await _ended(gateway, 1)
        gateway.store.objects[f"batches/x/file-error-{origin}"] = line + b"\n" + b" " * 500
        before = set(gateway.store.objects)
        code, answer = await _retry(gateway, origin)
        assert (code, "does not fit" in answer["error"]["message"]) == (409, True)
        assert set(gateway.store.objects) == before


async def test_another_tenants_batch_does_not_exist(gateway: GatewayUnderTest) -> None:
    origin = await _ended(gateway, 1)
    assert (await _retry(gateway, origin, tenant="rival"))[0] == 404


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"input_file_id": "f"}, "unknown_parameter"),
        ({"priority": 101}, "integer_above_max_value"),
        ({"completion_window": "1s"}, "invalid_value"),
        ({"metadata": 1}, "invalid_type"),
    ],
)
async def test_a_wrong_body_is_a_bad_request(
    gateway: GatewayUnderTest, body: Any, code: str
) -> None:
    origin = await _ended(gateway, 1)
    status, answer = await _retry(gateway, origin, body)
    assert (status, answer["error"]["code"]) == (400, code)


async def test_a_store_in_trouble_leaves_nothing_half_visible(gateway: GatewayUnderTest) -> None:
    origin = await _ended(gateway, 1, 3)
    before = set(gateway.store.objects)
    for operation in ("get_range", "stream", "close"):
        gateway.store.fail(1, operation)
        code, _ = await _retry(gateway, origin)
        gateway.store.fail(0)
        if code != 200:
            assert code == 503
            assert set(gateway.store.objects) == before
            return
    raise AssertionError("no failure was seen")


async def test_a_tenant_that_makes_as_many_batches_as_it_may_is_told_to_come_back(
    gateway: GatewayUnderTest,
) -> None:
    batch_id = await _ended(gateway, 1)
    async with AsyncExitStack() as held:
        for _ in range(SHARE):
            await held.enter_async_context(gateway.gateway.makings.wait("acme"))
        status, answer = await _retry(gateway, batch_id)
        assert (status, answer["error"]["code"]) == (429, "too_many_at_once")
    assert (await _retry(gateway, batch_id))[0] == 200
