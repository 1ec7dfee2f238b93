"""Reconciling: the same tokens, counted in four places, held against each other.

    output file  =  ledger  =  what the meter sent  =  the sink's sums
    per tenant, batch, model and type of token         per customer and meter, in whole minutes

- The ledger (the batch's snapshot) is what the others are held against. Real-time requests have
  neither ledger nor file: of them only what waits and the sink's sums are looked at.
- What the meter sent is a sum over sends, whatever state they are in. What is on its way is no
  difference; what waits for somebody is. What a person has taken back or written off is explained.
- The sink knows no batches: its sum over a range is held against all sends of that customer and
  meter in the range. Where it is not known whether a send has arrived, both sums are right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import assert_never

from schemas.records import BatchSnapshot, MeterSend, SendState, Usage
from streams.domain.billing.meter.send import MINUTE_MS, UNCLEAR, minute_of
from streams.domain.billing.prices.batch_cost import used_by_model
from streams.domain.billing.prices.book import REALTIME
from streams.domain.billing.tokens import split

#: In place of a model, where a batch's usage is not known by model.
ALL_MODELS = "(all)"
#: In place of a batch, of sums.
ALL_BATCHES, REALTIME_REQUESTS = "all batches", "real-time requests"
#: The model of lines of an output file of which nobody says what they ran on.
UNKNOWN_MODEL = "(unknown)"


@dataclass(frozen=True, slots=True, order=True)
class Account:
    """What tokens are counted for."""

    tenant: str
    batch_id: str
    model: str
    token_type: str


@dataclass(slots=True)
class Sent:
    """Tokens of sends, by what became of them.

    on_way: also those that no send has yet, and those that are being taken back. cancelled,
    written_off: as a person has decided.
    """

    confirmed: int = 0
    on_way: int = 0
    parked: int = 0
    rejected: int = 0
    cancelled: int = 0
    written_off: int = 0

    def add(self, send: MeterSend) -> None:
        """One more."""
        match send.state:
            case SendState.CONFIRMED:
                self.confirmed += send.tokens
            case SendState.PENDING | SendState.SENT | SendState.CANCELLING:
                self.on_way += send.tokens
            case SendState.PARKED:
                self.parked += send.tokens
            case SendState.REJECTED | SendState.UNKNOWN:
                self.rejected += send.tokens
            case SendState.CANCELLED:
                self.cancelled += send.tokens
            case SendState.WRITTEN_OFF:
                self.written_off += send.tokens
            case _:
                assert_never(send.state)

    def plus(self, other: Sent) -> Sent:
        """The sums of both."""
        return Sent(
            self.confirmed + other.confirmed,
            self.on_way + other.on_way,
            self.parked + other.parked,
            self.rejected + other.rejected,
            self.cancelled + other.cancelled,
            self.written_off + other.written_off,
        )

    @property
    def total(self) -> int:
        """All of them."""
        billed = self.confirmed + self.on_way + self.parked + self.rejected
        return billed + self.adjusted

    @property
    def adjusted(self) -> int:
        """What a person has taken back or written off."""
        return self.cancelled + self.written_off


@dataclass(slots=True)
class Entry:
    """One line of the books. output, ledger: None where there is none to read."""

    account: Account
    output: int | None = 0
    ledger: int | None = 0
    sent: Sent = field(default_factory=Sent)
    #: Sends that wait for a person or a remedy.
    waiting: list[MeterSend] = field(default_factory=list)


class Cause(StrEnum):
    """In what the books differ."""

    OUTPUT = "output_file_differs"
    NOT_SENT = "not_sent"
    SENT_TOO_MUCH = "sent_too_much"
    PARKED = "parked"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Difference:
    """Two numbers that should be equal, or an amount that should be 0."""

    cause: Cause
    account: Account
    expected: int
    found: int


class Books:
    """The books of batches that have ended."""

    def __init__(self) -> None:
        self._batches: dict[tuple[str, str], _Batch] = {}

    def add_batch(
        self, snapshot: BatchSnapshot, output: Mapping[str, Usage] | None, *, settled: bool
    ) -> None:
        """A batch with its ledger, before any of its sends.

        output: what its output file says, by model; None if there is none to read. settled: whether
        all its sends must exist by now.
        """
        by_model = used_by_model(snapshot)
        used = {ALL_MODELS: snapshot.usage} if by_model is None else by_model
        apart = by_model is not None and UNKNOWN_MODEL not in (output or {})
        key = (snapshot.tenant, snapshot.batch_id)
        batch = _Batch(*key, apart, settled, output is not None)
        self._batches[key] = batch
        for entry, tokens in batch.of(used):
            entry.ledger = (entry.ledger or 0) + tokens
        for entry, tokens in batch.of(output or {}):
            entry.output = (entry.output or 0) + tokens

    def add_send(self, send: MeterSend) -> None:
        """The latest state of an amount; what of a batch that nobody knows was sent is too much."""
        key = (send.tenant, send.batch_id)
        batch = self._batches.get(key)
        if batch is None:
            has_ledger = send.completion_window != REALTIME
            batch = self._batches[key] = _Batch(*key, True, True, False, has_ledger)
        entry = batch.entry(send.model, send.token_type)
        entry.sent.add(send)
        if send.state in (SendState.PARKED, SendState.REJECTED):
            entry.waiting.append(send)

    def close(self) -> list[Difference]:
        """Counts what no send has yet, and returns all differences."""
        found: list[Difference] = []
        for _, batch in sorted(self._batches.items()):
            for entry in batch.all():
                missing = (entry.ledger or 0) - entry.sent.total
                if missing > 0 and not batch.settled:
                    entry.sent.on_way += missing
                found += differences(entry)
        return found

    def entries(self) -> list[Entry]:
        """All lines, in order."""
        return [entry for _, batch in sorted(self._batches.items()) for entry in batch.all()]


@dataclass(slots=True)
class _Batch:
    """apart: whether its usage is known by model, in its ledger and in its output file."""

    tenant: str
    batch_id: str
    apart: bool
    settled: bool
    has_output: bool
    has_ledger: bool = True
    entries: dict[Account, Entry] = field(default_factory=dict)

    def entry(self, model: str, token_type: str) -> Entry:
        """Its line for that, made where there is none."""
        name = model if self.apart else ALL_MODELS
        account = Account(self.tenant, self.batch_id, name, token_type)
        if account not in self.entries:
            output, ledger = 0 if self.has_output else None, 0 if self.has_ledger else None
            self.entries[account] = Entry(account, output, ledger)
        return self.entries[account]

    def of(self, used: Mapping[str, Usage]) -> Iterator[tuple[Entry, int]]:
        """The lines that this usage belongs to, with its tokens."""
        for model, usage in used.items():
            for token_type, tokens in split(usage).items():
                if tokens:
                    yield self.entry(model, token_type.value), tokens

    def all(self) -> list[Entry]:
        """Its lines, in order."""
        return [self.entries[account] for account in sorted(self.entries)]


def differences(entry: Entry) -> Iterator[Difference]:
    """In what one line of the books is not balanced."""
    account, ledger, sent = entry.account, entry.ledger, entry.sent
    if ledger is not None:
        if entry.output is not None and entry.output != ledger:
            yield Difference(Cause.OUTPUT, account, ledger, entry.output)
        if sent.total < ledger:
            yield Difference(Cause.NOT_SENT, account, ledger, sent.total)
        if sent.total > ledger:
            yield Difference(Cause.SENT_TOO_MUCH, account, ledger, sent.total)
    if sent.parked:
        yield Difference(Cause.PARKED, account, 0, sent.parked)
    if sent.rejected:
        yield Difference(Cause.REJECTED, account, 0, sent.rejected)


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """Whole minutes [start, end) of a customer's meter."""

    customer: str
    event_name: str
    start_ms: int
    end_ms: int

    @property
    def minutes(self) -> int:
        """How many."""
        return (self.end_ms - self.start_ms) // MINUTE_MS

    def halves(self) -> tuple[Range, Range]:
        """Its first and its second half; it must be longer than a minute."""
        middle_ms = self.start_ms + self.minutes // 2 * MINUTE_MS
        return (
            Range(self.customer, self.event_name, self.start_ms, middle_ms),
            Range(self.customer, self.event_name, middle_ms, self.end_ms),
        )


@dataclass(frozen=True, slots=True)
class Expected:
    """What the sink's sum over a range must be: at least what surely is there."""

    least: int
    most: int

    def agrees(self, found: int) -> bool:
        """Whether that is a right sum."""
        return self.least <= found <= self.most


def ranges(sends: Iterable[MeterSend]) -> list[Range]:
    """The ranges that hold these sends, one for each customer and meter."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for send in sends:
        if send.customer is None or send.event_name is None:
            continue
        minute = minute_of(send.at_ms)
        key = (send.customer, send.event_name)
        start, end = found.get(key, (minute, minute))
        found[key] = (min(start, minute), max(end, minute))
    return sorted(Range(*key, start, end + MINUTE_MS) for key, (start, end) in found.items())


class Within:
    """Tells which sends belong to some of these ranges, one for each customer and meter."""

    def __init__(self, wanted: Iterable[Range]) -> None:
        self._ranges = {(range_.customer, range_.event_name): range_ for range_ in wanted}

    def has(self, send: MeterSend) -> bool:
        """Whether it does."""
        range_ = self._ranges.get((send.customer or "", send.event_name or ""))
        return range_ is not None and range_.start_ms <= send.at_ms < range_.end_ms


class SinkBooks:
    """What the sink should have, of all sends in some ranges."""

    def __init__(self, sends: Iterable[MeterSend], now_ms: int, lag_ms: int) -> None:
        """lag_ms: how long the sink's sums may lack what it has taken."""
        self._sends: dict[tuple[str, str], list[MeterSend]] = {}
        self._recent_ms = now_ms - lag_ms
        for send in sends:
            if send.customer is not None and send.event_name is not None:
                self._sends.setdefault((send.customer, send.event_name), []).append(send)

    def within(self, range_: Range) -> list[MeterSend]:
        """The sends of that customer and meter in the range."""
        sends = self._sends.get((range_.customer, range_.event_name), [])
        return [send for send in sends if range_.start_ms <= send.at_ms < range_.end_ms]

    def expected(self, range_: Range) -> Expected:
        """What the sink's sum should be."""
        least = most = 0
        for send in self.within(range_):
            sure = self._is_there(send)
            least += send.tokens if sure is True else 0
            most += 0 if sure is False else send.tokens
        return Expected(least, most)

    def _is_there(self, send: MeterSend) -> bool | None:
        """Whether the sink's sums hold it; None if that isn't known."""
        if send.state in (SendState.CONFIRMED, SendState.CANCELLED):
            there = send.state is SendState.CONFIRMED
            return None if send.changed_at_ms > self._recent_ms else there
        if send.state in (SendState.SENT, SendState.CANCELLING):
            return None
        return None if send.state is SendState.PARKED and send.reason == UNCLEAR else False


def sums(entries: Iterable[Entry]) -> list[Entry]:
    """Sums by tenant, model and type of token, of batches and of real-time requests apart."""
    found: dict[Account, Entry] = {}
    for entry in entries:
        account = entry.account
        of = REALTIME_REQUESTS if entry.ledger is None else ALL_BATCHES
        key = Account(account.tenant, of, account.model, account.token_type)
        total = found.setdefault(key, Entry(key, None, None))
        if entry.output is not None:
            total.output = (total.output or 0) + entry.output
        if entry.ledger is not None:
            total.ledger = (total.ledger or 0) + entry.ledger
        total.sent = total.sent.plus(entry.sent)
    return [found[key] for key in sorted(found)]
