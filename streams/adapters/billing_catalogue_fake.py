"""Meters, products and prices in memory with Stripe's rules, for tests; its faults are yours.

| rule | here |
|---|---|
| an event name belongs to one meter, archived or not | creating a second is refused |
| a product's id is taken for good | creating it again is refused, unless it is the same step |
| a lookup key belongs to one price | it moves to the price that is created or restored last |
| a new price needs an active product and an active meter | refused otherwise |
| a creation with the Idempotency-Key of an earlier one | answered as that was |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from streams.adapters.meter_fake import Fault
from streams.domain.billing.prices.catalogue import (
    CUSTOMER_KEY,
    FORMULA,
    VALUE_KEY,
    Action,
    Found,
    MeterThere,
    PriceThere,
    ProductThere,
    Step,
    Terms,
    Thing,
    Wanted,
)
from streams.ports.billing_catalogue import CatalogueRefused, CatalogueUnavailable


def _no_fault() -> Fault:
    return Fault.NONE


@dataclass
class FakeBillingCatalogue:
    """Stripe's catalogue. fault: asked at each call."""

    fault: Callable[[], Fault] = _no_fault
    meters: dict[str, MeterThere] = field(default_factory=dict)
    products: dict[str, ProductThere] = field(default_factory=dict)
    prices: dict[str, PriceThere] = field(default_factory=dict)
    #: Steps that were done, in order.
    done: list[Step] = field(default_factory=list)
    _created: set[Step] = field(default_factory=set)

    async def read(self) -> Found:
        """See BillingCatalogue.read."""
        self._after(self._before())
        return Found(
            tuple(reversed(self.meters.values())),
            tuple(reversed(self.products.values())),
            tuple(reversed(self.prices.values())),
        )

    async def apply(self, step: Step) -> None:
        """See BillingCatalogue.apply."""
        fault = self._before()
        if step not in self._created:
            self._do(step)
            self.done.append(step)
        if step.action is Action.CREATE:
            self._created.add(step)
        self._after(fault)

    async def close(self) -> None:
        """Nothing to close."""

    def _do(self, step: Step) -> None:
        match step.thing:
            case Thing.METER:
                self._meter(step)
            case Thing.PRODUCT:
                self._product(step)
            case Thing.PRICE:
                self._price(step)

    def _meter(self, step: Step) -> None:
        if step.action is Action.CREATE:
            if any(m.event_name == step.event_name for m in self.meters.values()):
                raise CatalogueRefused(f"A meter exists for {step.event_name}.")
            found_id = f"mtr_{len(self.meters)}"
            mapped = (FORMULA, CUSTOMER_KEY, VALUE_KEY)
            self.meters[found_id] = MeterThere(found_id, step.event_name, True, *mapped)
        else:
            self.meters[step.id] = replace(self.meters[step.id], active=True)

    def _product(self, step: Step) -> None:
        if step.action is Action.CREATE:
            if step.id in self.products:
                raise CatalogueRefused(f"Product already exists: {step.id}.")
            self.products[step.id] = ProductThere(step.id, True, step.event_name)
        else:
            active = step.action is Action.RESTORE
            self.products[step.id] = replace(self.products[step.id], active=active)

    def _price(self, step: Step) -> None:
        if step.action is Action.ARCHIVE:
            self.prices[step.id] = replace(self.prices[step.id], active=False)
            return
        price = self._created_price(step) if step.wanted else self.prices[step.id]
        for other in list(self.prices.values()):
            if other.lookup_key == step.event_name:
                self.prices[other.id] = replace(other, lookup_key=None)
        self.prices[price.id] = replace(price, active=True, lookup_key=step.event_name)

    def _created_price(self, step: Step) -> PriceThere:
        wanted, name = step.wanted, step.event_name
        assert isinstance(wanted, Wanted)  # noqa: S101 - narrows for the type checker
        meter_id, product = self._meter_id(name), self.products.get(name)
        if meter_id is None or product is None or not product.active:
            raise CatalogueRefused(f"No active meter or product for {name}.")
        terms = Terms(name, meter_id, wanted.currency, wanted.unit_amount)
        return PriceThere(f"price_{len(self.prices)}", True, name, None, terms)

    def _meter_id(self, event_name: str) -> str | None:
        named = (m for m in self.meters.values() if m.active and m.event_name == event_name)
        return next((meter.id for meter in named), None)

    def _before(self) -> Fault:
        fault = self.fault()
        if fault in (Fault.RATE_LIMITED, Fault.SERVER_ERROR, Fault.TIMEOUT):
            raise CatalogueUnavailable(fault.value)
        return fault

    @staticmethod
    def _after(fault: Fault) -> None:
        if fault in (Fault.TIMEOUT_AFTER, Fault.ANSWER_LOST):
            raise CatalogueUnavailable(fault.value)
