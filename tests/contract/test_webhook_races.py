"""Two gateways change one webhook endpoint at once: one change counts, whoever reads, whenever."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.files.cleanup import Cleanup, CleanupTimes
from api.gateway import Gateway
from api.log_fake import FakeLog
from api.read_model.store import ReadModelStore
from api.read_model.webhook_rows import WebhookQueries
from schemas.records import BatchCancel, Record, WebhookEndpoint
from schemas.topics import BATCH_COMMAND, WEBHOOK, Topic
from streams.domain.clock import ManualClock
from streams.domain.webhooks.endpoints import deleted, endpoint_id_of, record_key, written
from streams.kafka.reader import ReadRecord
from streams.webhook_worker.endpoints import Endpoints
from tests.contract.test_api_webhooks import BASE, make, post
from tests.support.gateway import TIMEOUTS, GatewayUnderTest, running_gateway
from tests.support.webhooks import endpoint

TIMES = CleanupTimes()
NOW = 1_700_000_000_000
A_COMMAND = BatchCancel(command_id="c", batch_id="batch_x", tenant="nobody", at_ms=NOW)
#: Later than everything in the log.
LATER = NOW * 2
CREATED = endpoint("https://example.com/hook")
ID = CREATED.endpoint_id

Log = list[ReadRecord]


def told(log: Log, key: str, record: WebhookEndpoint | None) -> None:
    """Appends to the log."""
    log.append(ReadRecord(WEBHOOK, 0, len(log), NOW + len(log), key, record))


@dataclass
class Reader:
    """One gateway's read model of the log, and the change that it is about to send."""

    store: ReadModelStore
    read: int = 0
    draft: tuple[WebhookEndpoint, WebhookEndpoint] | None = None

    @property
    def queries(self) -> WebhookQueries:
        return WebhookQueries(self.store.reader)

    async def catch_up(self, log: Log) -> None:
        await self.store.apply(log[self.read :], {(WEBHOOK.name, 0): len(log)}, NOW)
        self.read = len(log)

    async def now(self) -> WebhookEndpoint | None:
        return await self.queries.endpoint(CREATED.tenant, ID)


@asynccontextmanager
async def reading() -> AsyncIterator[Reader]:
    store = await ReadModelStore.open(None, identity="log", clock=ManualClock(NOW))
    try:
        yield Reader(store)
    finally:
        await store.close()


@dataclass
class History:
    """What two gateways do to an endpoint. made: acknowledged changes, with what they were of."""

    gateways: list[Reader]
    log: Log = field(default_factory=list)
    made: list[tuple[WebhookEndpoint, WebhookEndpoint]] = field(default_factory=list)
    writes: int = 0

    async def step(self, number: int, what: str) -> None:
        """One step of one gateway.

        read: to the end. draft, delete: a change of what was read. send: it. clean: what counts no
        more gets its tombstone. forget: so does what says that the endpoint is deleted.
        """
        gateway = self.gateways[number]
        match what:
            case "read":
                await gateway.catch_up(self.log)
            case "draft" | "delete":
                before = await gateway.now()
                if before is not None and gateway.draft is None:
                    self.writes += 1
                    now = deleted(before, NOW) if what == "delete" else before
                    gateway.draft = (before, written(now, before, f"w{self.writes}"))
            case "send" if gateway.draft is not None:
                draft, gateway.draft = gateway.draft, None
                told(self.log, record_key(draft[1]), draft[1])
                await gateway.catch_up(self.log)
                if await gateway.queries.won(record_key(draft[1])):
                    self.made.append(draft)
            case "clean":
                await self._end(gateway, past_ms=LATER, deleted_ms=0)
            case "forget" if all(one.draft is None for one in self.gateways):
                # A day later, when nobody has a write on its way.
                await gateway.catch_up(self.log)
                await self._end(gateway, past_ms=0, deleted_ms=LATER)

    async def _end(self, gateway: Reader, *, past_ms: int, deleted_ms: int) -> None:
        found = await gateway.queries.past(past_ms=past_ms, deleted_ms=deleted_ms, limit=100)
        for key in found:
            told(self.log, key, None)

    def expected(self) -> WebhookEndpoint | None:
        last = self.made[-1][1] if self.made else CREATED
        return None if last.deleted_at_ms is not None else last


def compacted(log: Log, random: Random) -> Log:
    """A log as compaction may leave it at some time: of each key at least the last record.

    A tombstone goes after all that it ended.
    """
    kept: Log = []
    for read in reversed(log):
        later = {one.key for one in kept} if read.record is None else set()
        ended = any(one.key == read.key and one.offset > read.offset for one in log)
        if not (ended and random.random() < 0.7) and read.key not in later:
            kept.insert(0, read)
    alive = {one.key for one in kept if one.record is not None}
    return [r for r in kept if r.record is not None or r.key in alive or random.random() < 0.5]


async def folded(log: Log) -> tuple[WebhookEndpoint | None, WebhookEndpoint | None]:
    """The endpoint as a gateway and as a webhook-worker read it that start with this log."""
    async with reading() as fresh:
        await fresh.catch_up(log)
        kept = FakeLog()
        kept.records[WEBHOOK.name, 0] = log
        worker = Endpoints(kept.reader([WEBHOOK]), lambda _: None)
        await worker.start()
        following = asyncio.create_task(worker.work())
        await worker.sync()
        following.cancel()
        return await fresh.now(), worker.get(ID)


steps = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.sampled_from(("read", "draft", "draft", "send", "send", "delete", "clean", "forget")),
    ),
    max_size=30,
)


@given(steps, st.randoms(use_true_random=False))
async def test_of_changes_at_once_those_acknowledged_are_a_chain_and_its_end_is_what_all_read(
    some: list[tuple[int, str]], random: Random
) -> None:
    async with reading() as one, reading() as other:
        history = History([one, other])
        told(history.log, record_key(CREATED), CREATED)
        for gateway in history.gateways:
            await gateway.catch_up(history.log)
        for number, what in some:
            await history.step(number, what)
        bases = [before for before, _ in history.made]
        assert bases == [CREATED, *(after for _, after in history.made)][: len(bases)]
        expected = history.expected()
        for gateway in history.gateways:
            await gateway.catch_up(history.log)
            assert await gateway.now() == expected
        assert await folded(history.log) == (expected, expected)
        for _ in range(3):
            assert await folded(compacted(history.log, random)) == (expected, expected)


# The same over HTTP.


@dataclass
class Pair:
    """Two gateways on one log, and an endpoint that both know."""

    one: GatewayUnderTest
    other: GatewayUnderTest
    made: Any


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with running_gateway() as one, running_gateway(log=one.log) as other:
        other.keys = one.keys
        _, made = await make(one)
        await other.gateway.sync()
        yield Pair(one, other, made)


def just_before_the_other_writes(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]
) -> None:
    """Has `act` done when the other gateway has decided what to write and not written it yet."""
    publish = Gateway.publish
    done: list[Any] = []

    async def overtaken(self: Gateway, topic: Topic, key: str, record: Record) -> bool:
        if self is pair.other.gateway and not done:
            done.append(None)
            await act()
        return await publish(self, topic, key, record)

    monkeypatch.setattr(Gateway, "publish", overtaken)


async def shown_anew(pair: Pair) -> Any:
    """The endpoint as a gateway shows it that reads what compaction may leave."""
    await Cleanup(pair.one.gateway, CleanupTimes(grace_s=-60.0)).once()
    last = {read.key: read.offset for read in pair.one.log.of(WEBHOOK)}
    kept = [read for read in pair.one.log.of(WEBHOOK) if last[read.key] == read.offset]
    log = FakeLog()
    log.records[WEBHOOK.name, 0] = [
        dataclasses.replace(read, offset=n) for n, read in enumerate(kept)
    ]
    async with running_gateway(log=log) as anew:
        answer = await anew.http().get(f"{BASE}/{pair.made['id']}")
        return await answer.json()


async def test_a_secret_that_was_acknowledged_is_not_lost_to_another_gateways_rotation(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, answers = f"{pair.made['id']}/rotate_secret", []

    async def rotate() -> None:
        answers.append(await post(pair.one, path))

    just_before_the_other_writes(pair, monkeypatch, rotate)
    status, refusal = await post(pair.other, path)
    ((first, shown),) = answers
    assert (first, status) == (200, 409)
    assert "this change was not made" in refusal["error"]["message"]
    assert "signing_secret" not in str(refusal)
    for gateway in (pair.one, pair.other):
        now = await gateway.gateway.webhooks.endpoint("acme", pair.made["id"])
        assert now is not None
        assert now.secret == shown["signing_secret"]
    anew = await shown_anew(pair)
    assert anew["signing_secret_hint"] == shown["signing_secret_hint"]
    assert (await post(pair.other, path))[0] == 200, "the next one reads what counts"


async def test_a_deleted_endpoint_does_not_come_back_by_another_gateways_change(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def delete() -> None:
        await pair.one.sdk()(lambda c: c.webhooks.delete(pair.made["id"]))

    just_before_the_other_writes(pair, monkeypatch, delete)
    assert (await post(pair.other, pair.made["id"], {"name": "b"}))[0] == 409
    for gateway in (pair.one, pair.other):
        assert (await gateway.http().get(f"{BASE}/{pair.made['id']}")).status == 404
        assert await gateway.sdk().all(lambda c: c.webhooks.list()) == []
    assert "error" in await shown_anew(pair)


async def test_a_deletion_that_another_gateways_change_came_before_is_not_made(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def change() -> None:
        assert (await post(pair.one, pair.made["id"], {"name": "b"}))[0] == 200

    just_before_the_other_writes(pair, monkeypatch, change)
    error = await pair.other.sdk().refused(lambda c: c.webhooks.delete(pair.made["id"]))
    assert error.status_code == 409
    assert (await shown_anew(pair))["name"] == "b"


async def test_a_change_that_was_made_is_a_success_also_if_another_came_after_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = Gateway.publish

    async def followed(self: Gateway, topic: Topic, key: str, record: Record) -> bool:
        read_back = await publish(self, topic, key, record)
        assert isinstance(record, WebhookEndpoint)
        if self is pair.other.gateway:
            assert (await post(pair.one, pair.made["id"], {"name": "c"}))[0] == 200
            await pair.other.gateway.sync()
        return read_back

    monkeypatch.setattr(Gateway, "publish", followed)
    assert (await post(pair.other, pair.made["id"], {"name": "b"}))[0] == 200


async def test_a_change_that_is_not_read_back_is_no_success() -> None:
    async with running_gateway(timeouts=dataclasses.replace(TIMEOUTS, read_back_s=0.1)) as gateway:
        _, made = await make(gateway)

        def hold(_: ReadRecord) -> bool:
            gateway.log.held = True
            return False

        gateway.log.lose_answer = hold
        status, answer = await post(gateway, f"{made['id']}/rotate_secret")
        assert (status, answer["error"]["code"]) == (503, "unavailable")


async def test_what_was_replaced_or_deleted_ends_with_its_secrets() -> None:
    clock = ManualClock(NOW)
    async with running_gateway(clock=clock) as gateway:
        _, kept = await make(gateway)
        _, gone = await make(gateway)
        for made in (kept, gone):
            assert (await post(gateway, f"{made['id']}/rotate_secret"))[0] == 200
        await gateway.sdk()(lambda c: c.webhooks.delete(gone["id"]))
        cleanup = Cleanup(gateway.gateway, TIMES)

        async def left_after(seconds: float) -> list[tuple[str, bool]]:
            while seconds > 0:
                # In steps, each heard of, or the gateway would take the log for another.
                clock.advance(step := min(seconds, 3600.0))
                seconds -= step
                await gateway.log.send(BATCH_COMMAND, "batch_x", A_COMMAND)
                await gateway.gateway.sync()
            await cleanup.once()
            last = {read.key: read.record for read in gateway.log.of(WEBHOOK)}
            return [
                (endpoint_id_of(key), bool(record.secret))
                for key, record in last.items()
                if isinstance(record, WebhookEndpoint)
            ]

        assert len(await left_after(TIMES.grace_s - 1)) == 5
        assert await left_after(1) == [(kept["id"], True), (gone["id"], False)]
        assert await left_after(TIMES.orphan_s) == [(kept["id"], True)]
        assert await left_after(0) == [(kept["id"], True)]
        (now,) = [read for read in gateway.log.of(WEBHOOK) if read.key.startswith(kept["id"] + "/")]
        assert isinstance(now.record, WebhookEndpoint)
        assert now.record.revision == 1
