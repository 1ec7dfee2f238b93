"""Brings Stripe's meters, products and prices into line with the price book."""

from __future__ import annotations

from collections.abc import Callable

from streams.domain.billing.prices.catalogue import Plan, Step, Wanted, plan
from streams.ports.billing_catalogue import BillingCatalogue, CatalogueFailed

Told = Callable[[Step], None]


class SyncBroken(Exception):  # noqa: N818 - how far it came, not what went wrong
    """A step failed; those before it are done, and a new plan goes on from there."""

    def __init__(self, step: Step, done: int, left: int, cause: CatalogueFailed) -> None:
        super().__init__(str(cause))
        self.step = step
        self.done = done
        self.left = left


async def planned(catalogue: BillingCatalogue, wanted: tuple[Wanted, ...]) -> Plan:
    """What has to change. Raises CatalogueFailed."""
    return plan(wanted, await catalogue.read())


async def carry_out(catalogue: BillingCatalogue, steps: tuple[Step, ...], told: Told) -> None:
    """Does the steps one after another, and tells of each that is done. Raises SyncBroken."""
    for done, step in enumerate(steps):
        try:
            await catalogue.apply(step)
        except CatalogueFailed as error:
            raise SyncBroken(step, done, len(steps) - done, error) from error
        told(step)
