"""The options that set a budget, of `backhaul tenants` and `keys`, and how one is shown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.failure import Failure, Misuse

if TYPE_CHECKING:
    from streams.settings import Settings

_NONE = "none"
_PERIODS = ("day", "month", "total")
_MICROS = 1_000_000
_AMOUNT = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,6}))?")

BudgetAmount = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="AMOUNT|none",
        help="Most that its batches may cost in a period, such as 100.00; then they wait.",
    ),
]
BudgetPeriod = Annotated[
    str | None,
    typer.Option(
        "--budget-period",
        metavar="day|month|total",
        help="When a budget begins anew (UTC). Default: total, which is never.",
    ),
]


def budget_changes(settings: Settings, amount: str | None, period: str | None) -> dict[str, Any]:
    """The fields of a record that the options change. Raises Misuse, Failure."""
    changes: dict[str, Any] = {}
    if period is not None:
        if period not in _PERIODS:
            raise Misuse(f"--budget-period {period!r} is none of day, month and total.")
        changes["budget_period"] = period
    if amount is not None:
        changes["budget_micros"] = _micros(amount)
        if changes["budget_micros"] is not None:
            _check_prices(settings)
    return changes


def budget_text(micros: int | None, period: str) -> str:
    """`100.00/month`, `100.00` for a total one, `none`."""
    if micros is None:
        return _NONE
    return _amount(micros) + ("" if period == "total" else f"/{period}")


def budget_shown(micros: int | None, period: str) -> dict[str, str] | None:
    """The budget for --json."""
    return None if micros is None else {"amount": _amount(micros), "period": period}


def _amount(micros: int) -> str:
    whole, part = divmod(micros, _MICROS)
    return f"{whole}.{f'{part:06d}'.rstrip('0').ljust(2, '0')}"


def _micros(text: str) -> int | None:
    if text.lower() == _NONE:
        return None
    found = _AMOUNT.fullmatch(text)
    if found is None:
        raise Misuse(
            f"--budget {text!r} is no amount such as 100.00, with at most six decimals, "
            f"and not '{_NONE}'."
        )
    return int(found[1]) * _MICROS + int((found[2] or "").ljust(6, "0"))


def _check_prices(settings: Settings) -> None:
    """A budget that nobody can hold against prices would be a promise that isn't kept."""
    from streams.domain.billing.prices.book import PriceBookError
    from streams.prices import read_prices

    if settings.prices_file is None:
        raise Failure(
            "A budget needs a price book: without one nothing has a cost.",
            "Set BACKHAUL_PRICES_FILE, here and for the controllers; docs/budgets.md says more.",
        )
    try:
        read_prices(settings.prices_file)
    except PriceBookError as error:
        raise Failure(str(error), "Mend the price book, then set the budget.") from error
