"""Real-time usage and its cost, summed up for a report.

As the meter sends it: by UTC day, endpoint and model. The cost of a token type of these three is
rounded once, and a row is the sum of such amounts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from schemas.records import Usage
from streams.domain.billing.prices.book import REALTIME, PriceBook
from streams.domain.billing.prices.cost import micros
from streams.domain.billing.tokens import TokenType, add


@dataclass(frozen=True, slots=True)
class Used:
    """Tokens of one type, endpoint and model on the day that began at day_ms.

    confirmed: whether all of it has arrived where it is billed.
    """

    day_ms: int
    endpoint: str
    model: str
    token_type: TokenType
    tokens: int
    confirmed: bool


@dataclass(slots=True)
class Row:
    """One row. day_ms, model: None where rows are not by them. micros: at list price.

    priced: whether the amount holds all that was used.
    """

    day_ms: int | None
    model: str | None
    usage: Usage = field(default_factory=Usage)
    micros: int = 0
    priced: bool = True
    confirmed: bool = True


def report(
    used: Iterable[Used], book: PriceBook | None, *, by_day: bool, by_model: bool
) -> list[Row]:
    """The rows, in the order in which their first parts come."""
    rows: dict[tuple[int | None, str | None], Row] = {}
    for part in used:
        key = (part.day_ms if by_day else None, part.model if by_model else None)
        row = rows.setdefault(key, Row(*key))
        row.usage = add(row.usage, _usage(part))
        row.confirmed &= part.confirmed
        line = None
        if book is not None:
            line = book.line(part.model, part.endpoint, REALTIME, part.day_ms)
        if line is None:
            row.priced = False
        else:
            row.micros += micros(part.tokens, line.billed(part.token_type))
    return list(rows.values())


def _usage(part: Used) -> Usage:
    """The tokens as a report of usage counts them: cached ones are input, reasoning is output."""
    match part.token_type:
        case TokenType.INPUT:
            return Usage(input_tokens=part.tokens)
        case TokenType.CACHED_INPUT:
            return Usage(input_tokens=part.tokens, cached_tokens=part.tokens)
        case TokenType.OUTPUT:
            return Usage(output_tokens=part.tokens)
        case TokenType.REASONING:
            return Usage(output_tokens=part.tokens, reasoning_tokens=part.tokens)
