"""Meters, products and prices at Stripe.

Calls go out one after another, each creation with an Idempotency-Key that follows from what is
created, so that a run that was cut off, or two at once, make nothing twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from typing import Any, TypeVar

import aiohttp
import msgspec
import stripe

from streams.adapters.meter_stripe import API_VERSION
from streams.domain.billing.prices.catalogue import (
    CUSTOMER_KEY,
    FORMULA,
    INTERVAL,
    MARK,
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

_TIMEOUT_S = 30.0
#: Of what can't be reached and of 5xx, by the library; of 429, with these pauses, here.
_RETRIES = 3
_PAUSES_S = (1.0, 2.0, 4.0, 8.0)
_PAGE = 100
#: More objects of one kind than this are no catalogue that can be compared.
_MOST = 100_000
_MAX_MESSAGE = 500

T = TypeVar("T")
Call = Callable[[], Awaitable[Any]]


class StripeBillingCatalogue:
    """Calls Stripe with a secret key, or a restricted one that may write all three.

    pauses_s: before each repeat of a call that came too often.
    """

    def __init__(
        self, key: str, api_base: str | None = None, pauses_s: tuple[float, ...] = _PAUSES_S
    ) -> None:
        self._http = stripe.AIOHTTPClient(timeout=_TIMEOUT_S)
        bases: Any = {} if api_base is None else {"api": api_base}
        client = stripe.StripeClient(
            key,
            http_client=self._http,
            base_addresses=bases,
            stripe_version=API_VERSION,
            max_network_retries=_RETRIES,
        )
        self._v1 = client.v1
        self._pauses_s = pauses_s
        #: Ids of meters that may have prices, by event name.
        self._meters: dict[str, str] = {}

    async def read(self) -> Found:
        """See BillingCatalogue.read."""
        meters = await self._all(self._v1.billing.meters, _Meter)
        products = await self._all(self._v1.products, _Product)
        prices = await self._all(self._v1.prices, _Price)
        found = Found(
            tuple(meter.there() for meter in meters),
            tuple(product.there() for product in products),
            tuple(price.there() for price in prices),
        )
        self._meters = {meter.event_name: meter.id for meter in found.meters if meter.active}
        return found

    async def apply(self, step: Step) -> None:
        """See BillingCatalogue.apply."""
        match step.thing:
            case Thing.METER:
                await self._apply_meter(step)
            case Thing.PRODUCT:
                await self._apply_product(step)
            case Thing.PRICE:
                await self._apply_price(step)

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.close_async()  # type: ignore[no-untyped-call]

    async def _apply_meter(self, step: Step) -> None:
        meters, wanted = self._v1.billing.meters, step.wanted
        if wanted is None:
            made = await self._call(lambda: meters.reactivate_async(step.id))
        else:
            asked: Any = {
                "display_name": wanted.name,
                "event_name": wanted.event_name,
                "default_aggregation": {"formula": FORMULA},
                "customer_mapping": {"type": "by_id", "event_payload_key": CUSTOMER_KEY},
                "value_settings": {"event_payload_key": VALUE_KEY},
            }
            made = await self._call(lambda: meters.create_async(asked, _once(step)))
        self._meters[step.event_name] = made.id

    async def _apply_product(self, step: Step) -> None:
        products, wanted = self._v1.products, step.wanted
        if wanted is None:
            active = step.action is Action.RESTORE
            await self._call(lambda: products.update_async(step.id, {"active": active}))
            return
        asked: Any = {"id": step.id, "name": wanted.name, "metadata": {MARK: step.event_name}}
        await self._call(lambda: products.create_async(asked, _once(step)))

    async def _apply_price(self, step: Step) -> None:
        prices, name = self._v1.prices, step.event_name
        asked: Any = {"active": step.action is not Action.ARCHIVE}
        if step.action is not Action.ARCHIVE:
            asked |= {"lookup_key": name, "transfer_lookup_key": True}
        if step.wanted is None:
            await self._call(lambda: prices.update_async(step.id, asked))
            return
        asked |= self._terms(step.wanted) | {"metadata": {MARK: name}}
        await self._call(lambda: prices.create_async(asked, _once(step)))

    def _terms(self, wanted: Wanted) -> dict[str, Any]:
        meter = self._meters[wanted.event_name]
        return {
            "product": wanted.event_name,
            "currency": wanted.currency,
            "billing_scheme": "per_unit",
            # The library would write a small Decimal as a power of ten.
            "unit_amount_decimal": f"{wanted.unit_amount:f}",
            "recurring": {"interval": INTERVAL, "usage_type": "metered", "meter": meter},
        }

    async def _all(self, service: Any, kind: type[T]) -> list[T]:
        """Every object of a kind, page by page; one page that fails is asked for again."""
        found: list[T] = []
        asked: dict[str, Any] = {"limit": _PAGE}
        while True:
            page = await self._call(lambda: service.list_async(dict(asked)))
            found += _read(page, kind)
            if not page.has_more or not page.data:
                return found
            if len(found) >= _MOST:
                raise CatalogueRefused(f"The account has more than {_MOST:,} objects of one kind.")
            asked["starting_after"] = page.data[-1].id

    async def _call(self, call: Call) -> Any:
        """One call, again after a pause if it came too often. Raises as the port says."""
        for pause_s in self._pauses_s:
            with contextlib.suppress(stripe.RateLimitError):
                async with _told():
                    return await call()
            await asyncio.sleep(pause_s)
        try:
            async with _told():
                return await call()
        except stripe.RateLimitError as error:
            raise CatalogueUnavailable("Stripe says that calls come too often.") from error


def _read(page: Any, kind: type[T]) -> list[T]:
    try:
        return [msgspec.convert(one.to_dict(), kind) for one in page.data]
    except msgspec.ValidationError as error:
        raise CatalogueRefused(f"Stripe's answer is not as expected: {error}.") from error


def _once(step: Step) -> Any:
    """Options of a creation: asked for again, it is answered as it was."""
    digest = hashlib.sha256(repr(step).encode()).hexdigest()
    return {"idempotency_key": f"backhaul-{step.thing}-{digest[:40]}"}


@contextlib.asynccontextmanager
async def _told() -> AsyncIterator[None]:
    """Turns what Stripe's library raises into what the port promises, but for 429."""
    try:
        async with asyncio.timeout((_TIMEOUT_S + 10) * (_RETRIES + 1)):
            yield
    except stripe.RateLimitError:
        raise
    except (stripe.APIConnectionError, aiohttp.ClientError, TimeoutError) as error:
        raise CatalogueUnavailable("Stripe can't be reached.") from error
    except (stripe.AuthenticationError, stripe.PermissionError) as error:
        raise CatalogueRefused(f"Stripe does not allow it: {_message(error)}") from error
    except stripe.InvalidRequestError as error:
        raise CatalogueRefused(f"Stripe refuses: {_message(error)}") from error
    except stripe.StripeError as error:
        raise CatalogueUnavailable(f"Stripe failed: {_message(error)}") from error


def _message(error: stripe.StripeError) -> str:
    return str(error.user_message or error)[:_MAX_MESSAGE]


class _Keyed(msgspec.Struct):
    event_payload_key: str


class _Aggregation(msgspec.Struct):
    formula: str


class _Meter(msgspec.Struct):
    id: str
    event_name: str
    status: str
    default_aggregation: _Aggregation
    customer_mapping: _Keyed
    value_settings: _Keyed

    def there(self) -> MeterThere:
        return MeterThere(
            id=self.id,
            event_name=self.event_name,
            active=self.status == "active",
            formula=self.default_aggregation.formula,
            customer_key=self.customer_mapping.event_payload_key,
            value_key=self.value_settings.event_payload_key,
        )


class _Product(msgspec.Struct):
    id: str
    active: bool
    metadata: dict[str, str] = {}

    def there(self) -> ProductThere:
        return ProductThere(self.id, self.active, self.metadata.get(MARK))


class _Recurring(msgspec.Struct):
    interval: str
    interval_count: int = 1
    meter: str | None = None


class _Price(msgspec.Struct):
    id: str
    active: bool
    currency: str
    product: str
    metadata: dict[str, str] = {}
    lookup_key: str | None = None
    unit_amount_decimal: Decimal | None = None
    transform_quantity: object = None
    recurring: _Recurring | None = None

    def there(self) -> PriceThere:
        mark = self.metadata.get(MARK)
        return PriceThere(self.id, self.active, mark, self.lookup_key, self._terms())

    def _terms(self) -> Terms | None:
        """None where it is no plain price of a meter by the month."""
        often, amount = self.recurring, self.unit_amount_decimal
        if often is None or often.meter is None or often.interval_count != 1:
            return None
        if amount is None or self.transform_quantity is not None:
            return None
        return Terms(self.product, often.meter, self.currency, amount, often.interval)
