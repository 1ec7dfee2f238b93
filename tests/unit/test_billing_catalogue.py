"""What Stripe must have for the price book, planned and carried out on the fake."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.billing.sync import SyncBroken, carry_out, planned
from streams.adapters.billing_catalogue_fake import FakeBillingCatalogue
from streams.adapters.meter_fake import Fault
from streams.domain.billing.prices.book import REALTIME, PriceBook, parse_prices
from streams.domain.billing.prices.catalogue import (
    Action,
    CatalogueError,
    MeterThere,
    PriceThere,
    ProductThere,
    Terms,
    Thing,
    Wanted,
    decimals_of,
    money,
    wanted_of,
)
from streams.domain.billing.prices.meter_names import meter_of
from streams.domain.billing.tokens import TokenType
from streams.ports.billing_catalogue import CatalogueUnavailable

_INPUT = "backhaul_batch_input_tokens_m_24h_1970-01-01"


def _book(rates: Any = None, **document: Any) -> PriceBook:
    rates = rates or {"input": "0.15", "output": "0.60"}
    return parse_prices({"currency": "usd", "models": {"m": rates}, **document})


def _wanted(rates: Any = None, **document: Any) -> tuple[Wanted, ...]:
    return wanted_of(_book(rates, **document), ["24h"])


async def _brought(catalogue: FakeBillingCatalogue, wanted: tuple[Wanted, ...]) -> list[str]:
    """Brings it into line; what was done."""
    before = len(catalogue.done)
    found = await planned(catalogue, wanted)
    await carry_out(catalogue, found.steps, lambda _: None)
    return [f"{step.action} {step.thing} {step.id}".strip() for step in catalogue.done[before:]]


def _price_of(catalogue: FakeBillingCatalogue, event_name: str) -> PriceThere:
    """The one active price of a meter."""
    (price,) = [p for p in catalogue.prices.values() if p.active and p.mark == event_name]
    return price


def test_every_line_and_type_of_token_has_a_meter_named_as_the_meter_role_names_it() -> None:
    dated = [
        {"input": "1", "output": "2"},
        {
            "valid_from": "2027-01-01",
            "input": "2",
            "output": "4",
            "reasoning": "8",
            "endpoints": {"/v1/completions": {"input": "1", "output": "1"}},
        },
    ]
    book = _book(dated, default={"input": "5", "output": "15"})
    wanted = wanted_of(book, ["24h", REALTIME])
    expected = {
        meter_of(token_type, line.window, line)
        for line in book.lines(["24h", REALTIME])
        for token_type in TokenType
    }
    assert {one.event_name for one in wanted} == expected
    assert len(wanted) == len(expected)


def test_the_price_is_the_exact_rate_less_the_discount_in_the_minor_unit_for_a_token() -> None:
    found = {one.event_name: one for one in _wanted()}
    # 0.15 usd a million, half off: 0.075 usd a million, 7.5 cents a million.
    assert found[_INPUT].unit_amount == Decimal("0.0000075")
    assert money(found[_INPUT].unit_amount, "usd") == "0.075 usd per million tokens"


@pytest.mark.parametrize(
    ("currency", "amount"), [("jpy", "0.000075"), ("kwd", "0.075"), ("isk", "0.0075")]
)
def test_currencies_without_hundredths_have_their_own_minor_unit(
    currency: str, amount: str
) -> None:
    rates = {"input": "150", "output": "1"}
    found = {one.event_name: one for one in _wanted(rates, currency=currency)}
    assert found[_INPUT].unit_amount == Decimal(amount)


def test_a_currency_whose_unit_at_stripe_is_not_clear_is_refused() -> None:
    with pytest.raises(CatalogueError, match="ugx"):
        decimals_of("ugx")


def test_an_amount_of_more_decimals_than_stripe_takes_is_refused_with_the_meter() -> None:
    fits = {"input": "0.00000002", "output": "0"}
    assert {one.unit_amount for one in _wanted(fits)} == {Decimal("1E-12"), Decimal(0)}
    with pytest.raises(CatalogueError, match=f"{_INPUT}.*12 decimals.*fewer"):
        _wanted({"input": "0.00000001", "output": "0"})


async def test_an_empty_account_gets_everything_and_the_second_run_finds_nothing_to_do() -> None:
    catalogue = FakeBillingCatalogue()
    done = await _brought(catalogue, _wanted())
    assert done[:3] == ["create meter", f"create product {_INPUT}", "create price"]
    assert len(done) == 9
    again = await planned(catalogue, _wanted())
    assert (again.steps, again.differences, again.kept) == ((), (), 9)


async def test_another_rate_makes_a_new_price_takes_its_key_along_and_archives_the_old() -> None:
    catalogue = FakeBillingCatalogue()
    await _brought(catalogue, _wanted())
    old = _price_of(catalogue, _INPUT)
    done = await _brought(catalogue, _wanted({"input": "0.30", "output": "0.60"}))
    # Cached input costs as input, so its price changes, too.
    assert done[:2] == ["create price", f"archive price {old.id}"]
    assert len(done) == 4
    new = _price_of(catalogue, _INPUT)
    assert (new.lookup_key, catalogue.prices[old.id].lookup_key) == (_INPUT, None)
    assert new.terms is not None
    assert new.terms.unit_amount == Decimal("0.000015")


async def test_a_rate_that_comes_back_takes_its_old_price_into_use_again() -> None:
    catalogue = FakeBillingCatalogue()
    await _brought(catalogue, _wanted())
    first = _price_of(catalogue, _INPUT)
    await _brought(catalogue, _wanted({"input": "0.30", "output": "0.60"}))
    done = await _brought(catalogue, _wanted())
    assert f"restore price {first.id}" in done
    assert _price_of(catalogue, _INPUT) == first


async def test_a_line_that_leaves_the_book_loses_price_and_product_but_not_its_meter() -> None:
    catalogue = FakeBillingCatalogue()
    await _brought(catalogue, _wanted())
    other = parse_prices({"currency": "usd", "models": {"n": {"input": "1", "output": "1"}}})
    await _brought(catalogue, wanted_of(other, ["24h"]))
    assert not catalogue.products[_INPUT].active
    assert [p for p in catalogue.prices.values() if p.active and p.mark == _INPUT] == []
    assert all(meter.active for meter in catalogue.meters.values())
    await _brought(catalogue, _wanted())
    assert catalogue.products[_INPUT].active
    assert _price_of(catalogue, _INPUT).lookup_key == _INPUT


async def test_a_meter_that_somebody_archived_is_taken_into_use_again() -> None:
    catalogue = FakeBillingCatalogue()
    await _brought(catalogue, _wanted())
    (meter,) = [m for m in catalogue.meters.values() if m.event_name == _INPUT]
    catalogue.meters[meter.id] = replace(meter, active=False)
    assert await _brought(catalogue, _wanted()) == [f"restore meter {meter.id}"]


async def test_an_archived_meter_of_another_kind_keeps_its_name_to_itself() -> None:
    catalogue = FakeBillingCatalogue()
    catalogue.meters["old"] = replace(_foreign_meter(), active=False)
    found = await planned(catalogue, _wanted())
    assert [(one.thing, one.event_name) for one in found.differences] == [(Thing.METER, _INPUT)]
    assert "valid_from" in found.differences[0].remedy
    other = _wanted([{"valid_from": "1970-01-02", "input": "0.15", "output": "0.60"}])
    assert (await planned(catalogue, other)).differences == ()


async def test_a_price_of_ours_that_lost_its_lookup_key_gets_it_again() -> None:
    catalogue = FakeBillingCatalogue()
    await _brought(catalogue, _wanted())
    price = _price_of(catalogue, _INPUT)
    catalogue.prices[price.id] = replace(price, lookup_key=None)
    assert await _brought(catalogue, _wanted()) == [f"restore price {price.id}"]
    assert _price_of(catalogue, _INPUT) == price


def _foreign_meter(formula: str = "count") -> MeterThere:
    return MeterThere("mtr_f", _INPUT, True, formula, "stripe_customer_id", "value")


@pytest.mark.parametrize("thing", list(Thing))
async def test_what_is_in_the_way_and_not_ours_is_shown_and_left_alone(thing: Thing) -> None:
    catalogue = FakeBillingCatalogue()
    there: Any = {
        Thing.METER: (catalogue.meters, _foreign_meter()),
        Thing.PRODUCT: (catalogue.products, ProductThere(_INPUT, True, None)),
        Thing.PRICE: (catalogue.prices, PriceThere("p_f", True, None, _INPUT, None)),
    }
    kept, foreign = there[thing]
    kept[foreign.id] = foreign
    found = await planned(catalogue, _wanted())
    assert [(one.thing, one.event_name, one.id) for one in found.differences] == [
        (thing, _INPUT, foreign.id)
    ]
    assert _INPUT not in {step.event_name for step in found.steps}
    await _brought(catalogue, _wanted())
    assert kept[foreign.id] == foreign


async def test_two_active_prices_of_ours_leave_one_so_that_nothing_is_billed_twice() -> None:
    catalogue = FakeBillingCatalogue()
    await _brought(catalogue, _wanted())
    twin = replace(_price_of(catalogue, _INPUT), id="twin", lookup_key=None)
    catalogue.prices["twin"] = twin
    assert await _brought(catalogue, _wanted()) == ["archive price twin"]


# -- any account, any book, any fault ------------------------------------------------------

_names = st.sampled_from([one.event_name for one in _wanted()] + ["other", "backhaul_old"])
_flags = st.booleans()


@st.composite
def _accounts(draw: st.DrawFn) -> FakeBillingCatalogue:
    """Whatever may be in an account, by us and by others."""
    catalogue = FakeBillingCatalogue()
    for number in range(draw(st.integers(0, 3))):
        name, taken = draw(_names), {m.event_name for m in catalogue.meters.values() if m.active}
        formula = draw(st.sampled_from(["sum", "count"]))
        active = draw(_flags) and name not in taken
        meter = MeterThere(f"m{number}", name, active, formula, "stripe_customer_id", "value")
        catalogue.meters[meter.id] = meter
    for name in draw(st.sets(_names)):
        mark = draw(st.sampled_from([None, name]))
        catalogue.products[name] = ProductThere(name, draw(_flags), mark)
    keys: set[str | None] = set()
    for number in range(draw(st.integers(0, 5))):
        name = draw(_names)
        key = draw(st.sampled_from([None, name]))
        terms = draw(
            st.none()
            | st.builds(
                Terms,
                product_id=st.just(name),
                meter_id=st.sampled_from(["m0", "m1", "other"]),
                currency=st.sampled_from(["usd", "eur"]),
                unit_amount=st.sampled_from([Decimal("0.0000075"), Decimal(1)]),
            )
        )
        catalogue.prices[f"p{number}"] = PriceThere(
            f"p{number}",
            draw(_flags),
            draw(st.sampled_from([None, name])),
            None if key in keys else key,
            terms,
        )
        keys.add(key)
    return catalogue


_books = st.sampled_from(
    [
        _wanted(),
        _wanted({"input": "0.30", "output": "0.60", "reasoning": "1"}),
        wanted_of(_book(currency="eur"), ["24h", "1h"]),
    ]
)


def _foreign(catalogue: FakeBillingCatalogue) -> list[Any]:
    there: list[Any] = [*catalogue.products.values(), *catalogue.prices.values()]
    return [one for one in there if one.mark is None]


@given(_accounts(), st.lists(_books, min_size=1, max_size=3))
async def test_a_plan_that_was_carried_out_leaves_nothing_to_do_and_strangers_as_they_were(
    catalogue: FakeBillingCatalogue, books: list[tuple[Wanted, ...]]
) -> None:
    foreign = _foreign(catalogue)
    meters = dict(catalogue.meters)
    for wanted in books:
        await _brought(catalogue, wanted)
        again = await planned(catalogue, wanted)
        assert again.steps == ()
        differing = {one.event_name for one in again.differences}
        for one in wanted:
            if one.event_name not in differing:
                price = _price_of(catalogue, one.event_name)
                assert price.terms is not None
                assert price.terms.unit_amount == one.unit_amount
                assert price.lookup_key == one.event_name
    assert _foreign(catalogue) == foreign
    ours = {one.event_name for wanted in books for one in wanted}
    assert [m for m in meters.values() if m.event_name not in ours] == [
        m for m in catalogue.meters.values() if m.event_name not in ours
    ]


@given(st.lists(st.sampled_from(list(Fault)), max_size=40), _books)
async def test_runs_that_break_anywhere_end_where_one_good_run_ends(
    faults: list[Fault], wanted: tuple[Wanted, ...]
) -> None:
    coming = iter(faults)
    catalogue = FakeBillingCatalogue(fault=lambda: next(coming, Fault.NONE))
    while True:
        try:
            await _brought(catalogue, wanted)
        except (SyncBroken, CatalogueUnavailable):
            continue
        break
    whole = FakeBillingCatalogue()
    await _brought(whole, wanted)
    assert len(catalogue.meters) == len(whole.meters)
    assert catalogue.products == whole.products
    assert len(catalogue.prices) == len(whole.prices)


def _at(number: int, fault: Fault) -> Iterator[Fault]:
    yield from [Fault.NONE] * number
    yield fault


async def test_a_run_that_breaks_says_how_far_it_came() -> None:
    coming = _at(5, Fault.SERVER_ERROR)
    catalogue = FakeBillingCatalogue(fault=lambda: next(coming, Fault.NONE))
    with pytest.raises(SyncBroken, match="server_error") as caught:
        await _brought(catalogue, _wanted())
    assert (caught.value.done, caught.value.left) == (4, 5)
    assert caught.value.step.action is Action.CREATE
