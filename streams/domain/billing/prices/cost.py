"""What usage costs.

The rounding rule: the cost of one token type of one model in a batch is exact until it is rounded
once to whole micro-units (a millionth of the currency's major unit), half to even; at list price
and as billed each. Everything else is a sum of such integers, so that a batch's cost is the sum of
its lines to the digit. The cost of a part is not a summand of the cost of the whole: whoever adds
batches up adds their costs, and whoever cuts a batch up adds its tokens first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from schemas.records import Usage
from streams.domain.billing.prices.book import PriceBook
from streams.domain.billing.tokens import TokenType, split

MICROS = 1_000_000


class NoPriceError(LookupError):
    """The price book has no price for this model at that time."""


@dataclass(frozen=True, slots=True)
class CostLine:
    """The cost of one type of token of one model, in micro-units."""

    model: str
    token_type: TokenType
    tokens: int
    list_micros: int
    billed_micros: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What usage costs, in micro-units of the currency."""

    currency: str
    lines: tuple[CostLine, ...]

    @property
    def list_micros(self) -> int:
        """At list price."""
        return sum(line.list_micros for line in self.lines)

    @property
    def billed_micros(self) -> int:
        """After the discount."""
        return sum(line.billed_micros for line in self.lines)

    @property
    def discount_micros(self) -> int:
        """What the completion window takes off."""
        return self.list_micros - self.billed_micros


def cost(
    book: PriceBook,
    usage: Mapping[str, Usage],
    *,
    endpoint: str,
    window: str,
    created_at_ms: int,
) -> Cost:
    """The cost of a whole batch or request: its usage by model, and when it was created.

    window: the completion window, prices.REALTIME for a real-time request. Raises NoPriceError.
    """
    lines = []
    for model, used in usage.items():
        price = book.line(model, endpoint, window, created_at_ms)
        if price is None:
            raise NoPriceError(f"The price book has no price for the model {model!r}.")
        for token_type, tokens in split(used).items():
            if tokens:
                listed = micros(tokens, price.rates.of(token_type))
                billed = micros(tokens, price.billed(token_type))
                lines.append(CostLine(model, token_type, tokens, listed, billed))
    return Cost(book.currency, tuple(lines))


def micros(tokens: int, rate: Decimal) -> int:
    """Tokens at so many micro-units each: exact, then rounded half to even."""
    return round(tokens * Fraction(rate))


def money(amount_micros: int) -> str:
    """Micro-units as a decimal string of the major unit, such as '12.345678'."""
    sign = "-" if amount_micros < 0 else ""
    return f"{sign}{abs(amount_micros) // MICROS}.{abs(amount_micros) % MICROS:06d}"
