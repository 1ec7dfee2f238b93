"""What every BillingCatalogue promises: the fake, and Stripe's adapter where shapes allow."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from api.billing.sync import carry_out, planned
from streams.adapters.billing_catalogue_fake import FakeBillingCatalogue
from streams.adapters.billing_catalogue_stripe import StripeBillingCatalogue
from streams.domain.billing.prices.book import parse_prices
from streams.domain.billing.prices.catalogue import (
    Action,
    PriceThere,
    Step,
    Terms,
    Thing,
    wanted_of,
)
from streams.ports.billing_catalogue import (
    BillingCatalogue,
    CatalogueRefused,
    CatalogueUnavailable,
)
from tests.support.stripe_mock import running_stripe_mock

_BOOK = parse_prices(
    {"currency": "usd", "models": {"org/m": {"input": "0.00000002", "output": "0.60"}}}
)
WANTED = wanted_of(_BOOK, ["24h"])
_ONE = WANTED[0]
_NAME = _ONE.event_name


@pytest.fixture(params=["fake", "stripe-mock"])
async def any_catalogue(request: pytest.FixtureRequest) -> AsyncIterator[BillingCatalogue]:
    """A catalogue that at least judges the shape of what it is asked."""
    if request.param == "fake":
        yield FakeBillingCatalogue()
        return
    async with running_stripe_mock() as base:
        made = StripeBillingCatalogue("sk_test_123", base)
        yield made
        await made.close()


async def test_what_is_there_is_read_and_every_step_of_a_plan_is_taken(
    any_catalogue: BillingCatalogue,
) -> None:
    found = await planned(any_catalogue, WANTED)
    assert len(found.steps) == 3 * len(WANTED)
    done: list[Step] = []
    await carry_out(any_catalogue, found.steps, done.append)
    assert tuple(done) == found.steps


async def test_archiving_and_restoring_are_taken(any_catalogue: BillingCatalogue) -> None:
    await carry_out(any_catalogue, (await planned(any_catalogue, WANTED)).steps, lambda _: None)
    there = await any_catalogue.read()
    price = there.prices[0].id
    for step in (
        Step(Action.ARCHIVE, Thing.PRICE, _NAME, price),
        Step(Action.ARCHIVE, Thing.PRODUCT, _NAME, there.products[0].id),
        Step(Action.RESTORE, Thing.PRODUCT, _NAME, there.products[0].id),
        Step(Action.RESTORE, Thing.PRICE, _NAME, price),
    ):
        await any_catalogue.apply(step)


async def test_a_meter_in_the_archive_is_restored_at_stripe_s_own_address() -> None:
    async with running_stripe_mock() as base:
        catalogue = StripeBillingCatalogue("sk_test_123", base)
        await catalogue.apply(Step(Action.RESTORE, Thing.METER, _NAME, "mtr_1"))
        await catalogue.close()


# -- a server that keeps what it is sent, as Stripe does -----------------------------------


@dataclass
class Stripe:
    """Stripe's lists and creations, two objects a page, with scripted failures before each call."""

    objects: dict[str, list[dict[str, Any]]] = field(
        default_factory=lambda: {"meters": [], "products": [], "prices": []}
    )
    failures: list[int] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    keys: dict[str, dict[str, Any]] = field(default_factory=dict)
    forms: list[dict[str, str]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        kind = next(part for part in request.path.split("/") if part in self.objects)
        self.calls.append(f"{request.method} {request.path}")
        if self.failures and (status := self.failures.pop(0)) != 200:
            error = {"type": "invalid_request_error", "message": "Scripted."}
            return web.json_response({"error": error}, status=status)
        if request.method == "GET":
            return web.json_response(self._page(kind, request.query.get("starting_after")))
        form = {key: str(value) for key, value in (await request.post()).items()}
        self.forms.append(form)
        if not request.path.endswith(kind):
            return web.json_response(self._changed(kind, request.path, form))
        key = request.headers["Idempotency-Key"]
        if key not in self.keys:
            self.keys[key] = _made(kind, len(self.objects[kind]), form)
            self.objects[kind].insert(0, self.keys[key])
        return web.json_response(self.keys[key])

    def _page(self, kind: str, after: str | None) -> dict[str, Any]:
        ids = [one["id"] for one in self.objects[kind]]
        start = 0 if after is None else ids.index(after) + 1
        data = self.objects[kind][start : start + 2]
        more = len(ids) > start + 2
        return {"object": "list", "data": data, "has_more": more, "url": "/v1"}

    def _changed(self, kind: str, path: str, form: dict[str, str]) -> dict[str, Any]:
        found_id = path.split(f"{kind}/")[1].split("/", maxsplit=1)[0]
        (one,) = [o for o in self.objects[kind] if o["id"] == found_id]
        one["active"] = form["active"] == "true"
        return one


def _made(kind: str, number: int, form: dict[str, str]) -> dict[str, Any]:
    said = form.get("metadata[backhaul_meter]")
    mark = {} if said is None else {"backhaul_meter": said}
    if kind == "meters":
        return {
            "object": "billing.meter",
            "id": f"mtr_{number}",
            "status": "active",
            "event_name": form["event_name"],
            "default_aggregation": {"formula": form["default_aggregation[formula]"]},
            "customer_mapping": {"event_payload_key": form["customer_mapping[event_payload_key]"]},
            "value_settings": {"event_payload_key": form["value_settings[event_payload_key]"]},
        }
    if kind == "products":
        return {"object": "product", "id": form["id"], "active": True, "metadata": mark}
    recurring = {
        "interval": form["recurring[interval]"],
        "interval_count": 1,
        "meter": form["recurring[meter]"],
    }
    return {
        "object": "price",
        "id": f"price_{number}",
        "active": form["active"] == "true",
        "metadata": mark,
        "lookup_key": form["lookup_key"],
        "product": form["product"],
        "currency": form["currency"],
        "unit_amount_decimal": form["unit_amount_decimal"],
        "transform_quantity": None,
        "recurring": recurring,
    }


@asynccontextmanager
async def _stripe(server: Stripe) -> AsyncIterator[StripeBillingCatalogue]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    async with TestServer(app) as running:
        base = str(running.make_url("")).rstrip("/")
        catalogue = StripeBillingCatalogue("sk_test_1", base, pauses_s=(0.0, 0.0))
        try:
            yield catalogue
        finally:
            await catalogue.close()


async def _bring(catalogue: BillingCatalogue) -> None:
    await carry_out(catalogue, (await planned(catalogue, WANTED)).steps, lambda _: None)


async def test_the_second_run_reads_all_pages_and_finds_nothing_to_do() -> None:
    server = Stripe()
    async with _stripe(server) as catalogue:
        await _bring(catalogue)
        again = await planned(catalogue, WANTED)
        there = await catalogue.read()
    assert (again.steps, again.differences, again.kept) == ((), (), 9)
    assert [len(kind) for kind in (there.meters, there.products, there.prices)] == [3, 3, 3]
    terms = Terms(_NAME, "mtr_0", "usd", Decimal("1E-12"))
    assert there.prices[-1] == PriceThere("price_0", True, _NAME, _NAME, terms)


async def test_an_amount_is_written_out_and_never_as_a_power_of_ten() -> None:
    server = Stripe()
    async with _stripe(server) as catalogue:
        await _bring(catalogue)
    amounts = {form.get("unit_amount_decimal") for form in server.forms}
    assert amounts == {None, "0.000000000001", "0.00003"}


async def test_what_others_made_has_no_mark_and_odd_prices_have_no_terms() -> None:
    price = _made("prices", 0, {"active": "true", "lookup_key": "", **_PLAIN})
    yearly = price | {"id": "y", "recurring": price["recurring"] | {"interval": "year"}}
    tiered = price | {"id": "t", "unit_amount_decimal": None}
    once = price | {"id": "o", "recurring": None, "metadata": {}}
    server = Stripe({"meters": [], "products": [], "prices": [price, yearly, tiered, once]})
    async with _stripe(server) as catalogue:
        found = {one.id: one for one in (await catalogue.read()).prices}
    assert found["o"].mark is None
    assert found["t"].terms is found["o"].terms is None
    assert found["y"].terms != found["price_0"].terms


_PLAIN = {
    "recurring[interval]": "month",
    "recurring[meter]": "mtr_0",
    "product": "x",
    "currency": "usd",
    "unit_amount_decimal": "1",
}


async def test_calls_that_come_too_often_or_fail_at_stripe_are_made_again() -> None:
    server = Stripe(failures=[429, 200, 200, 200, 429, 429, 200, 503, 200])
    async with _stripe(server) as catalogue:
        await _bring(catalogue)
        assert (await planned(catalogue, WANTED)).steps == ()
    assert [len(kind) for kind in server.objects.values()] == [3, 3, 3]


async def test_calls_that_always_come_too_often_end() -> None:
    async with _stripe(Stripe(failures=[429] * 3)) as catalogue:
        with pytest.raises(CatalogueUnavailable, match="too often"):
            await catalogue.read()


@pytest.mark.parametrize("status", [400, 401, 403, 404])
async def test_a_refusal_is_told_in_stripe_s_own_words(status: int) -> None:
    async with _stripe(Stripe(failures=[status])) as catalogue:
        with pytest.raises(CatalogueRefused, match="Scripted"):
            await catalogue.read()


async def test_a_creation_whose_answer_was_lost_makes_nothing_twice() -> None:
    server = Stripe()
    async with _stripe(server) as catalogue:
        steps = (await planned(catalogue, WANTED)).steps
        await carry_out(catalogue, (steps[0], steps[0], steps[1], steps[1]), lambda _: None)
        await carry_out(catalogue, (steps[2], steps[2]), lambda _: None)
    assert [len(kind) for kind in server.objects.values()] == [1, 1, 1]


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    catalogue = StripeBillingCatalogue("sk_test_1", "http://127.0.0.1:9")
    with pytest.raises(CatalogueUnavailable, match="reached"):
        await catalogue.read()
    await catalogue.close()
