"""What usage costs: each token once, one rounding, and sums that never drift."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.records import Usage
from streams.domain.billing.prices.book import PriceBook, parse_prices
from streams.domain.billing.prices.cost import Cost, NoPriceError, cost, micros, money
from streams.domain.billing.tokens import TokenType, add, split

_CHAT = "/v1/chat/completions"


@st.composite
def _usages(draw: st.DrawFn) -> Usage:
    read, wrote = draw(st.integers(0, 10**13)), draw(st.integers(0, 10**13))
    return Usage(
        input_tokens=read,
        cached_tokens=draw(st.integers(0, read)),
        output_tokens=wrote,
        reasoning_tokens=draw(st.integers(0, wrote)),
    )


_rates = st.decimals(0, 1000, places=12).map(lambda rate: format(rate, "f"))


@st.composite
def _books(draw: st.DrawFn) -> PriceBook:
    names = ("input", "cached_input", "output", "reasoning")
    models = {model: {name: draw(_rates) for name in names} for model in "ab"}
    return parse_prices({"currency": "usd", "discounts": {"24h": "0.333333"}, "models": models})


def _cost(book: PriceBook, usage: dict[str, Usage], window: str = "24h") -> Cost:
    return cost(book, usage, endpoint=_CHAT, window=window, created_at_ms=0)


def _book(**rates: str) -> PriceBook:
    return parse_prices({"currency": "usd", "models": {"m": rates}})


def test_cached_and_reasoning_tokens_are_billed_once() -> None:
    book = _book(input="2", cached_input="1", output="8", reasoning="10")
    usage = Usage(input_tokens=100, cached_tokens=60, output_tokens=50, reasoning_tokens=20)
    found = _cost(book, {"m": usage})
    assert {line.token_type.value: line.list_micros for line in found.lines} == {
        "input": 80,
        "cached_input": 60,
        "output": 240,
        "reasoning": 200,
    }
    assert (found.list_micros, found.discount_micros, found.billed_micros) == (580, 290, 290)


def test_a_million_tokens_cost_their_rate() -> None:
    found = _cost(_book(input="0.15", output="0.60"), {"m": Usage(input_tokens=10**6)}, window="")
    assert money(found.billed_micros) == "0.150000"


def test_a_model_without_a_price_has_no_cost() -> None:
    with pytest.raises(NoPriceError):
        _cost(_book(input="1", output="1"), {"other": Usage(input_tokens=1)})


@pytest.mark.parametrize(
    ("tokens", "rate", "rounded"), [(1, "0.5", 0), (3, "0.5", 2), (5, "0.5", 2), (1, "0.51", 1)]
)
def test_halves_are_rounded_to_even(tokens: int, rate: str, rounded: int) -> None:
    assert micros(tokens, Decimal(rate)) == rounded


def test_amounts_are_shown_to_the_micro_unit() -> None:
    assert [money(m) for m in (0, 1, 1_000_000, -2_500_000)] == [
        "0.000000",
        "0.000001",
        "1.000000",
        "-2.500000",
    ]


@given(_usages())
def test_every_token_has_one_type(usage: Usage) -> None:
    assert sum(split(usage).values()) == usage.input_tokens + usage.output_tokens


@given(_books(), st.dictionaries(st.sampled_from("ab"), _usages()))
def test_a_cost_is_the_sum_of_its_lines_and_off_by_half_a_unit_a_line_at_most(
    book: PriceBook, usage: dict[str, Usage]
) -> None:
    found = _cost(book, usage)
    assert found.list_micros == found.billed_micros + found.discount_micros
    exact = Fraction(0)
    for line in found.lines:
        price = book.line(line.model, _CHAT, "24h", 0)
        assert price is not None
        exact += line.tokens * Fraction(price.billed(line.token_type))
    assert abs(found.billed_micros - exact) <= Fraction(len(found.lines), 2)


@given(_books(), st.lists(_usages(), min_size=1), st.randoms(use_true_random=False))
def test_however_usage_came_in_its_sum_costs_the_same(
    book: PriceBook, parts: list[Usage], random: object
) -> None:
    whole = _sum(parts)
    random.shuffle(parts)  # type: ignore[attr-defined]
    assert _cost(book, {"a": _sum(parts)}) == _cost(book, {"a": whole})
    types = {line.token_type for line in _cost(book, {"a": whole}).lines}
    assert types <= set(TokenType)


def _sum(parts: list[Usage]) -> Usage:
    total = Usage()
    for part in parts:
        total = add(total, part)
    return total
