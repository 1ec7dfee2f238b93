"""What batches cost, as callers see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from schemas.records import BatchStatus, ModelUsage, Usage
from streams.domain.billing.prices import PriceBookError
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
