"""Heavy work at once: one tenant can not take all the places."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from api.errors import RateLimited, Unavailable
from api.shares import Shares


async def test_a_tenant_that_has_its_share_is_told_so_and_others_go_on() -> None:
    shares = Shares(3, 2)
    async with AsyncExitStack() as held:
        for tenant in ("acme", "acme"):
            await held.enter_async_context(shares.now(tenant, "reports"))
        with pytest.raises(RateLimited):
            shares.now("acme", "reports")
        await held.enter_async_context(shares.now("rival", "reports"))
        with pytest.raises(Unavailable):
            shares.now("third", "reports")
    async with shares.now("acme", "reports"), shares.now("third", "reports"):
        pass


async def test_a_place_that_is_lent_is_anothers_and_still_counts_for_its_tenant() -> None:
    shares = Shares(1, 1)
    async with shares.now("acme", "reports") as place:
        async with place.lent(), shares.now("rival", "reports"):
            with pytest.raises(RateLimited):
                shares.now("acme", "reports")
        with pytest.raises(Unavailable):
            shares.now("rival", "reports")


async def test_whoever_fails_while_its_place_is_lent_does_not_give_it_back_twice() -> None:
    shares = Shares(1, 1)
    with pytest.raises(ConnectionResetError):
        async with shares.now("acme", "reports") as place, place.lent():
            raise ConnectionResetError
    async with shares.now("acme", "reports"):
        with pytest.raises(Unavailable):
            shares.now("rival", "reports")


async def test_whoever_leaves_while_it_waits_for_its_lent_place_takes_none() -> None:
    shares = Shares(1, 1)
    taken = asyncio.Event()

    async def lends() -> None:
        async with shares.now("acme", "reports") as place, place.lent():
            await taken.wait()

    lending = asyncio.create_task(lends())
    await asyncio.sleep(0)
    async with shares.now("rival", "reports"):
        taken.set()
        await asyncio.sleep(0)
        lending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await lending
    async with shares.now("acme", "reports"):
        with pytest.raises(Unavailable):
            shares.now("rival", "reports")


async def test_those_who_wait_for_their_own_share_keep_no_place_from_others() -> None:
    shares = Shares(2, 1)

    async def waits() -> None:
        async with shares.wait("acme"):
            pass

    async with shares.wait("acme"):
        waiting = [asyncio.create_task(waits()) for _ in range(3)]
        await asyncio.sleep(0)
        async with shares.now("rival", "estimates"):
            pass
    await asyncio.gather(*waiting)
