"""A gateway on fakes, and the SDK in both its forms."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.gateway import SDK, GatewayUnderTest, running_gateway


@pytest.fixture
async def gateway() -> AsyncIterator[GatewayUnderTest]:
    """A gateway with the default settings, and keys for the tenants 'acme' and 'rival'."""
    async with running_gateway() as running:
        yield running


@pytest.fixture(params=["async", "sync"])
async def sdk(request: pytest.FixtureRequest, gateway: GatewayUnderTest) -> SDK:
    """The official SDK as 'acme', asynchronous and synchronous."""
    return gateway.sdk(request.param)
