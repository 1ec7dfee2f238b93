"""Creates where a budget applies: the batch carries what it will cost, and nothing is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api.accounts.keys import change_key, create_key
from api.accounts.tenants import set_limits
from schemas.records import BatchCreate
from schemas.topics import ACCOUNT
from streams.settings import Settings
from tests.support.gateway import GatewayUnderTest, running_gateway

_LINE = (
    b'{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m1", '
    b'"max_tokens": 100, "messages": [{"role": "user", "content": "four"}]}}\n'
)


@pytest.fixture
async def priced(tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    path = tmp_path / "prices.yaml"
    path.write_text('currency: usd\nmodels:\n  m1: {input: "2.00", output: "4.00"}\n')
    async with running_gateway(settings=Settings(prices_file=path)) as gateway:
        yield gateway


async def _limit(gateway: GatewayUnderTest) -> None:
    budget = {"budget_micros": 0}
    await set_limits(gateway.log, gateway.log.reader([ACCOUNT]), "acme", budget)
    await gateway.gateway.sync()


async def _estimate(gateway: GatewayUnderTest, data: bytes = _LINE, tenant: str = "acme") -> object:
    batch_id = await gateway.create(await gateway.upload(data, tenant), tenant)
    creates = [c for c in gateway.commands(BatchCreate) if isinstance(c, BatchCreate)]
    return next(c.estimated_cost_micros for c in creates if c.batch_id == batch_id)


async def test_where_a_tenant_has_a_budget_its_batches_carry_their_estimate(
    priced: GatewayUnderTest,
) -> None:
    assert await _estimate(priced) is None
    await _limit(priced)
    assert await _estimate(priced, 3 * _LINE) == 3 * (1 * 2 + 100 * 4) // 2
    assert await _estimate(priced, tenant="rival") is None


async def test_where_a_key_has_a_budget_its_batches_carry_their_estimate(
    priced: GatewayUnderTest,
) -> None:
    key, secret = await create_key(priced.log, "acme", "nightly")
    await change_key(priced.log, key, {"budget_micros": 5})
    await priced.gateway.sync()
    assert await _estimate(priced) is None, "another key"
    priced.keys["acme"] = secret
    assert await _estimate(priced) == (1 * 2 + 100 * 4) // 2


async def test_what_has_no_estimate_is_created_all_the_same(priced: GatewayUnderTest) -> None:
    await _limit(priced)
    assert await _estimate(priced, _LINE.replace(b"m1", b"m2")) is None, "it has no price"
    await priced.create()
    assert len(priced.commands(BatchCreate)) == 2, "its file is unknown"
