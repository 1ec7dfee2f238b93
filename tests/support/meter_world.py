"""A meter in a world where everything goes wrong: a log, tables that lose what isn't flushed, a
sink with faults, and a process that dies between any two steps."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from schemas.codec import decode, encode
from schemas.metrics import Metrics
from schemas.partitions import partition_for
from schemas.records import (
    BillingCommand,
    BillingCommandKind,
    BillingDecision,
    LineUsage,
    MeterSend,
    Record,
    SendState,
    Usage,
    UsageRecorded,
)
from schemas.topics import Topic
from streams.adapters.meter_fake import FakeMeterSink, Fault
from streams.domain.billing.prices.book import PriceBook
from streams.domain.billing.prices.meter_names import meter_of
from streams.domain.billing.tokens import TokenType, split
from streams.domain.clock import ManualClock
from streams.kafka.producer import Place
from streams.meter.books import Books
from streams.meter.desk import Desk
from streams.meter.pace import Pacer
from streams.meter.ports import Cause, MeterRow
from streams.meter.sender import Around, Sender

PARTITIONS = 4
CHAT = "/v1/chat/completions"
Reach = Callable[[str], None]
#: Told the record, if one is being sent.
Meanwhile = Callable[[Record | None], Awaitable[None]]


async def nothing(_: Record | None) -> None:
    """Others get no turn."""


class Killed(BaseException):
    """The process dies here."""


class World:
    """What outlives a process, and the process that runs in it at present."""

    def __init__(self, seed: int = 0, book: PriceBook | None = None) -> None:
        self.random = random.Random(seed)
        self.clock = ManualClock()
        self.sink = FakeMeterSink(self.clock)
        self.book = book
        self.customers: dict[str, str] = {}
        self.log: list[UsageRecorded] = []
        #: Records of the log that are encoded already, by their place.
        self.wire: dict[int, bytes] = {}
        self.tables = {"chunks": Table(self.random), "sends": Table(self.random)}
        #: What meter.send holds once it is compacted.
        self.published: dict[str, MeterSend] = {}
        self.decisions: dict[str, BillingDecision] = {}
        #: All that ever were on meter.send.
        self.told: list[BillingDecision] = []
        self.commands: list[BillingCommand] = []
        self.committed = self.commands_committed = 0
        self.calls_per_s = 1000.0
        #: What happens while the meter awaits: the fence, a flush, a record that is sent.
        self.meanwhile: Meanwhile = nothing
        self.reach: Reach = lambda _: None
        self.start()

    # -- life ------------------------------------------------------------------------------

    def start(self) -> None:
        """A process on what is durable."""
        self.position = self.acked = self.committed
        self.obeyed = self.commands_committed
        self.books = Books(self.tables["chunks"], self.tables["sends"])
        self.books.load(range(PARTITIONS), PARTITIONS, self.clock.now_ms())
        self.sender = Sender(
            Around(
                books=self.books,
                sink=self.sink,
                prices=lambda: self.book,
                customer_of=self.customers.get,
                publisher=self,
                guard=self,
                flush=self.flush,
                clock=self.clock,
                pacer=Pacer(self.calls_per_s, self.clock),
                metrics=Metrics(),
                window_s=300.0,
                random=self.random.random,
                sleep=self.sleep,
            )
        )

        self.desk = Desk(self.books, self, self, self.clock, self.flush, self.sender.enqueue)

    def die_and_start(self) -> None:
        """kill -9, and the next process."""
        for table in self.tables.values():
            table.lose()
        self.start()

    async def sleep(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def wait(self) -> None:
        """The fence: never closed, but sometimes slow."""
        await self.meanwhile(None)

    async def turns_for_others(self, _: object = None) -> None:
        """A meanwhile of some turns of the event loop, or none."""
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)

    async def flush(self) -> None:
        await self.meanwhile(None)
        for table in self.tables.values():
            table.flush()

    async def send(self, _topic: Topic, key: str, record: Record | None) -> Place:
        await self.meanwhile(record)
        if isinstance(record, BillingDecision):
            self.decisions[key] = record
            self.told.append(record)
        else:
            self.published[key] = cast("MeterSend", record)
        return Place(0, 0)

    async def commit(self) -> None:
        """As the role does: what is acked, once the tables are durable."""
        await self.flush()
        self.committed = self.acked
        self.commands_committed = self.obeyed

    # -- work ------------------------------------------------------------------------------

    def count_some(self, most: int = 1) -> bool:
        """Counts the next records of the log, several at once; False if there are none."""
        places = range(self.position, min(self.position + most, len(self.log)))
        if not places:
            return False
        records = [
            (cast("UsageRecorded", decode(self.wire.get(at) or encode(self.log[at]))), at)
            for at in places
        ]
        self.books.count(records, self.clock.now_ms())
        self.position = places.stop
        self.reach("meter.counted")
        self.acked = max(self.acked, self.position)
        return True

    def order(self, identifier: str, kind: BillingCommandKind, tenant: str = "ada") -> str:
        """Writes a command into the log; its id."""
        given = BillingCommand(
            command_id=f"cmd_{len(self.commands)}",
            tenant=tenant,
            identifier=identifier,
            kind=kind,
            reason="the customer asked for it",
            by="ops",
            at_ms=self.clock.now_ms(),
        )
        self.commands.append(given)
        return given.command_id

    async def obey_one(self) -> bool:
        """Carries out the next command; False if there is none."""
        if self.obeyed >= len(self.commands):
            return False
        given = cast("BillingCommand", decode(encode(self.commands[self.obeyed])))
        assert await self.desk.obey(given, self.obeyed, lambda: True)
        self.obeyed += 1
        return True

    async def turn(self) -> None:
        """Closes windows and sends what is due."""
        await self.sender.tell_untold()
        await self.sender.close_windows()
        await self.sender.review_if_due()
        for lane in self.sender.due_lanes():
            await self.sender.drain(lane)

    async def settle(self, turns: int = 400, step_s: float = 120.0) -> None:
        """Runs without faults until nothing is left to do."""
        self.sink.fault = lambda: Fault.NONE
        self.reach = lambda _: None
        while self.count_some():
            pass
        while await self.obey_one():
            pass
        for _ in range(turns):
            await self.turn()
            if not self.books.unbilled and not self.to_send():
                return
            self.clock.advance(step_s)
        raise AssertionError("The meter never came to rest.")

    def to_send(self) -> list[MeterSend]:
        """Open sends that wait for nothing but the sink."""
        return [s for s in self.books.open.values() if s.state is not SendState.PARKED]

    # -- the truth -------------------------------------------------------------------------

    def expected(self, *, flagged: bool = False) -> dict[tuple[str, str], int]:
        """By customer and meter, over each line of the log once; the first copy counts."""
        seen: set[tuple[str, str, int]] = set()
        found: Counter[tuple[str, str]] = Counter()
        for record in self.log:
            for line in record.lines:
                key = (record.tenant, record.batch_id, line.line)
                if key in seen:
                    continue
                seen.add(key)
                if (line.usage_flag == "absurd") is flagged:
                    found.update(self._meters(record, line))
        return {key: tokens for key, tokens in found.items() if tokens}

    def _meters(self, record: UsageRecorded, line: LineUsage) -> dict[tuple[str, str], int]:
        window, model = record.completion_window, record.models[line.model]
        price = None
        if self.book is not None:
            price = self.book.line(model, record.endpoint, window, record.batch_created_at_ms)
        customer = self.customers.get(record.tenant, record.tenant)
        found: Counter[tuple[str, str]] = Counter()
        for token_type, tokens in split(line.usage).items():
            found[customer, meter_of(TokenType(token_type), window, price)] += tokens
        return found


@dataclass
class Table:
    """A table whose changelog keeps a prefix of what was written, at a crash."""

    random: random.Random
    data: dict[str, bytes] = field(default_factory=dict)
    durable: dict[str, bytes] = field(default_factory=dict)
    unflushed: list[tuple[str, bytes | None]] = field(default_factory=list)

    def get(self, key: str) -> MeterRow | None:
        value = self.data.get(key)
        return None if value is None else cast("MeterRow", decode(value))

    def put(self, key: str, row: MeterRow, cause: Cause) -> None:
        assert cause.partition == partition_for(row.tenant, PARTITIONS)
        self._write(key, encode(row))

    def delete(self, key: str, cause: Cause) -> None:
        self._write(key, None)

    def items(self) -> Iterator[tuple[str, MeterRow]]:
        for key in list(self.data):
            row = self.get(key)
            if row is not None:
                yield key, row

    def _write(self, key: str, value: bytes | None) -> None:
        _apply(self.data, key, value)
        self.unflushed.append((key, value))

    def flush(self) -> None:
        self._keep(len(self.unflushed))

    def lose(self) -> None:
        """The process dies: the broker has got some of what was on its way, in order."""
        self._keep(self.random.randint(0, len(self.unflushed)))
        self.unflushed.clear()
        self.data = dict(self.durable)

    def _keep(self, count: int) -> None:
        for key, value in self.unflushed[:count]:
            _apply(self.durable, key, value)
        del self.unflushed[:count]


def _apply(data: dict[str, bytes], key: str, value: bytes | None) -> None:
    if value is None:
        data.pop(key, None)
    else:
        data[key] = value


def usage(
    tenant: str,
    batch: str,
    lines: range | list[int],
    at_ms: int,
    *,
    model: str = "m",
    flag: str = "",
    window: str = "24h",
    created_at_ms: int | None = None,
    of: Callable[[int], Usage] | None = None,
) -> UsageRecorded:
    """Usage of these lines, of which each copy says the same."""
    return UsageRecorded(
        usage_id=f"{batch}:{at_ms}",
        batch_id=batch,
        tenant=tenant,
        at_ms=at_ms,
        endpoint=CHAT,
        completion_window=window,
        batch_created_at_ms=at_ms if created_at_ms is None else created_at_ms,
        models=(model,),
        lines=tuple(
            LineUsage(line=n, model=0, completed=True, usage=(of or tokens_of)(n), usage_flag=flag)
            for n in lines
        ),
    )


def tokens_of(line: int) -> Usage:
    """What the line used."""
    return Usage(
        input_tokens=100 + line,
        cached_tokens=line % 50,
        output_tokens=20 + line % 7,
        reasoning_tokens=line % 5,
    )


@dataclass
class Chaos:
    """Kills at steps and faults of the sink, by seed; counts what it did."""

    world: World
    kill_share: float = 0.06
    fault_share: float = 0.4
    done: Counter[str] = field(default_factory=Counter)
    killed_at: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))

    def arm(self, patch: pytest.MonkeyPatch) -> None:
        """From now on things go wrong."""
        self.world.sink.fault = self.fault
        self.world.reach = self.reach
        patch.setattr("streams.meter.sender.reach", self._reached)
        patch.setattr("streams.meter.desk.reach", self._reached)

    def _reached(self, name: str) -> None:
        self.world.reach(name)

    def reach(self, name: str) -> None:
        if self.world.random.random() < self.kill_share:
            self.done["killed"] += 1
            self.killed_at[name] += 1
            raise Killed

    def fault(self) -> Fault:
        if self.world.random.random() >= self.fault_share:
            return Fault.NONE
        fault = self.world.random.choice([f for f in Fault if f is not Fault.NONE])
        self.done[fault.value] += 1
        return fault

    async def survive(self, work: Callable[[], Any]) -> None:
        """Does something; if that kills the process, the next one starts."""
        try:
            result = work()
            if hasattr(result, "__await__"):
                await result
        except Killed:
            self.world.die_and_start()

    async def survive_both(
        self, one: Coroutine[Any, Any, Any], two: Coroutine[Any, Any, Any]
    ) -> None:
        """Does both at the same time."""
        tasks = [asyncio.ensure_future(one), asyncio.ensure_future(two)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        for error in found:
            if isinstance(error, BaseException) and not isinstance(
                error, Killed | asyncio.CancelledError
            ):
                raise error
        if any(isinstance(error, Killed) for error in found):
            self.world.die_and_start()
