"""The price book: what it accepts, which line applies, and what a bad edit does."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from schemas.errors import ValidationCode
from streams.domain.billing.prices.book import REALTIME, PriceBook, PriceBookError, parse_prices
from streams.domain.billing.tokens import TokenType
from streams.domain.clock import ManualClock
from streams.domain.intake.intake import Intake, Refused, Rules
from streams.prices import Prices
from tests.support import intake_files

_CHAT = "/v1/chat/completions"
_BOOK = """
currency: usd
discounts: {24h: "0.5", 1h: "0.25"}
models:
  small:
    - {input: "0.15", cached_input: "0.075", output: "0.60"}
    - valid_from: 2027-01-01
      input: "0.12"
      output: "0.48"
      reasoning: "0.50"
      endpoints: {/v1/completions: {input: "0.10", output: "0.40"}}
"""


def _ms(year: int, month: int, day: int) -> int:
    return int(datetime(year, month, day, tzinfo=UTC).timestamp() * 1000)


def _parse(text: str) -> PriceBook:
    return parse_prices(yaml.safe_load(text))


def _rates(book: PriceBook, at_ms: int, **where: Any) -> list[Decimal]:
    asked = {"model": "small", "endpoint": _CHAT, "window": "24h"} | where
    line = book.line(asked["model"], asked["endpoint"], asked["window"], at_ms)
    assert line is not None
    return [line.billed(token_type) for token_type in TokenType]


def test_a_batch_is_priced_by_the_rates_of_the_day_it_was_created() -> None:
    book = _parse(_BOOK)
    before = [Decimal(r) for r in ("0.075", "0.0375", "0.30", "0.30")]
    after = [Decimal(r) for r in ("0.06", "0.06", "0.24", "0.25")]
    assert _rates(book, _ms(2027, 1, 1) - 1) == before
    assert _rates(book, _ms(2027, 1, 1)) == after


def test_an_endpoint_may_have_rates_of_its_own() -> None:
    rates = _rates(_parse(_BOOK), _ms(2027, 5, 1), endpoint="/v1/completions")
    assert rates == [Decimal(r) for r in ("0.05", "0.05", "0.20", "0.20")]


@pytest.mark.parametrize(
    ("window", "discount"), [("24h", "0.5"), ("1h", "0.25"), ("72h", "0.5"), (REALTIME, "0")]
)
def test_each_window_has_its_discount_and_real_time_has_none(window: str, discount: str) -> None:
    assert _parse(_BOOK).discount(window) == Decimal(discount)


def test_a_model_without_a_price_is_never_free() -> None:
    book = _parse(_BOOK)
    assert book.line("unknown", _CHAT, "24h", _ms(2027, 1, 1)) is None
    assert not book.prices("unknown", _CHAT, _ms(2027, 1, 1))


def test_a_model_has_no_price_before_its_first_date() -> None:
    text = 'currency: eur\nmodels: {m: {valid_from: 2027-01-01, input: "1", output: "2"}}'
    book = _parse(text)
    assert not book.prices("m", _CHAT, _ms(2026, 12, 31))
    assert book.prices("m", _CHAT, _ms(2027, 1, 1))


def test_default_rates_price_whatever_the_book_does_not_name() -> None:
    line = _parse(_BOOK + 'default: {input: "5", output: "15"}').line("other", _CHAT, "24h", 0)
    assert line is not None
    assert (line.model, line.billed(TokenType.OUTPUT)) == ("*", Decimal("7.5"))


def test_all_lines_can_be_listed_for_whoever_sets_up_the_meters() -> None:
    found = {
        (p.model, p.endpoint, p.window, p.valid_from.year) for p in _parse(_BOOK).lines(["24h"])
    }
    assert found == {
        ("small", "", "24h", 1970),
        ("small", "", "24h", 2027),
        ("small", "/v1/completions", "24h", 2027),
    }


@pytest.mark.parametrize(
    ("text", "place", "remedy"),
    [
        ("[]", "object", ""),
        ("currency: USD\nmodels: {}", "currency", "three small letters"),
        ("currency: usd", "no prices", "'models'"),
        ("currency: usd\nmodels: {m: {input: 0.15, output: '1'}}", "models.m[0]", "in quotes"),
        ("currency: usd\nmodels: {m: {input: '-1', output: '1'}}", "models.m[0]", "decimal"),
        ("currency: usd\nmodels: {m: {input: '1'}}", "models.m[0]", "output"),
        ("currency: usd\nmodels: {m: {input: '1', output: '1', x: '1'}}", "models.m[0]", "x"),
        ("currency: usd\nmodels: {m: []}", "models.m", "at least one"),
        ("currency: usd\nmodels: {'*': {input: '1', output: '1'}}", "models", "default"),
        ("currency: usd\ndiscounts: {24h: '1'}", "discounts", "less than 1"),
        ("currency: usd\ndiscounts: {24h: 0.5}", "discounts", "in quotes"),
        (
            "currency: usd\ndefault: [{input: '1', output: '1'}, {input: '2', output: '2'}]",
            "default",
            "valid_from",
        ),
    ],
)
def test_a_mistake_is_named_with_its_place_and_its_remedy(
    text: str, place: str, remedy: str
) -> None:
    with pytest.raises(PriceBookError) as caught:
        _parse(text)
    assert place in str(caught.value)
    assert remedy in str(caught.value)


def test_an_edit_is_in_force_soon_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    path, clock = tmp_path / "prices.yaml", ManualClock()
    path.write_text('currency: usd\ndefault: {input: "1", output: "1"}')
    prices = Prices(path, clock)
    _edit(path, 'currency: usd\ndefault: {input: "2", output: "2"}')
    clock.advance(2)
    assert _default_rate(prices) == 2
    _edit(path, "currency: usd\ndefault: {input: oops}")
    clock.advance(2)
    assert _default_rate(prices) == 2
    path.unlink()
    clock.advance(2)
    assert _default_rate(prices) == 2
    _edit(path, 'currency: usd\ndefault: {input: "3", output: "3"}')
    clock.advance(2)
    assert _default_rate(prices) == 3


def test_no_process_starts_on_a_bad_book(tmp_path: Path) -> None:
    with pytest.raises(PriceBookError, match=r"none\.yaml"):
        Prices(tmp_path / "none.yaml")


def test_without_a_book_every_model_may_be_used() -> None:
    assert Prices(None).allows("any", _CHAT, 0)


def test_a_batch_that_names_a_model_without_a_price_is_refused() -> None:
    rules = Rules(intake_files.CHAT, lambda _: True, priced=lambda model: model == "small")
    intake = Intake(rules)
    intake.feed(_line("a", "small") + _line("b", "unknown"))
    verdict = intake.finish()
    assert isinstance(verdict, Refused)
    [error] = verdict.errors
    assert (error.code, error.line, error.param) == (
        ValidationCode.MODEL_NOT_FOUND,
        2,
        "body.model",
    )
    assert "no price" in error.message


def _line(custom_id: str, model: str) -> bytes:
    body = f'{{"model":"{model}","messages":[]}}'
    return f'{{"custom_id":"{custom_id}","method":"POST","url":"{_CHAT}","body":{body}}}\n'.encode()


def _edit(path: Path, text: str) -> None:
    other = path.with_suffix(".new")
    other.write_text(text)
    other.replace(path)


def _default_rate(prices: Prices) -> Decimal:
    book = prices.current()
    assert book is not None
    line = book.line("any", _CHAT, REALTIME, 0)
    assert line is not None
    return line.billed(TokenType.INPUT)
