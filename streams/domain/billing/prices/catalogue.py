"""What Stripe must have for the price book, and the steps from what it has to that.

A meter, a product and a price for each line of the book and type of token, named by the meter's
event name: it is the product's id, the price's lookup key, and under `MARK` in the metadata of
both. What has no such mark is somebody else's and is never touched. Meters have no metadata; one
is ours by its event name.

- A price can't change at Stripe. Another amount is a new price that takes the lookup key, and the
  old one is archived: two prices of a meter in a subscription would bill its tokens twice.
- Archived prices and products stay in the subscriptions that have them; nothing new takes them.
- Meters are never archived: amounts on their way may still name them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from streams.domain.billing.prices.book import OTHER_MODELS, REALTIME, PriceBook, PriceLine
from streams.domain.billing.prices.meter_names import meter_of
from streams.domain.billing.tokens import TokenType

#: Key in the metadata of our products and prices; its value is the meter's event name.
MARK = "backhaul_meter"
#: What the meter's events say, and how they add up.
FORMULA, CUSTOMER_KEY, VALUE_KEY = "sum", "stripe_customer_id", "value"
INTERVAL = "month"
#: Decimals of an amount that Stripe takes, and its longest product name.
MAX_DECIMALS = 12
_MAX_NAME = 250
#: What Stripe counts in other units than hundredths.
_NO_DECIMALS = frozenset(
    "bif clp djf gnf jpy kmf krw mga pyg rwf vnd vuv xaf xof xpf".split()  # noqa: SIM905
)
_THREE_DECIMALS = frozenset({"bhd", "jod", "kwd", "omr", "tnd"})
#: Stripe's documentation has it both ways.
_UNCLEAR = frozenset({"ugx"})
_NO_DATE = "1970-01-01"


class CatalogueError(ValueError):
    """The price book can't be had at Stripe as it is; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one meter needs. unit_amount: minor units of the currency for one token, exact."""

    event_name: str
    name: str
    currency: str
    unit_amount: Decimal


@dataclass(frozen=True, slots=True)
class MeterThere:
    """A meter as Stripe has it."""

    id: str
    event_name: str
    active: bool
    formula: str
    customer_key: str
    value_key: str

    @property
    def fits(self) -> bool:
        """Whether it sums what the events say, as they say it."""
        return (self.formula, self.customer_key, self.value_key) == (
            *(FORMULA, CUSTOMER_KEY, VALUE_KEY),
        )


@dataclass(frozen=True, slots=True)
class ProductThere:
    """A product as Stripe has it. mark: whose it is; None if not ours."""

    id: str
    active: bool
    mark: str | None


@dataclass(frozen=True, slots=True)
class Terms:
    """All that makes a price what it is."""

    product_id: str
    meter_id: str
    currency: str
    unit_amount: Decimal
    interval: str = INTERVAL


@dataclass(frozen=True, slots=True)
class PriceThere:
    """A price as Stripe has it. terms: None of one that is not by metered unit."""

    id: str
    active: bool
    mark: str | None
    lookup_key: str | None
    terms: Terms | None


@dataclass(frozen=True, slots=True)
class Found:
    """What Stripe has, other people's objects too; the newest first."""

    meters: tuple[MeterThere, ...] = ()
    products: tuple[ProductThere, ...] = ()
    prices: tuple[PriceThere, ...] = ()


class Action(StrEnum):
    """What a step does."""

    CREATE = "create"
    #: An archived object of ours is taken into use again.
    RESTORE = "restore"
    ARCHIVE = "archive"


class Thing(StrEnum):
    """What it does that to."""

    METER = "meter"
    PRODUCT = "product"
    PRICE = "price"


@dataclass(frozen=True, slots=True)
class Step:
    """One change at Stripe.

    id: of the object, or for a new one '' where Stripe chooses. wanted: what to create; None
    otherwise. number: of the prices that the meter had before, so that no two creations are alike.
    """

    action: Action
    thing: Thing
    event_name: str
    id: str = ""
    wanted: Wanted | None = None
    number: int = 0


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that differs from the book, and that only a person can mend."""

    thing: Thing
    event_name: str
    id: str
    what: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in their order, what stays different, and how many objects stay as they are."""

    steps: tuple[Step, ...]
    differences: tuple[Difference, ...]
    kept: int


def wanted_of(book: PriceBook, windows: Iterable[str]) -> tuple[Wanted, ...]:
    """What the book needs for these windows, `REALTIME` among them. Raises CatalogueError."""
    found: dict[str, Wanted] = {}
    for line in book.lines(windows):
        for token_type in TokenType:
            if token_type is TokenType.REASONING and line.rates.reasoning is None:
                continue
            event_name = meter_of(token_type, line.window, line)
            found[event_name] = Wanted(
                event_name,
                _name(token_type, line),
                book.currency,
                _unit_amount(event_name, line.billed(token_type), book.currency),
            )
    return tuple(found.values())


def plan(wanted: Iterable[Wanted], found: Found) -> Plan:
    """The steps that make Stripe agree; none if it does."""
    planner = _Planner(found)
    names = set()
    for one in wanted:
        names.add(one.event_name)
        planner.bring(one)
    planner.retire(names)
    return Plan(tuple(planner.steps), tuple(planner.differences), planner.kept)


def decimals_of(currency: str) -> int:
    """How many decimals of the major unit Stripe's minor unit has. Raises CatalogueError."""
    if currency in _UNCLEAR:
        raise CatalogueError(
            f"It isn't clear in what unit Stripe counts {currency}: use another 'currency'."
        )
    if currency in _NO_DECIMALS:
        return 0
    return 3 if currency in _THREE_DECIMALS else 2


def _unit_amount(event_name: str, billed: Decimal, currency: str) -> Decimal:
    """Of the book's micro-units for a token. Exact, or it raises CatalogueError."""
    amount = billed.scaleb(decimals_of(currency) - 6).normalize()
    exponent = amount.as_tuple().exponent
    if isinstance(exponent, int) and -exponent > MAX_DECIMALS:
        raise CatalogueError(
            f"{event_name}: {amount:f} of the minor unit of {currency} for a token has more than "
            f"the {MAX_DECIMALS} decimals that Stripe takes. Give the rate, or the discount, fewer "
            "decimals."
        )
    return amount


def _name(token_type: TokenType, line: PriceLine) -> str:
    """What customers read on their invoice."""
    model = "Other models" if line.model == OTHER_MODELS else line.model
    where = f" at {line.endpoint}" if line.endpoint else ""
    kind = "real-time" if line.window == REALTIME else f"batch {line.window}"
    valid_from = line.valid_from.isoformat()
    since = "" if valid_from == _NO_DATE else f", from {valid_from}"
    tokens = token_type.value.replace("_", " ")
    return f"{model}{where}, {tokens} tokens, {kind}{since}"[:_MAX_NAME]


class _Planner:
    """Collects steps and differences, line by line."""

    def __init__(self, found: Found) -> None:
        self.steps: list[Step] = []
        self.differences: list[Difference] = []
        self.kept = 0
        self._found = found
        self._products = {product.id: product for product in found.products}

    def bring(self, wanted: Wanted) -> None:
        """Meter, product and price of one line; nothing after what only a person can mend."""
        name = wanted.event_name
        strangers = [p for p in self._found.prices if p.lookup_key == name and p.mark is None]
        product = self._products.get(name)
        if product is not None and product.mark != name:
            self._differs(Thing.PRODUCT, name, product.id, "has our id and not our mark", _MARK_IT)
            return
        if strangers:
            held = "has our lookup key and not our mark"
            self._differs(Thing.PRICE, name, strangers[0].id, held, _GIVE_UP_KEY)
            return
        meter_id = self._meter(wanted)
        if meter_id is None:
            return
        if product is None:
            self._step(Action.CREATE, Thing.PRODUCT, name, name, wanted)
        elif not product.active:
            self._step(Action.RESTORE, Thing.PRODUCT, name, name)
        else:
            self.kept += 1
        self._price(wanted, Terms(name, meter_id, wanted.currency, wanted.unit_amount))

    def retire(self, names: set[str]) -> None:
        """Archives what is ours and of no line of the book."""
        for price in self._found.prices:
            if price.active and price.mark is not None and price.mark not in names:
                self._step(Action.ARCHIVE, Thing.PRICE, price.mark, price.id)
        for product in self._found.products:
            if product.active and product.mark is not None and product.mark not in names:
                self._step(Action.ARCHIVE, Thing.PRODUCT, product.mark, product.id)

    def _meter(self, wanted: Wanted) -> str | None:
        """Its id, '' if it is yet to be created; None if the name is another kind of meter's."""
        name = wanted.event_name
        named = [meter for meter in self._found.meters if meter.event_name == name]
        named.sort(key=lambda meter: not meter.active)
        best = next((meter for meter in named if meter.active or meter.fits), None)
        if best is None and not named:
            self._step(Action.CREATE, Thing.METER, name, wanted=wanted)
            return ""
        best = best or named[0]
        if not best.fits:
            self._differs(Thing.METER, name, best.id, _other(best), _OTHER_NAME)
            return None
        if best.active:
            self.kept += 1
        else:
            self._step(Action.RESTORE, Thing.METER, name, best.id)
        return best.id

    def _price(self, wanted: Wanted, terms: Terms) -> None:
        name = wanted.event_name
        ours = [price for price in self._found.prices if price.mark == name]
        # One that has the lookup key already goes before one that only is active.
        alike = sorted(
            (price for price in ours if price.terms == terms),
            key=lambda price: (price.lookup_key != name, not price.active),
        )
        best = alike[0] if alike else None
        if best is None:
            self._step(Action.CREATE, Thing.PRICE, name, wanted=wanted, number=len(ours))
        elif best.active and best.lookup_key == name:
            self.kept += 1
        else:
            self._step(Action.RESTORE, Thing.PRICE, name, best.id)
        for price in ours:
            if price.active and price is not best:
                self._step(Action.ARCHIVE, Thing.PRICE, name, price.id)

    def _step(
        self,
        action: Action,
        thing: Thing,
        name: str,
        found_id: str = "",
        wanted: Wanted | None = None,
        number: int = 0,
    ) -> None:
        self.steps.append(Step(action, thing, name, found_id, wanted, number))

    def _differs(self, thing: Thing, name: str, found_id: str, what: str, remedy: str) -> None:
        self.differences.append(Difference(thing, name, found_id, what, remedy))


_MARK_IT = f"If it is to be ours, put {MARK} = its id into its metadata; then run this again."
_GIVE_UP_KEY = "Take the lookup key from that price, then run this again."
_OTHER_NAME = (
    "Meters can't change, and an archived one keeps its name. Give the line of the price book a "
    "'valid_from' that is a day off: then its meters have other names. Until then its usage waits."
)


def _other(meter: MeterThere) -> str:
    return (
        f"has the formula {meter.formula!r}, its customer under {meter.customer_key!r} and its "
        f"value under {meter.value_key!r}"
    )


def money(unit_amount: Decimal, currency: str) -> str:
    """For people: what a million tokens cost, as the book has it."""
    return f"{unit_amount.scaleb(6 - decimals_of(currency)):f} {currency} per million tokens"
