"""Where meters, products and prices are set up: Stripe, or a fake of it."""

from __future__ import annotations

from typing import Protocol

from streams.domain.billing.prices.catalogue import Found, Step


class CatalogueFailed(Exception):  # noqa: N818 - a state of the other side, not of the caller
    """It did not do what it was asked to; the message is for the operator."""


class CatalogueUnavailable(CatalogueFailed):
    """Whether it was done is not known; reading again and planning anew is right."""


class CatalogueRefused(CatalogueFailed):
    """It will not do this; the message says why, in the other side's words."""


class BillingCatalogue(Protocol):
    """Meters, products and prices. One user at a time."""

    async def read(self) -> Found:
        """Everything there is, page by page. Raises CatalogueUnavailable, CatalogueRefused."""
        ...

    async def apply(self, step: Step) -> None:
        """Does one step of a plan made of the last read(), in the plan's order.

        The same step twice has the effect of once. Raises CatalogueUnavailable, CatalogueRefused.
        """
        ...

    async def close(self) -> None:
        """Disconnects. Idempotent."""
        ...
