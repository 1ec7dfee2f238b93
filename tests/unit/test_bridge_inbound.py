"""The bridge's reading half on fakes: what is committed when, who has a partition, what fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from api.bridge import patience
from api.bridge.inbound import Inbound, Parts
from schemas.headers import Kind
from schemas.metrics import Metrics
from streams.adapters.object_store_fake import FakeObjectStore
from streams.domain.bridge.inbox import SEAL_WITHIN_MS
from streams.domain.clock import ManualClock
from streams.kafka.errors import KafkaBaseError, SendFailed, Stalled, TopicMissing
from streams.kafka.group_reader import Mark
from streams.settings import Settings
from tests.support.bridge import SEAL, line
from tests.support.submissions import KeepingProducer, Topics
from tests.support.waiting import eventually

_SEAL = json.dumps(SEAL).encode()


class _World:
    def __init__(self) -> None:
        self.topics, self.producer = Topics(), KeepingProducer()
        self.topic = self.topics.of("acme")
        self.store, self.clock = FakeObjectStore(), ManualClock(1000)
        self.metrics = Metrics()
        self.all: list[Inbound] = []
        self.inbound = self.started()

    def started(self) -> Inbound:
        """A process that knows nothing but what is committed."""
        for part in self.topics.parts.values():
            part.rebalance()
        inbound = Inbound(
            Parts(
                submissions=self.topics,
                again=self.topics,
                made=self.producer,
                producer=self.producer,
                telling=self.producer,
                store=self.store,
                clock=self.clock,
                settings=Settings(),
                metrics=self.metrics,
            )
        )
        self.all.append(inbound)
        return inbound


async def work(inbound: Inbound) -> None:
    """Does all that came. Raises what a lane ended with."""
    await inbound.step(0)
    await eventually(lambda: inbound.idle)
    await inbound.step(0)


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[_World]:
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.0)
    world = _World()
    yield world
    for inbound in world.all:
        await inbound.stop()


async def test_a_sealed_batch_is_committed_at_once_and_never_made_again(world: _World) -> None:
    world.topic.add(b"k", line(0))
    world.topic.add(b"k", _SEAL, b"seal")
    await work(world.inbound)
    assert world.topic.commits[-1] == Mark(2, "2")
    world.inbound = world.started()
    await work(world.inbound)
    assert len(world.producer.creates) == 1


async def test_what_came_before_a_rebalance_counts_once(world: _World) -> None:
    world.topic.add(b"k", line(0))
    await work(world.inbound)
    world.topic.rebalance()
    world.topic.add(b"k", json.dumps(SEAL | {"lines": 1}).encode(), b"seal")
    await work(world.inbound)
    assert world.producer.kinds == [Kind.ACCEPTED]


async def test_a_kill_before_the_create_makes_the_same_batch_again(world: _World) -> None:
    world.topic.add(b"k", line(0))
    world.topic.add(b"k", _SEAL, b"seal")
    world.producer.fails = iter([SendFailed("the file record was not taken")])
    with pytest.raises(SendFailed):
        await work(world.inbound)
    await work(world.started())
    world.producer.creates.clear()
    world.topic.commits.clear()
    await work(world.started())
    first, again = world.producer.files
    assert first == again
    assert len(world.producer.creates) == 1


async def test_a_kill_after_the_create_brings_no_file_back_that_was_deleted_since(
    world: _World,
) -> None:
    for key in (b"k", b"l"):
        world.topic.add(key, line(0))
        world.topic.add(key, _SEAL, b"seal")
    await work(world.inbound)
    world.topic.commits[:] = [world.topic.commits[0]]
    await world.store.delete(world.producer.files[1].object.key)
    await work(world.started())
    assert len(world.producer.creates) == len(world.producer.files) == 2
    assert len(world.store.objects) == 1
    # Whether it was told is not known.
    assert world.producer.kinds == [Kind.ACCEPTED] * 3


async def test_a_file_that_was_deleted_before_its_batch_was_made_stays_deleted(
    world: _World,
) -> None:
    world.topic.add(b"k", line(0))
    world.topic.add(b"k", _SEAL, b"seal")
    await work(world.inbound)
    # As if the kill had come between the file's record and the create.
    world.producer.creates.clear()
    world.topic.commits.clear()
    world.producer.deletions.add(world.producer.files[0].file_id)
    await work(world.started())
    assert len(world.producer.files) == len(world.producer.creates) == 1


async def test_a_store_that_fails_delays_a_batch_and_loses_none(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.bridge.inbound._RETRY_S", (0.0, 0.0))
    world.topic.add(b"k", line(0))
    world.topic.add(b"k", _SEAL, b"seal")
    world.store.fail(3)
    await work(world.inbound)
    assert world.producer.kinds == [Kind.ACCEPTED]


async def test_lines_that_retention_took_are_told_and_make_no_smaller_batch(world: _World) -> None:
    world.topic.add(b"k", line(0))
    world.topic.add(b"k", line(1))
    world.topic.add(b"k", _SEAL, b"seal")
    world.topic.removed = 1
    await work(world.inbound)
    assert (world.producer.creates, world.producer.kinds) == ([], [Kind.REJECTED])


async def test_a_batch_that_nobody_seals_is_given_up_when_nothing_else_comes(
    world: _World,
) -> None:
    world.topic.add(b"k", line(0))
    await work(world.inbound)
    world.clock.advance(2 * SEAL_WITHIN_MS / 1000)
    await eventually(lambda: world.producer.kinds == [Kind.REJECTED])


async def test_a_tenant_without_a_results_topic_gets_its_batches_all_the_same(
    world: _World,
) -> None:
    world.producer.refusing["acme"] = TopicMissing("acme")
    world.topic.add(b"k", line(0))
    world.topic.add(b"k", _SEAL, b"seal")
    await work(world.inbound)
    assert len(world.producer.creates) == 1
    assert untold(world) == 1


@pytest.mark.parametrize(
    "error", [SendFailed("no leader"), KafkaBaseError("not authorized"), TopicMissing("gone")]
)
async def test_a_results_topic_that_takes_nothing_costs_only_its_tenant(
    world: _World, error: KafkaBaseError
) -> None:
    world.producer.refusing["evil"] = error
    evil = world.topics.of("evil")
    for key in (b"k", b"l"):
        evil.add(key, line(0))
        evil.add(key, _SEAL, b"seal")
    evil.add(b"m", b"", b"explode")
    world.topic.add(b"k", line(0))
    world.topic.add(b"k", _SEAL, b"seal")
    await work(world.inbound)
    assert sorted(c.tenant for c in world.producer.creates) == ["acme", "evil", "evil"]
    assert world.producer.kinds == [Kind.ACCEPTED]
    assert untold(world) == 3
    # The first answer is tried for a while, the others not at all in the next minute.
    assert world.producer.tries == {TopicMissing: 3, KafkaBaseError: 5}.get(type(error), 20)


async def test_a_results_topic_that_takes_answers_again_gets_them(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.bridge.told._SILENT_S", 0.0)
    world.producer.refusing["acme"] = SendFailed("no leader")
    world.topic.add(b"k", b"", b"explode")
    await work(world.inbound)
    world.producer.refusing.clear()
    world.topic.add(b"k", b"", b"explode")
    await work(world.inbound)
    assert world.producer.kinds == [Kind.REJECTED]


async def test_while_a_tenant_is_told_others_get_their_turns(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 1000.0)
    for tenant in ("evil", "bad", "ill"):
        world.producer.refusing[tenant] = SendFailed("no leader")
        for partition in range(4):
            topic = world.topics.of(tenant, partition)
            topic.add(b"k", line(0))
            topic.add(b"k", _SEAL, b"seal")
    world.topic.add(b"k", line(0))
    world.topic.add(b"k", _SEAL, b"seal")
    await world.inbound.step(0)
    await eventually(lambda: world.producer.kinds == [Kind.ACCEPTED])


async def test_a_topic_that_cannot_be_read_again_costs_only_its_tenant(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.bridge.inbound._RETRY_S", (0.0, 0.0))
    evil = world.topics.of("evil")
    evil.fails = iter([Stalled("no leader")] * 20)
    for topic in (evil, world.topic):
        topic.add(b"k", line(0))
        topic.add(b"k", _SEAL, b"seal")
    await work(world.inbound)
    assert [c.tenant for c in world.producer.creates] == ["acme", "evil"]


async def test_a_commit_that_is_refused_costs_only_its_tenant(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.bridge.inbound._RETRY_S", (0.0, 0.0))
    evil = world.topics.of("evil")
    evil.commits_fail = iter([KafkaBaseError("not authorized")] * 20)
    for topic in (evil, world.topic):
        for key in (b"k", b"l"):
            topic.add(key, line(0))
            topic.add(key, _SEAL, b"seal")
    await work(world.inbound)
    tenants = [c.tenant for c in world.producer.creates]
    # It goes on only once it is committed: whoever comes next looks for one create at most.
    assert tenants[-1] == "evil"
    assert evil.commits[-1].offset == 4


async def test_a_lane_that_lost_its_partition_carries_out_no_further_seal(
    world: _World,
) -> None:
    world.topic.refuses = True
    for key in (b"k", b"l", b"m"):
        world.topic.add(key, line(0))
        world.topic.add(key, _SEAL, b"seal")
    await world.inbound.step(0)
    await eventually(lambda: world.inbound.idle)
    assert len(world.producer.creates) == 1
    world.topic.refuses = False
    world.topic.rebalance()
    await world.store.delete(world.producer.files[0].object.key)
    await work(world.inbound)
    # Who has it next makes the others, and brings no file back.
    assert len(world.producer.creates) == len(world.producer.files) == 3
    assert len(world.store.objects) == 2
    assert world.producer.kinds == [Kind.ACCEPTED] * 4


async def test_a_batch_whose_partition_was_lost_while_its_file_was_written_is_left_to_the_next(
    world: _World,
) -> None:
    world.topic.add(b"k", line(0))
    world.topic.add(b"k", _SEAL, b"seal")
    await world.inbound.step(0)
    world.topic.rebalance()
    await eventually(lambda: world.inbound.idle)
    assert (world.producer.files, world.producer.creates) == ([], [])
    await work(world.inbound)
    assert len(world.producer.creates) == 1


def untold(world: _World) -> float:
    """How many answers were given up."""
    name = "backhaul_bridge_untold_total "
    for text in world.metrics.exposition().decode().splitlines():
        if text.startswith(name):
            return float(text.removeprefix(name))
    return 0.0


async def test_a_commits_note_that_somebody_else_wrote_is_no_offset(world: _World) -> None:
    world.topic.commits.append(Mark(0, "twelve"))
    world.topic.add(b"k", line(0))
    world.topic.add(b"k", _SEAL, b"seal")
    await work(world.started())
    assert len(world.producer.creates) == 1


async def test_what_waits_behind_a_seal_is_bounded_and_nothing_of_it_is_lost(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.bridge.inbound._SHARE_BYTES", 1000)
    monkeypatch.setattr("api.bridge.inbound._RETRY_S", (0.01, 0.01))
    for number in range(60):
        world.topic.add(b"k%d" % number, line(number))
        world.topic.add(b"k%d" % number, _SEAL, b"seal")
    world.topic.at_once = 10
    world.store.fail(5)

    async def all_made() -> bool:
        await world.inbound.step(0)
        return len(world.producer.creates) == 60

    await eventually(all_made)
    assert world.topic.pauses > 1
    assert [c.kafka_key for c in world.producer.creates] == [f"k{n}" for n in range(60)]


async def test_tenants_that_flood_have_only_their_shares_and_others_are_read_all_the_time(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.bridge.inbound._MAX_WAITING_BYTES", 40_000)
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 1000.0)
    for number in range(10):
        world.producer.refusing[f"evil-{number}"] = SendFailed("no leader")
        for partition in range(4):
            flood = world.topics.of(f"evil-{number}", partition)
            flood.at_once = 2
            for _ in range(100):
                flood.add(b"k", b"", b"explode")
    for number in range(30):
        world.topic.add(b"k%d" % number, line(number))
        world.topic.add(b"k%d" % number, _SEAL, b"seal")
    world.topic.at_once = 1

    async def all_made() -> bool:
        await world.inbound.step(0)
        assert sum(lane.waiting_bytes for lane in world.inbound._lanes) < 50_000
        return len(world.producer.creates) == 30

    await eventually(all_made)
    # Once they are answered, the floods go on.
    world.producer.refusing.clear()
    for inbound in (world.inbound, world.started()):
        await inbound.stop()
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.0)
    again = world.started()

    async def all_told() -> bool:
        await again.step(0)
        return world.producer.kinds.count(Kind.REJECTED) >= 4000

    await eventually(all_told)


async def test_what_was_read_is_committed_though_something_comes_all_the_time(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.bridge.inbound._COMMIT_S", 0.05)

    # Each comes before the lane has waited long enough to be idle.
    for _ in range(3000):
        world.topic.add(b"", b"x")
        await world.inbound.step(0)
        await asyncio.sleep(0)
        if world.topic.commits:
            break
    assert world.topic.commits
