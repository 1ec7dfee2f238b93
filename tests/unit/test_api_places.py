"""Places for heavy work: one tenant can't take them all."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from api.errors import RateLimited, Unavailable
from api.places import Places


async def test_a_tenant_that_has_its_share_is_told_so_and_others_go_on() -> None:
    places = Places(3, 2)
    async with AsyncExitStack() as held:
        for tenant in ("acme", "acme"):
            await held.enter_async_context(places.now(tenant, "reports"))
        with pytest.raises(RateLimited):
            places.now("acme", "reports")
        await held.enter_async_context(places.now("rival", "reports"))
        with pytest.raises(Unavailable):
            places.now("third", "reports")
    async with places.now("acme", "reports"), places.now("third", "reports"):
        pass


async def test_a_place_that_is_lent_is_anothers_and_still_counts_for_its_tenant() -> None:
    places = Places(1, 1)
    async with places.now("acme", "reports") as place:
        async with place.lent(), places.now("rival", "reports"):
            with pytest.raises(RateLimited):
                places.now("acme", "reports")
        with pytest.raises(Unavailable):
            places.now("rival", "reports")


async def test_whoever_fails_while_its_place_is_lent_does_not_give_it_back_twice() -> None:
    places = Places(1, 1)
    with pytest.raises(ConnectionResetError):
        async with places.now("acme", "reports") as place, place.lent():
            raise ConnectionResetError
    async with places.now("acme", "reports"):
        with pytest.raises(Unavailable):
            places.now("rival", "reports")


async def test_whoever_leaves_while_it_waits_for_its_lent_place_takes_none() -> None:
    places = Places(1, 1)
    taken = asyncio.Event()

    async def lends() -> None:
        async with places.now("acme", "reports") as place, place.lent():
            await taken.wait()

    lending = asyncio.create_task(lends())
    await asyncio.sleep(0)
    async with places.now("rival", "reports"):
        taken.set()
        await asyncio.sleep(0)
        lending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await lending
    async with places.now("acme", "reports"):
        with pytest.raises(Unavailable):
            places.now("rival", "reports")


async def test_those_who_wait_for_their_own_share_keep_no_place_from_others() -> None:
    places = Places(2, 1)

    async def waits() -> None:
        async with places.wait("acme"):
            pass

    async with places.wait("acme"):
        waiting = [asyncio.create_task(waits()) for _ in range(3)]
        await asyncio.sleep(0)
        async with places.now("rival", "estimates"):
            pass
    await asyncio.gather(*waiting)
