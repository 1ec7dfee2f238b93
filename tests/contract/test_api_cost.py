"""What batches cost, as callers see it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from schemas.records import BatchStatus, ModelUsage, Usage
from streams.domain.billing.prices.book import PriceBookError
from streams.domain.billing.prices.cost import money
from streams.settings import Settings
from tests.support.gateway import GatewayUnderTest, running_gateway

_BOOK = """
currency: eur
discounts: {24h: "0.25"}
models:
  m1: {input: "1.00", cached_input: "0.50", output: "4.00"}
  a/b: {input: "0.10", output: "0.40"}
"""
_USAGE = Usage(input_tokens=1_000_000, cached_tokens=200_000, output_tokens=10_000)


def _priced(tmp_path: Path, book: str = _BOOK) -> Settings:
    path = tmp_path / "prices.yaml"
    path.write_text(book)
    return Settings(prices_file=path)


async def _cost(gateway: GatewayUnderTest, batch_id: str) -> Any:
    batch = await gateway.client().batches.retrieve(batch_id)
    return batch.to_dict()["cost"]


async def test_without_a_price_book_a_batch_has_no_cost(gateway: GatewayUnderTest) -> None:
    batch_id = await gateway.create()
    await gateway.show(batch_id, model="m1", usage=_USAGE)
    assert await _cost(gateway, batch_id) is None


async def test_a_running_batch_shows_what_its_lines_cost_so_far(tmp_path: Path) -> None:
    async with running_gateway(settings=_priced(tmp_path)) as gateway:
        batch_id = await gateway.create()
        nothing = {"list": "0.000000", "discount": "0.000000", "billed": "0.000000"}
        assert await _cost(gateway, batch_id) == {
            **nothing,
            "currency": "eur",
            "status": "estimate",
        }
        await gateway.show(batch_id, status=BatchStatus.IN_PROGRESS, model="m1", usage=_USAGE)
        assert await _cost(gateway, batch_id) == {
            "list": "0.940000",
            "discount": "0.235000",
            "billed": "0.705000",
            "currency": "eur",
            "status": "estimate",
        }


async def test_an_ended_batch_with_several_models_costs_what_each_of_them_does(
    tmp_path: Path,
) -> None:
    async with running_gateway(settings=_priced(tmp_path)) as gateway:
        batch_id = await gateway.create()
        parts = (
            ModelUsage(model="a/b", usage=Usage(input_tokens=5_000_000)),
            ModelUsage(model="m1", usage=Usage(output_tokens=1_000_000)),
        )
        usage = Usage(input_tokens=5_000_000, output_tokens=1_000_000)
        ended = {"status": BatchStatus.CANCELLED, "cancelled_at_ms": 1}
        await gateway.show(batch_id, usage=usage, usage_by_model=parts, **ended)
        found = await _cost(gateway, batch_id)
        assert (found["list"], found["billed"]) == ("4.500000", "3.375000")
        assert found["status"] == "confirmed"
        await gateway.show(batch_id, usage_by_model=())
        assert await _cost(gateway, batch_id) is None


async def test_a_gateway_does_not_start_on_a_bad_price_book(tmp_path: Path) -> None:
    with pytest.raises(PriceBookError, match=r"prices\.yaml"):
        async with running_gateway(settings=_priced(tmp_path, "currency: euros")):
            pass


def _lines(*bodies: dict[str, Any]) -> bytes:
    lines = [
        {"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": body}
        for n, body in enumerate(bodies)
    ]
    return b"\n".join(json.dumps(line).encode() for line in lines)


def _chat(model: str, characters: int, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "x" * characters}], **more}


async def _estimate(
    gateway: GatewayUnderTest, file_id: str, *, tenant: str = "acme", **body: Any
) -> tuple[int, Any]:
    asked = {"endpoint": "/v1/chat/completions", **body}
    path = f"/v1/files/{file_id}/cost-estimate"
    async with gateway.http(tenant).post(path, json=asked) as answer:
        return answer.status, await answer.json()


async def test_a_files_cost_is_estimated_before_there_is_a_batch(tmp_path: Path) -> None:
    windows = {"24h": 86_400, "1h": 3600}
    settings = _priced(tmp_path).model_copy(update={"completion_windows": windows})
    async with running_gateway(settings=settings) as gateway:
        lines = _lines(_chat("m1", 4000, max_tokens=100), _chat("m1", 400), _chat("a/b", 40_000))
        file_id = await gateway.upload(lines + b"\nnot a line")
        status, found = await _estimate(gateway, file_id)
        assert status == 200
        assert found == {
            "object": "cost_estimate",
            "input_file_id": file_id,
            "endpoint": "/v1/chat/completions",
            "lines": 4,
            "unreadable_lines": 1,
            "input_tokens": 11_100,
            "output_tokens": 612,
            "cost": {"24h": _money(3626, 906), "1h": _money(3626, 1813)},
            "models": [
                {
                    "model": "m1",
                    "lines": 2,
                    "input_tokens": 1100,
                    "output_tokens": 356,
                    "cost": {"24h": _money(2524, 631), "1h": _money(2524, 1262)},
                },
                {
                    "model": "a/b",
                    "lines": 1,
                    "input_tokens": 10_000,
                    "output_tokens": 256,
                    "cost": {"24h": _money(1102, 275), "1h": _money(1102, 551)},
                },
            ],
            "assumptions": {
                "characters_per_token": 4,
                "output_tokens_without_limit": 256,
                "lines_without_limit": 2,
            },
        }
        _, found = await _estimate(gateway, file_id, completion_window="1h")
        assert set(found["cost"]) == {"1h"}


def _money(list_micros: int, discount_micros: int) -> dict[str, str]:
    return {
        "list": money(list_micros),
        "discount": money(discount_micros),
        "billed": money(list_micros - discount_micros),
        "currency": "eur",
    }


async def test_tokens_are_estimated_also_where_nothing_has_a_price(
    gateway: GatewayUnderTest,
) -> None:
    file_id = await gateway.upload(_lines(_chat("m1", 400)))
    _, found = await _estimate(gateway, file_id)
    assert (found["cost"], found["models"][0]["cost"]) == (None, None)
    assert found["input_tokens"] == 100


async def test_a_model_without_a_price_leaves_the_whole_without_one(tmp_path: Path) -> None:
    async with running_gateway(settings=_priced(tmp_path)) as gateway:
        file_id = await gateway.upload(_lines(_chat("m1", 400), _chat("other", 400)))
        _, found = await _estimate(gateway, file_id)
        assert found["cost"] is None
        assert [one["cost"] is None for one in found["models"]] == [False, True]


async def test_lines_of_a_stored_prompt_count_its_text_and_have_its_model_and_limit(
    gateway: GatewayUnderTest,
) -> None:
    text = "x" * 394 + "{{ a }}"
    version = {
        "messages": [{"role": "user", "content": text}],
        "model_config": {"model": "m1", "max_tokens": 10},
    }
    async with gateway.http().post("/v1/prompts", json={"slug": "s", **version}) as made:
        assert made.status == 200, await made.text()
    lines = _lines(
        *[{"prompt_slug": "s", "variables": {"a": "y" * 399}}] * 2,
        {"prompt_slug": "none"},
    )
    _, found = await _estimate(gateway, await gateway.upload(lines))
    known, unknown = found["models"]
    assert (known["model"], known["lines"]) == ("m1", 2)
    assert (known["input_tokens"], known["output_tokens"]) == (400, 20)
    assert (unknown["model"], unknown["output_tokens"]) == (None, 256)


async def test_others_files_can_not_be_estimated(gateway: GatewayUnderTest) -> None:
    file_id = await gateway.upload(_lines(_chat("m1", 400)))
    assert (await _estimate(gateway, file_id, tenant="rival"))[0] == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"endpoint": "/v1/none"}, "endpoint"),
        ({"endpoint": None}, "endpoint"),
        ({"completion_window": "99h"}, "completion_window"),
        ({"window": "24h"}, "window"),
    ],
)
async def test_a_request_that_means_nothing_is_refused(
    gateway: GatewayUnderTest, body: dict[str, Any], param: str
) -> None:
    status, found = await _estimate(gateway, await gateway.upload(), **body)
    assert (status, found["error"]["param"]) == (400, param)


async def test_what_no_batch_could_have_is_not_estimated(tmp_path: Path) -> None:
    async with running_gateway(settings=Settings(max_batch_lines=2)) as gateway:
        file_id = await gateway.upload(_lines(*[_chat("m1", 4)] * 3))
        status, found = await _estimate(gateway, file_id)
        assert (status, found["error"]["param"]) == (400, "id")
        made = await gateway.client().files.create(file=("f", b"x"), purpose="user_data")
        assert (await _estimate(gateway, made.id))[0] == 400
