"""Whose heavy work is done now: some at once, of one tenant fewer, and what fails apart."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from api.shares import Place, Shares


class Turns:
    """Turns, given in the order in which they are asked for."""

    def __init__(self, at_once: int, of_a_tenant: int) -> None:
        """at_once: all tenants' together; so many more for what has failed before.

        of_a_tenant: its partitions are as many as all turns, and its work may take long.
        """
        self._sound = Shares(at_once, of_a_tenant)
        # What fails may take all the time it is given before it does, at every try.
        self._failing = Shares(at_once, of_a_tenant)

    def turn(self, tenant: str, *, failing: bool = False) -> AbstractAsyncContextManager[Place]:
        """Waits for a turn, and keeps it. failing: whether this failed when it was last tried."""
        return (self._failing if failing else self._sound).wait(tenant)
