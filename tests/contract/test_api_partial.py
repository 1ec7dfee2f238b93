"""A running batch's output and error file over HTTP: ids, ranges, headers, refusals, the end."""

from __future__ import annotations

import json
from typing import Any

import pytest

from schemas.headers import PARTIAL_LINES
from schemas.records import BatchStatus, FileRecord, ObjectRef, OutcomeKind
from schemas.topics import FILE
from streams.domain import keys, segment
from streams.domain.segment import RenderedLine
from tests.support.gateway import GatewayUnderTest

_COMPLETED, _FAILED = OutcomeKind.COMPLETED, OutcomeKind.FAILED


def _text(line: int) -> bytes:
    return json.dumps({"custom_id": f"r{line}", "pad": "x" * line}).encode()


def _put(
    gateway: GatewayUnderTest, batch_id: str, name: str, *lines: int, failed: Any = ()
) -> None:
    copies = [RenderedLine(n, n, _FAILED if n in failed else _COMPLETED, _text(n)) for n in lines]
    gateway.store.objects[keys.segment(batch_id, name)] = segment.build(copies)


def _file(*lines: int) -> bytes:
    return b"".join(_text(line) + b"\n" for line in lines)


async def _running(gateway: GatewayUnderTest, prefix: int = 0) -> str:
    batch_id = await gateway.create()
    await gateway.show(batch_id, status=BatchStatus.IN_PROGRESS, total=6, accepted_prefix=prefix)
    return batch_id


async def _get(
    gateway: GatewayUnderTest, file_id: str, wanted: str | None = None, tenant: str = "acme"
) -> tuple[int, Any, bytes]:
    headers = {} if wanted is None else {"Range": wanted}
    url = f"/v1/files/{file_id}/content"
    async with gateway.http(tenant).get(url, headers=headers) as answer:
        return answer.status, answer.headers, await answer.read()


async def _shown(gateway: GatewayUnderTest, batch_id: str) -> dict[str, Any]:
    return (await gateway.client().batches.retrieve(batch_id)).to_dict()


async def test_the_ids_are_shown_while_there_may_be_something_and_no_field_of_openai_changes(
    gateway: GatewayUnderTest,
) -> None:
    batch_id = await gateway.create()
    batch = await _shown(gateway, batch_id)
    assert (batch["partial_output_file_id"], batch["partial_error_file_id"]) == (None, None)
    for status in (BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING, BatchStatus.CANCELLING):
        await gateway.show(batch_id, status=status, total=6, accepted_prefix=1)
        batch = await _shown(gateway, batch_id)
        assert batch["partial_output_file_id"] == f"file-output-{batch_id}"
        assert batch["partial_error_file_id"] == f"file-error-{batch_id}"
        assert (batch["output_file_id"], batch["error_file_id"]) == (None, None)
    await gateway.show(
        batch_id,
        status=BatchStatus.COMPLETED,
        completed_at_ms=1,
        output_file_id=f"file-output-{batch_id}",
        accepted_prefix=0,
    )
    batch = await _shown(gateway, batch_id)
    assert batch["partial_output_file_id"] is None
    assert batch["output_file_id"] == f"file-output-{batch_id}"


async def test_what_is_certain_is_served_and_says_that_it_is_a_beginning(
    gateway: GatewayUnderTest,
) -> None:
    batch_id = await _running(gateway, prefix=3)
    _put(gateway, batch_id, "b", 2, 5)
    _put(gateway, batch_id, "a", 0, 1, failed=[1])
    status, headers, body = await _get(gateway, f"file-output-{batch_id}")
    assert (status, body) == (200, _file(0, 2))
    assert headers[PARTIAL_LINES] == "3"
    assert headers["Cache-Control"] == "no-store"
    assert "ETag" not in headers
    assert f'filename="{batch_id}_output.jsonl"' in headers["Content-Disposition"]
    status, _, body = await _get(gateway, f"file-error-{batch_id}")
    assert (status, body) == (200, _file(1))
    url = f"/v1/files/file-output-{batch_id}/content"
    async with gateway.http().head(url) as answer:
        assert (answer.status, answer.content_length) == (200, len(_file(0, 2)))


async def test_a_follower_gets_what_is_new_and_at_the_end_the_rest_of_the_file(
    gateway: GatewayUnderTest,
) -> None:
    batch_id = await _running(gateway)
    file_id = f"file-output-{batch_id}"
    status, headers, body = await _get(gateway, file_id, "bytes=0-")
    assert (status, headers[PARTIAL_LINES]) == (404, "0")
    _put(gateway, batch_id, "a", 0, 1)
    await gateway.show(batch_id, accepted_prefix=2)
    status, headers, held = await _get(gateway, file_id, "bytes=0-")
    assert (status, held) == (206, _file(0, 1))
    assert headers["Content-Range"] == f"bytes 0-{len(held) - 1}/*"
    status, headers, body = await _get(gateway, file_id, f"bytes={len(held)}-")
    assert (status, headers["Content-Range"]) == (416, f"bytes */{len(held)}")
    assert headers[PARTIAL_LINES] == "2"
    assert json.loads(body)["error"]["code"] == "range_not_satisfiable"
    _put(gateway, batch_id, "b", 2, 3)
    await gateway.show(batch_id, accepted_prefix=4)
    status, headers, body = await _get(gateway, file_id, f"bytes={len(held)}-")
    assert (status, body) == (206, _file(2, 3))
    held += body
    whole = _file(0, 1, 2, 3, 4, 5)
    await _assembled(gateway, batch_id, whole)
    status, headers, body = await _get(gateway, file_id, f"bytes={len(held)}-")
    assert (status, held + body) == (206, whole)
    assert headers["Content-Range"].endswith(f"/{len(whole)}")
    assert PARTIAL_LINES not in headers
    status, headers, _ = await _get(gateway, file_id, f"bytes={len(whole)}-")
    assert status == 416
    assert PARTIAL_LINES not in headers


async def _assembled(gateway: GatewayUnderTest, batch_id: str, whole: bytes) -> None:
    key = keys.assembled(batch_id, "attempt")
    gateway.store.objects[key] = whole
    file = FileRecord(
        file_id=f"file-output-{batch_id}",
        tenant="acme",
        object=ObjectRef(key=key, size_bytes=len(whole)),
        filename="out.jsonl",
        purpose="batch_output",
        created_at_ms=1,
    )
    await gateway.log.send(FILE, file.file_id, file)
    await gateway.show(
        batch_id,
        status=BatchStatus.COMPLETED,
        completed_at_ms=1,
        output_file_id=file.file_id,
        accepted_prefix=0,
    )


@pytest.mark.parametrize("kind", ["output", "error"])
async def test_another_tenant_and_a_batch_without_lines_find_nothing(
    gateway: GatewayUnderTest, kind: str
) -> None:
    batch_id = await _running(gateway, prefix=2)
    _put(gateway, batch_id, "a", 0, 1, failed=[1])
    assert (await _get(gateway, f"file-{kind}-{batch_id}"))[0] == 200
    status, headers, _ = await _get(gateway, f"file-{kind}-{batch_id}", tenant="rival")
    assert status == 404
    assert PARTIAL_LINES not in headers
    assert (await _get(gateway, f"file-{kind}-batch_none"))[0] == 404
    await gateway.show(batch_id, status=BatchStatus.EXPIRED, expired_at_ms=1)
    assert (await _get(gateway, f"file-{kind}-{batch_id}"))[0] == 404


async def test_a_store_in_trouble_is_an_error_that_may_be_tried_again(
    gateway: GatewayUnderTest,
) -> None:
    batch_id = await _running(gateway, prefix=1)
    _put(gateway, batch_id, "a", 0)
    file_id = f"file-output-{batch_id}"
    for operation in ("list", "get_range"):
        gateway.store.fail(1, operation)
        assert (await _get(gateway, file_id))[0] == 503
    assert (await _get(gateway, file_id))[0] == 200
