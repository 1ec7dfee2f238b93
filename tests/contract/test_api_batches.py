"""/v1/batches through the official SDK: every answer and every error of the contract."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace
from typing import Any

import pytest
from openai import APIStatusError, BadRequestError, ConflictError, NotFoundError
from openai.types import Batch

from api.accounts.keys import create_key
from schemas.records import BatchCancel, BatchCreate, BatchError, BatchStatus, Usage
from tests.support.gateway import SDK, TIMEOUTS, GatewayUnderTest, running_gateway
from tests.support.waiting import eventually

NULLABLE = {
    *("model", "errors", "output_file_id", "error_file_id", "in_progress_at", "expires_at"),
    *("finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at"),
    *("cancelled_at", "request_counts", "usage", "metadata"),
}


def creating(**changes: Any) -> Any:
    body = {
        "input_file_id": "file-none",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        **changes,
    }
    return lambda client: client.batches.create(**body)


async def test_a_new_batch_is_validating_and_has_every_field(
    sdk: SDK, gateway: GatewayUnderTest
) -> None:
    file_id = await gateway.upload()
    batch = await sdk(creating(input_file_id=file_id, metadata={"team": "🚀"}))
    assert isinstance(batch, Batch)
    assert batch.status == "validating"
    assert batch.object == "batch"
    assert batch.input_file_id == file_id
    assert batch.expires_at == batch.created_at + 86_400
    assert batch.metadata == {"team": "🚀"}
    raw = batch.to_dict(exclude_unset=False)
    assert set(raw) >= NULLABLE
    assert raw["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert raw["usage"] == {
        "input_tokens": 0,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 0,
    }
    assert await sdk(lambda c: c.batches.retrieve(batch.id)) == batch


async def test_the_create_command_carries_the_file_as_the_gateway_knew_it(
    gateway: GatewayUnderTest,
) -> None:
    file_id = await gateway.upload(b'{"custom_id": "1"}\n')
    await gateway.create(file_id)
    (command,) = gateway.commands(BatchCreate)
    assert isinstance(command, BatchCreate)
    assert command.input is not None
    assert command.input.key == f"files/acme/{file_id}"
    assert command.input.size_bytes == 19
    assert command.input_purpose == "batch"
    assert command.window_s == 86_400


@pytest.mark.parametrize("whose", ["nobody's", "another tenant's", "a deleted one"])
async def test_an_unknown_file_is_no_error_at_create(gateway: GatewayUnderTest, whose: str) -> None:
    file_id = "file-none"
    if whose != "nobody's":
        tenant = "rival" if whose == "another tenant's" else "acme"
        file_id = await gateway.upload(tenant=tenant)
        if tenant == "acme":
            await gateway.client().files.delete(file_id)
    await gateway.create(file_id)
    (command,) = gateway.commands(BatchCreate)
    assert isinstance(command, BatchCreate)
    assert (command.input_file_id, command.input, command.input_purpose) == (file_id, None, None)


async def test_one_file_may_be_used_by_two_batches(gateway: GatewayUnderTest) -> None:
    file_id = await gateway.upload()
    assert await gateway.create(file_id) != await gateway.create(file_id)


@pytest.mark.parametrize(
    ("changes", "code", "param", "says"),
    [
        ({"endpoint": "/v1/foo"}, "invalid_value", "endpoint", "Supported values: "),
        ({"endpoint": "/v1/moderations"}, "invalid_value", "endpoint", "Invalid endpoint: "),
        ({"completion_window": "48h"}, "invalid_value", "completion_window", "'48h'"),
        (
            {"metadata": {"tags": ["a"]}},
            "invalid_type",
            "metadata.tags",
            "Invalid type for 'metadata.tags': expected a string, but got an array instead.",
        ),
        (
            {"metadata": {str(i): "v" for i in range(17)}},
            "object_above_max_properties",
            "metadata",
            "17 properties",
        ),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 60}},
            "integer_below_min_value",
            "output_expires_after.seconds",
            ">= 3600",
        ),
        (
            {"extra_body": {"input_file_id": None}},
            "missing_required_parameter",
            "input_file_id",
            "Missing required parameter: 'input_file_id'.",
        ),
        ({"extra_body": {"windows": 1}}, "unknown_parameter", "windows", "'windows'"),
    ],
)
async def test_a_wrong_create_is_a_bad_request_that_names_the_parameter(
    sdk: SDK, changes: dict[str, Any], code: str, param: str, says: str
) -> None:
    error = await sdk.refused(creating(**changes))
    assert isinstance(error, BadRequestError)
    assert (error.code, error.param, error.type) == (code, param, "invalid_request_error")
    assert says in error.message


async def test_a_snapshot_is_shown_field_by_field(sdk: SDK, gateway: GatewayUnderTest) -> None:
    batch_id = await gateway.create()
    await gateway.show(
        batch_id,
        status=BatchStatus.COMPLETED,
        in_progress_at_ms=1_700_000_001_999,
        finalizing_at_ms=1_700_000_002_000,
        completed_at_ms=1_700_000_003_000,
        model="m1",
        output_file_id="file-out",
        error_file_id="file-err",
        total=5,
        completed=3,
        failed=2,
        usage=Usage(input_tokens=10, cached_tokens=4, output_tokens=7, reasoning_tokens=2),
    )
    batch = await sdk(lambda c: c.batches.retrieve(batch_id))
    assert batch.status == "completed"
    assert (batch.in_progress_at, batch.finalizing_at, batch.completed_at) == (
        1_700_000_001,
        1_700_000_002,
        1_700_000_003,
    )
    assert (batch.model, batch.output_file_id, batch.error_file_id) == (
        "m1",
        "file-out",
        "file-err",
    )
    assert batch.errors is None
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (5, 3, 2)
    assert (batch.usage.total_tokens, batch.usage.input_tokens_details.cached_tokens) == (17, 4)
    assert batch.usage.output_tokens_details.reasoning_tokens == 2


async def test_validation_errors_are_listed(sdk: SDK, gateway: GatewayUnderTest) -> None:
    batch_id = await gateway.create()
    await gateway.show(
        batch_id,
        status=BatchStatus.FAILED,
        failed_at_ms=1_700_000_001_000,
        errors=(
            BatchError(code="invalid_json_line", message="not JSON", line=3),
            BatchError(code="invalid_request", message="no file", param="file_id"),
        ),
    )
    batch = await sdk(lambda c: c.batches.retrieve(batch_id))
    assert batch.errors.object == "list"
    assert [(e.code, e.line, e.param) for e in batch.errors.data] == [
        ("invalid_json_line", 3, None),
        ("invalid_request", None, "file_id"),
    ]


async def test_forty_five_batches_are_paged_newest_first_each_once(
    sdk: SDK, gateway: GatewayUnderTest
) -> None:
    made = [await gateway.create() for _ in range(45)]
    found = await sdk.all(lambda c: c.batches.list())
    assert [b.id for b in found] == made[::-1]
    page = (await gateway.client().batches.list()).to_dict()
    assert page["first_id"] == made[-1]
    assert page["last_id"] == made[25]
    assert page["has_more"] is True


async def test_pages_stay_in_order_while_batches_are_created(gateway: GatewayUnderTest) -> None:
    made = [await gateway.create() for _ in range(5)]
    client = gateway.client()
    first = await client.batches.list(limit=2)
    await gateway.create()
    rest = await client.batches.list(limit=100, after=first.data[-1].id)
    assert [b.id for b in [*first.data, *rest.data]] == made[::-1]
    assert rest.has_more is False


async def test_an_empty_list_is_empty(sdk: SDK, gateway: GatewayUnderTest) -> None:
    await gateway.create(tenant="rival")
    page = await sdk(lambda c: c.batches.list())
    assert page.to_dict() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ({"limit": 0}, "integer_below_min_value", "limit"),
        ({"limit": -5}, "integer_below_min_value", "limit"),
        ({"limit": 101}, "integer_above_max_value", "limit"),
        ({"extra_query": {"limit": "ten"}}, "invalid_type", "limit"),
        ({"extra_query": {"limit": "9" * 50}}, "invalid_type", "limit"),
        ({"extra_query": {"limit": ""}}, "invalid_type", "limit"),
        ({"after": "batch_none"}, "invalid_value", "after"),
        ({"extra_query": {"page": "2"}}, "unknown_parameter", "page"),
    ],
)
async def test_a_wrong_list_query_is_a_bad_request(
    sdk: SDK, query: dict[str, Any], code: str, param: str
) -> None:
    error = await sdk.refused(lambda c: c.batches.list(**query))
    assert isinstance(error, BadRequestError)
    assert (error.code, error.param) == (code, param)


async def test_limits_at_their_bounds_are_taken(sdk: SDK, gateway: GatewayUnderTest) -> None:
    await gateway.create()
    assert len((await sdk(lambda c: c.batches.list(limit=1))).data) == 1
    assert len((await sdk(lambda c: c.batches.list(limit=100))).data) == 1


@pytest.mark.parametrize("call", ["retrieve", "cancel"])
@pytest.mark.parametrize("whose", ["nobody", "rival"])
async def test_a_batch_that_is_not_the_tenants_is_not_found(
    sdk: SDK, gateway: GatewayUnderTest, call: str, whose: str
) -> None:
    batch_id = "batch_none" if whose == "nobody" else await gateway.create(tenant="rival")
    error = await sdk.refused(lambda c: getattr(c.batches, call)(batch_id))
    assert isinstance(error, NotFoundError)
    assert f"No batch found with id '{batch_id}'." in error.message
    assert (error.type, error.code, error.param) == ("invalid_request_error", None, None)
    assert gateway.commands(BatchCancel) == []


@pytest.mark.parametrize(
    "live", [BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING]
)
async def test_a_live_batch_is_cancelling_once_it_was_cancelled(
    sdk: SDK, gateway: GatewayUnderTest, live: BatchStatus
) -> None:
    batch_id = await gateway.create()
    await gateway.show(batch_id, status=live, in_progress_at_ms=1_700_000_000_000)
    cancelled = await sdk(lambda c: c.batches.cancel(batch_id))
    assert cancelled.status == "cancelling"
    assert cancelled.cancelling_at is not None
    again = await sdk(lambda c: c.batches.cancel(batch_id))
    assert again == cancelled == await sdk(lambda c: c.batches.retrieve(batch_id))
    assert len(gateway.commands(BatchCancel)) == 1


async def test_a_cancelled_batch_may_be_cancelled_again(
    sdk: SDK, gateway: GatewayUnderTest
) -> None:
    batch_id = await gateway.create()
    await gateway.show(batch_id, status=BatchStatus.CANCELLED, cancelled_at_ms=1_700_000_000_000)
    assert (await sdk(lambda c: c.batches.cancel(batch_id))).status == "cancelled"
    assert gateway.commands(BatchCancel) == []


@pytest.mark.parametrize("end", [BatchStatus.COMPLETED, BatchStatus.FAILED, BatchStatus.EXPIRED])
async def test_an_ended_batch_cannot_be_cancelled(
    gateway: GatewayUnderTest, end: BatchStatus
) -> None:
    batch_id = await gateway.create()
    await gateway.show(batch_id, status=end)
    with pytest.raises(ConflictError) as caught:
        await gateway.client(retries=2).batches.cancel(batch_id)
    assert caught.value.body == {
        "message": f"Cannot cancel a batch with status '{end.value}'.",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert "x-stainless-retry-count" in caught.value.request.headers
    assert caught.value.request.headers["x-stainless-retry-count"] == "0"


async def test_a_cancel_sees_the_end_that_is_in_the_log_already(gateway: GatewayUnderTest) -> None:
    batch_id = await gateway.create()
    gateway.log.held = True
    showing = asyncio.create_task(gateway.show(batch_id, status=BatchStatus.COMPLETED))
    cancelling = asyncio.create_task(gateway.client().batches.cancel(batch_id))
    await asyncio.sleep(0.2)
    assert not cancelling.done()
    gateway.log.held = False
    gateway.log.wake()
    with pytest.raises(ConflictError):
        await cancelling
    await showing


@pytest.mark.parametrize("place", ["header", "body"])
async def test_the_same_key_and_request_give_the_same_batch(
    sdk: SDK, gateway: GatewayUnderTest, place: str
) -> None:
    key: dict[str, Any] = (
        {"extra_headers": {"Idempotency-Key": "k1"}}
        if place == "header"
        else {"extra_body": {"idempotency_key": "k1"}}
    )
    first = await sdk(creating(metadata={"a": "1", "b": "2"}, **key))
    again = await sdk(creating(metadata={"b": "2", "a": "1"}, **key))
    assert again == first
    assert len(gateway.commands(BatchCreate)) == 1
    await gateway.show(first.id, status=BatchStatus.IN_PROGRESS)
    assert (await sdk(creating(metadata={"a": "1", "b": "2"}, **key))).status == "in_progress"


async def test_the_same_key_with_another_request_conflicts(
    sdk: SDK, gateway: GatewayUnderTest
) -> None:
    key = {"Idempotency-Key": "k1"}
    first = await sdk(creating(extra_headers=key))
    error = await sdk.refused(creating(extra_headers=key, endpoint="/v1/embeddings"))
    assert isinstance(error, ConflictError)
    assert "Idempotency conflict: " in error.message
    assert error.response.headers["x-should-retry"] == "false"
    other = await gateway.client("rival").batches.create(
        input_file_id="file-none",
        endpoint="/v1/embeddings",
        completion_window="24h",
        extra_headers=key,
    )
    assert other.id != first.id


async def test_creates_that_race_with_one_key_agree_on_the_first_in_the_log(
    gateway: GatewayUnderTest,
) -> None:
    client, file_id = gateway.client(), await gateway.upload()
    gateway.log.held = True

    async def create(endpoint: str) -> Batch | APIStatusError:
        key = {"Idempotency-Key": "k"}
        try:
            made: Batch = await creating(
                input_file_id=file_id, endpoint=endpoint, extra_headers=key
            )(client)
        except APIStatusError as error:
            return error
        return made

    endpoints = ["/v1/embeddings", "/v1/responses"] * 2
    racing = [asyncio.create_task(create(endpoint)) for endpoint in endpoints]
    await eventually(lambda: len(gateway.commands(BatchCreate)) == len(racing))
    gateway.log.held = False
    gateway.log.wake()
    answers = await asyncio.gather(*racing)
    first = gateway.commands(BatchCreate)[0]
    assert isinstance(first, BatchCreate)
    won = [a for a in answers if isinstance(a, Batch)]
    assert len(won) == 2
    assert {(b.id, b.endpoint) for b in won} == {(first.batch_id, first.endpoint)}
    assert all(isinstance(a, Batch | ConflictError) for a in answers)


async def test_a_create_is_answered_from_its_own_record_when_reading_lags() -> None:
    async with running_gateway(timeouts=replace(TIMEOUTS, read_back_s=0.1)) as gateway:
        file_id = await gateway.upload()
        client = gateway.client()
        gateway.log.held = True
        batch = await creating(input_file_id=file_id)(client)
        assert batch.status == "validating"
        error = await SDK(client).refused(
            creating(input_file_id=file_id, extra_headers={"Idempotency-Key": "k"})
        )
        assert (error.status_code, error.response.headers["retry-after"]) == (503, "1")


async def test_what_is_not_json_is_a_bad_request_in_the_envelope(
    gateway: GatewayUnderTest,
) -> None:
    http = gateway.http()
    for body in (b"", b"{", b"[]", b'"x"', b"[" * 100_000, b"\xff\xfe", b'{"a": NaN}'):
        async with http.post("/v1/batches", data=body) as answer:
            assert answer.status == 400
            error = (await answer.json())["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["type"] == "invalid_request_error"


async def test_a_huge_json_body_is_too_large(gateway: GatewayUnderTest) -> None:
    body = io.BytesIO(b" " * (1024 * 1024 + 1))
    async with gateway.http().post("/v1/batches", data=body) as answer:
        assert answer.status == 413
        assert (await answer.json())["error"]["code"] == "request_too_large"


async def test_a_batch_keeps_the_key_that_created_it(gateway: GatewayUnderTest) -> None:
    key, gateway.keys["acme"] = await create_key(gateway.log, "acme", "nightly")
    batch_id = await gateway.create()
    (command,) = gateway.commands(BatchCreate)
    assert isinstance(command, BatchCreate)
    assert command.key_id == key.key_id
    shown = await gateway.client().batches.retrieve(batch_id)
    assert shown.model_dump()["api_key_id"] == key.key_id
