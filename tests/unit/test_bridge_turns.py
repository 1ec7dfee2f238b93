"""Whose turn it is: neither one tenant nor those that fail can have all."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from api.bridge.turns import Turns
from tests.support.waiting import eventually


async def taken(turns: Turns, wanted: list[tuple[str, bool]]) -> list[str]:
    """Whose turns are given where all of them (tenant, failing) want one and keep it."""
    got: list[str] = []

    async def keep(tenant: str, failing: bool) -> None:
        async with turns.turn(tenant, failing=failing):
            got.append(tenant)
            await asyncio.Event().wait()

    async with AsyncExitStack() as stack:
        for tenant, failing in wanted:
            task = asyncio.create_task(keep(tenant, failing))
            stack.callback(task.cancel)
        await eventually(lambda: "last" in got)
    return got


async def test_a_tenant_has_only_its_share() -> None:
    got = await taken(Turns(4, 2), [*[("evil", False)] * 10, ("last", False)])
    assert got == ["evil", "evil", "last"]


async def test_what_fails_does_not_hold_up_what_does_not() -> None:
    failing = [(f"ill-{n}", True) for n in range(10)]
    got = await taken(Turns(4, 2), [*failing, ("last", False)])
    assert len(got) == 5
