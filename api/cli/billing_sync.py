"""`backhaul billing sync`: meters, products and prices at Stripe as the price book has them."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.failure import Different, Failure, Misuse, ServerUnreachable
from api.cli.kafka import KafkaData, kafka_settings
from api.cli.options import AsJSON
from api.cli.terminal import note, out, out_json, printable

if TYPE_CHECKING:
    from streams.domain.billing.prices.catalogue import Difference, Plan, Step, Wanted
    from streams.ports.billing_catalogue import BillingCatalogue
    from streams.settings import Settings

_RIGHTS = "Nothing was changed. The key must be allowed to write meters, products and prices."
_AGAIN = "Run it again: it goes on from there."


def sync(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Change things without asking.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show; exit code 1 if anything would change.")
    ] = False,
    as_json: AsJSON = False,
    data_dir: KafkaData = None,
) -> None:
    """Make Stripe's meters, products and prices agree with the price book.

    Shows what it would do and asks. Needs BACKHAUL_STRIPE_KEY, and the price book of
    BACKHAUL_PRICES_FILE, else of a running `backhaul up`.
    """
    settings = kafka_settings(None, data_dir)
    wanted = _wanted(settings)
    asyncio.run(_sync(_catalogue(settings), wanted, yes=yes, dry_run=dry_run, as_json=as_json))


async def _sync(
    catalogue: BillingCatalogue,
    wanted: tuple[Wanted, ...],
    *,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    from api.billing.sync import planned
    from streams.ports.billing_catalogue import CatalogueRefused, CatalogueUnavailable

    try:
        found = await planned(catalogue, wanted)
        _show(found, as_json=as_json)
        if found.steps and not dry_run:
            if not yes:
                _ask(found)
            await _change(catalogue, found.steps, as_json=as_json)
    except CatalogueUnavailable as error:
        raise ServerUnreachable(str(error), "Nothing was changed; try again later.") from error
    except CatalogueRefused as error:
        raise Failure(printable(str(error)), _RIGHTS) from error
    finally:
        await catalogue.close()
    if found.differences or (dry_run and found.steps):
        raise Different("Stripe differs from the price book.", _remedy(found))


async def _change(catalogue: BillingCatalogue, steps: tuple[Step, ...], *, as_json: bool) -> None:
    from api.billing.sync import SyncBroken, carry_out

    def tell(step: Step) -> None:
        if as_json:
            out_json({"done": _step(step)})
        else:
            note(f"done: {_line(step)}")

    try:
        await carry_out(catalogue, steps, tell)
    except SyncBroken as error:
        raise Failure(
            f"{printable(str(error))} That was at: {_line(error.step)}. Done before it: "
            f"{error.done}; left: {error.left}.",
            _AGAIN,
        ) from error
    if not as_json:
        out("Stripe agrees with the price book.")


def _wanted(settings: Settings) -> tuple[Wanted, ...]:
    """What the price book needs. Raises Misuse."""
    from streams.domain.billing.prices.book import REALTIME, PriceBookError
    from streams.domain.billing.prices.catalogue import CatalogueError, wanted_of
    from streams.prices import read_prices

    if settings.prices_file is None:
        raise Misuse(
            "There is no price book.",
            "Set BACKHAUL_PRICES_FILE to its file, or name with --data the data folder of a "
            "running `backhaul up` that has one.",
        )
    try:
        windows = (*settings.completion_windows, REALTIME)
        return wanted_of(read_prices(settings.prices_file), windows)
    except (PriceBookError, CatalogueError) as error:
        raise Misuse(str(error)) from error


def _catalogue(settings: Settings) -> BillingCatalogue:
    """Stripe's. Raises Misuse without a key."""
    if settings.stripe_key is None:
        raise Misuse(
            "There is no key for Stripe.",
            "Set BACKHAUL_STRIPE_KEY to one that may write meters, products and prices.",
        )
    from streams.adapters.billing_catalogue_stripe import StripeBillingCatalogue

    return StripeBillingCatalogue(settings.stripe_key.get_secret_value(), settings.stripe_api_base)


def _ask(found: Plan) -> None:
    """Asks whether to go on. Raises Misuse where nobody answers, Failure at a no."""
    if not _somebody_answers():
        raise Misuse("Changing things at Stripe needs a yes.", "Give --yes, or --dry-run.")
    if not typer.confirm(f"Make these {len(found.steps)} changes at Stripe?", err=True):
        raise Failure("Nothing was changed.")


def _somebody_answers() -> bool:
    return sys.stdin.isatty()


def _show(found: Plan, *, as_json: bool) -> None:
    if as_json:
        out_json(
            {
                "steps": [_step(step) for step in found.steps],
                "differences": [_difference(one) for one in found.differences],
                "kept": found.kept,
            }
        )
        return
    for step in found.steps:
        out(_line(step))
    for one in found.differences:
        out(f"differs  {one.thing.value:<8} {one.event_name}")
        note(f"  {printable(one.id)} {printable(one.what)}. {one.remedy}")
    out(f"{found.kept:,} stay as they are, {len(found.steps):,} change.")


def _line(step: Step) -> str:
    from streams.domain.billing.prices.catalogue import Thing, money

    of = ""
    if step.wanted is not None and step.thing is Thing.PRICE:
        of = f": {money(step.wanted.unit_amount, step.wanted.currency)}"
    which = "" if step.id in ("", step.event_name) else f" ({printable(step.id)})"
    return f"{step.action.value:<8} {step.thing.value:<8} {step.event_name}{which}{of}"


def _step(step: Step) -> dict[str, Any]:
    wanted = step.wanted
    return {
        "action": step.action.value,
        "object": step.thing.value,
        "meter": step.event_name,
        "id": step.id or None,
        "name": None if wanted is None else wanted.name,
        "currency": None if wanted is None else wanted.currency,
        "unit_amount_decimal": None if wanted is None else f"{wanted.unit_amount:f}",
    }


def _difference(one: Difference) -> dict[str, Any]:
    return {
        "object": one.thing.value,
        "meter": one.event_name,
        "id": one.id,
        "what": one.what,
        "remedy": one.remedy,
    }


def _remedy(found: Plan) -> str:
    if found.differences:
        return "See the remedies above; nothing of somebody else's is touched."
    return "Run `backhaul billing sync` to change it."
