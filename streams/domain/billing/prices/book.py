"""The price book: what a million tokens cost, by model, type, endpoint, date and window.

Operators write it as YAML; `streams.prices` reads the file and this module judges it:

    currency: usd
    discounts: {24h: "0.5"}          # the part of the list price that a window takes off
    models:
      gpt-4o-mini:
        - {input: "0.15", cached_input: "0.075", output: "0.60"}
        - valid_from: 2027-01-01     # for batches created from then on (midnight UTC)
          input: "0.12"
          output: "0.48"
          endpoints: {/v1/completions: {input: "0.10", output: "0.40"}}
    default: [{input: "5.00", output: "15.00"}]   # other models; without it they are refused

Money is the currency's major unit for a million tokens, in quotes, because a bare 0.15 is a
binary fraction in YAML. Such a rate is also the micro-units for one token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated

import msgspec

from streams.domain.billing.tokens import TokenType

_Money = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,9}(\.[0-9]{1,12})?$")]
_Part = Annotated[str, msgspec.Meta(pattern=r"^0(\.[0-9]{1,6})?$")]
#: The completion window of what is not a batch: real-time requests, at list price.
REALTIME = ""
#: What a window takes off that the book does not name: batch costs half.
BATCH_DISCOUNT = Decimal("0.5")
#: The model name of the rates of models that the book does not name.
OTHER_MODELS = "*"


class PriceBookError(ValueError):
    """The price book is wrong; the message names the place and the remedy."""


class Rates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a million tokens cost. Cached input costs as input if not said, reasoning as output."""

    input: _Money
    output: _Money
    cached_input: _Money | None = None
    reasoning: _Money | None = None

    def of(self, token_type: TokenType) -> Decimal:
        """Micro-units of the currency for one token, at list price."""
        match token_type:
            case TokenType.INPUT:
                return Decimal(self.input)
            case TokenType.CACHED_INPUT:
                return Decimal(self.input if self.cached_input is None else self.cached_input)
            case TokenType.OUTPUT:
                return Decimal(self.output)
            case TokenType.REASONING:
                return Decimal(self.output if self.reasoning is None else self.reasoning)


class _DatedRates(Rates, frozen=True, forbid_unknown_fields=True):
    valid_from: date = date(1970, 1, 1)
    endpoints: dict[str, Rates] = {}


@dataclass(frozen=True, slots=True)
class PriceLine:
    """One line of the book as it applies to a request.

    model: whose rates these are, '*' for those of other models. endpoint: '' unless its rates
    differ. window: of completion, '' for real-time. discount: the part taken off.
    """

    model: str
    endpoint: str
    window: str
    valid_from: date
    rates: Rates
    discount: Decimal

    def billed(self, token_type: TokenType) -> Decimal:
        """Micro-units of the currency for one token, discount taken off."""
        return self.rates.of(token_type) * (1 - self.discount)


class PriceBook:
    """The whole book, with the questions that are asked of it."""

    def __init__(
        self,
        currency: str,
        models: Mapping[str, tuple[_DatedRates, ...]],
        discounts: Mapping[str, Decimal],
    ) -> None:
        #: ISO code in lower case.
        self.currency = currency
        self._models = models
        self._discounts = discounts

    def line(self, model: str, endpoint: str, window: str, created_at_ms: int) -> PriceLine | None:
        """What applies to a request or a batch created then; None if the book has no price."""
        whose = model if model in self._models else OTHER_MODELS
        day = datetime.fromtimestamp(created_at_ms / 1000, UTC).date()
        dated = [d for d in self._models.get(whose, ()) if d.valid_from <= day]
        return _line(whose, dated[-1], endpoint, window, self.discount(window)) if dated else None

    def prices(self, model: str, endpoint: str, created_at_ms: int) -> bool:
        """Whether the book has a price for the model, in whatever window."""
        return self.line(model, endpoint, REALTIME, created_at_ms) is not None

    def discount(self, window: str) -> Decimal:
        """The part of the list price that a completion window takes off."""
        if window == REALTIME:
            return Decimal(0)
        return self._discounts.get(window, self._discounts.get("default", BATCH_DISCOUNT))

    def lines(self, windows: Iterable[str]) -> Iterator[PriceLine]:
        """Every line that can apply in these windows, for whoever sets up meters and prices."""
        for window in windows:
            for model, history in self._models.items():
                for dated in history:
                    for endpoint in ("", *dated.endpoints):
                        yield _line(model, dated, endpoint, window, self.discount(window))


def _line(
    whose: str, dated: _DatedRates, endpoint: str, window: str, discount: Decimal
) -> PriceLine:
    own = dated.endpoints.get(endpoint)
    where = endpoint if own else ""
    return PriceLine(whose, where, window, dated.valid_from, own or dated, discount)


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    currency: Annotated[str, msgspec.Meta(pattern="^[a-z]{3}$")]
    models: dict[str, object] = {}
    default: object = None
    discounts: dict[str, _Part] = {}


def parse_prices(document: object) -> PriceBook:
    """The book in a parsed YAML document. Raises PriceBookError."""
    try:
        book = msgspec.convert(document, _Document)
    except msgspec.ValidationError as error:
        raise PriceBookError(_with_remedy(str(error))) from error
    if OTHER_MODELS in book.models:
        raise PriceBookError("models: write the rates of other models under 'default', not '*'.")
    models = {name: _history(f"models.{name}", found) for name, found in book.models.items()}
    if book.default is not None:
        models[OTHER_MODELS] = _history("default", book.default)
    if not models:
        raise PriceBookError("The price book has no prices: give 'models', 'default' or both.")
    discounts = {window: Decimal(part) for window, part in book.discounts.items()}
    return PriceBook(book.currency, models, discounts)


def _history(place: str, found: object) -> tuple[_DatedRates, ...]:
    entries = found if isinstance(found, list) else [found]
    history = []
    for number, entry in enumerate(entries):
        try:
            history.append(msgspec.convert(entry, _DatedRates))
        except msgspec.ValidationError as error:
            raise PriceBookError(f"{place}[{number}]: {_with_remedy(str(error))}") from error
    history.sort(key=lambda dated: dated.valid_from)
    dates = [dated.valid_from for dated in history]
    if not dates:
        raise PriceBookError(f"{place}: give at least one set of rates, with 'input' and 'output'.")
    if len(set(dates)) != len(dates):
        raise PriceBookError(f"{place}: two sets of rates have the same 'valid_from'.")
    return tuple(history)


def _with_remedy(message: str) -> str:
    if "Expected `str" in message and ("got `float`" in message or "got `int`" in message):
        return f'{message}. Write figures in quotes, such as "0.15".'
    if "matching regex" in message:
        return (
            f'{message}. A price is a decimal such as "0.15", a discount one such as "0.5", '
            "from 0 to less than 1; a currency has three small letters."
        )
    return message
