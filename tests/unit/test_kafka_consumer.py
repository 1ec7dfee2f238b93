"""Reading and committing in the real consumer class, with the broker's side played by a fake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from faust.types import TP
from hypothesis import given, settings
from hypothesis import strategies as st
from mode.utils.queues import FlowControlEvent, ThrowableQueue

from streams.kafka.app import AppOptions, RoleApp
from streams.kafka.consumer import GroupConsumer
from streams.kafka.fence import Fence
from streams.settings import Settings

_PLACE = TP("t", 0)


@dataclass
class FakeThread:
    """Plays the consumer's thread: what the broker holds as committed."""

    commits: dict[TP, int] = field(default_factory=dict)
    history: list[int] = field(default_factory=list)
    given_back: list[tuple[int, int]] = field(default_factory=list)
    accepts: bool = True
    assigned: set[TP] = field(default_factory=lambda: {_PLACE})

    async def start_over(self, instead: Mapping[TP, int]) -> dict[TP, tuple[int, int | None]]:
        commit = self.commits.get(_PLACE)
        return {_PLACE: (instead.get(_PLACE, commit or 0), commit)} if self.assigned else {}

    async def commit(self, offsets: Mapping[TP, int]) -> bool:
        if self.accepts:
            self.commits.update(offsets)
            self.history += offsets.values()
        return self.accepts

    def assignment(self) -> set[TP]:
        return self.assigned

    async def call_thread(self, method: Callable[..., Any], *args: Any) -> Any:
        return await method(*args)

    async def give_back(self, dropped: Mapping[TP, tuple[int, int]]) -> None:
        self.given_back.append(dropped[_PLACE])


class Rig:
    """A consumer of one partition, with the agent's queue in reach."""

    def __init__(self, thread: FakeThread | None = None) -> None:
        self.revoked: list[set[TP]] = []
        self.crashes: list[BaseException] = []

        async def on_revoked(tps: set[TP]) -> None:
            self.revoked.append(tps)

        self.app = RoleApp(
            AppOptions(
                settings=Settings(),
                role="test",
                tables=False,
                commit_interval_s=1.0,
                commit_every=500,
                max_poll_records=200,
                fence=Fence(15.0),
                on_revoked=on_revoked,
                on_crash=self.crashes.append,
            )
        )
        self.thread = thread or FakeThread()
        self.consumer = cast("GroupConsumer", self.app.consumer)
        self.consumer._thread._thread = None
        self.consumer._thread.thread_loop.close()
        self.consumer._thread = cast("Any", self.thread)
        flow = FlowControlEvent(initially_suspended=False)
        self.queue: Any = ThrowableQueue(maxsize=1024, flow_control=flow)
        topics = cast("Any", self.app.topics)
        topics._tp_index[_PLACE] = [SimpleNamespace(queue=self.queue)]

    async def assign(self, generation: int) -> None:
        self.app.consumer_generation_id = generation
        self.consumer.resume_partitions({_PLACE})
        self.consumer.resume_flow()
        await self.consumer.perform_seek()

    async def deliver(self, *offsets: int) -> list[Any]:
        """Messages that reached the agent's queue."""
        records = [
            SimpleNamespace(
                topic="t",
                partition=0,
                offset=offset,
                timestamp=0,
                timestamp_type=0,
                headers=(),
                key=b"k",
                value=b"v",
                serialized_key_size=1,
                serialized_value_size=1,
            )
            for offset in offsets
        ]
        await self.consumer._hand_out_all({_PLACE: records})
        return [self.queue.get_nowait().message for _ in range(self.queue.qsize())]


@given(st.data())
@settings(deadline=None)
def test_commits_never_pass_a_record_that_is_not_finished(data: st.DataObject) -> None:
    async def scenario() -> None:
        rig = Rig()
        await rig.assign(1)
        opened: list[Any] = []
        finished: set[int] = set()
        offset = 0
        for _ in range(data.draw(st.integers(1, 40))):
            match data.draw(st.sampled_from(["deliver", "ack", "ack", "commit"])):
                case "deliver":
                    count = data.draw(st.integers(1, 5))
                    opened += await rig.deliver(*range(offset, offset + count))
                    offset += count
                case "ack" if opened:
                    message = opened.pop(data.draw(st.integers(0, len(opened) - 1)))
                    assert rig.consumer.ack(message)
                    finished.add(message.offset)
                case _:
                    await rig.consumer.commit()
            committed = rig.thread.commits.get(_PLACE, 0)
            assert set(range(committed)) <= finished
        for message in opened:
            rig.consumer.ack(message)
        await rig.consumer.commit()
        assert rig.thread.commits.get(_PLACE, 0) == offset
        assert rig.thread.history == sorted(set(rig.thread.history))

    asyncio.run(scenario())


async def test_a_revoke_commits_what_is_finished_and_ignores_later_acks() -> None:
    rig = Rig()
    await rig.assign(1)
    first, second, third = await rig.deliver(0, 1, 2)
    rig.consumer.ack(first)
    rig.consumer.ack(third)
    await rig.consumer.on_partitions_revoked({_PLACE})
    assert rig.thread.commits[_PLACE] == 1
    assert rig.revoked == [{_PLACE}]
    assert not rig.consumer.is_live(_PLACE, 1)
    assert not rig.consumer.ack(second)
    await rig.assign(2)
    await rig.consumer.commit()
    assert rig.thread.commits[_PLACE] == 1


async def test_an_ack_of_an_older_generation_does_not_count_for_a_newer_one() -> None:
    rig = Rig()
    await rig.assign(1)
    (old,) = await rig.deliver(0)
    await rig.consumer.on_partitions_revoked({_PLACE})
    await rig.assign(2)
    (new,) = await rig.deliver(0)
    assert not rig.consumer.ack(old)
    await rig.consumer.commit()
    assert _PLACE not in rig.thread.commits
    assert rig.consumer.ack(new)
    await rig.consumer.commit()
    assert rig.thread.commits[_PLACE] == 1


async def test_a_commit_that_the_broker_refused_is_tried_again() -> None:
    rig = Rig()
    await rig.assign(1)
    (message,) = await rig.deliver(0)
    rig.consumer.ack(message)
    rig.thread.accepts = False
    assert not await rig.consumer.commit()
    rig.thread.accepts = True
    assert await rig.consumer.commit()
    assert rig.thread.commits[_PLACE] == 1


async def test_records_fetched_twice_are_handed_out_once() -> None:
    rig = Rig()
    await rig.assign(1)
    await rig.deliver(0, 1, 2)
    assert [m.offset for m in await rig.deliver(1, 2, 3)] == [3]
    assert await rig.deliver(0, 1) == []


async def test_a_jump_is_read_again_once_before_it_is_taken_for_a_hole() -> None:
    rig = Rig(FakeThread(commits={_PLACE: 5}))
    await rig.assign(1)
    assert await rig.deliver(8, 9) == []
    assert rig.thread.given_back == [(5, 9)], "it goes back to where it should have gone on"
    assert [m.offset for m in await rig.deliver(8, 9)] == [8, 9]


async def test_a_jump_at_the_start_of_a_fresh_partition_is_noticed_too() -> None:
    rig = Rig()
    await rig.assign(1)
    assert await rig.deliver(3) == []
    assert rig.thread.given_back == [(0, 3)]
    assert [m.offset for m in await rig.deliver(0, 1, 2, 3)] == [0, 1, 2, 3]


async def test_a_seek_in_mid_assignment_does_not_start_over() -> None:
    rig = Rig(FakeThread(commits={_PLACE: 5}))
    await rig.assign(1)
    first, second = await rig.deliver(5, 6)
    await rig.consumer.perform_seek()
    assert [m.offset for m in await rig.deliver(7)] == [7]
    rig.consumer.ack(second)
    rig.consumer.ack(first)
    await rig.consumer.commit()
    assert rig.thread.commits[_PLACE] == 7


async def test_nothing_is_handed_out_of_a_partition_that_is_not_active() -> None:
    rig = Rig()
    await rig.assign(1)
    rig.consumer.pause_partitions({_PLACE})
    assert await rig.deliver(0, 1) == []
    assert rig.thread.given_back == [(0, 1)], "they are fetched again"


async def test_nothing_is_handed_out_before_a_rebalance_has_ended() -> None:
    rig = Rig()
    await rig.assign(1)
    rig.app.rebalancing = True
    assert rig.consumer._wanted() == set()
    assert await rig.deliver(0) == []
    assert rig.thread.given_back == [(0, 0)]
    rig.app.rebalancing = False
    assert [m.offset for m in await rig.deliver(0)] == [0]


async def test_a_full_queue_stops_fetching_from_its_partitions() -> None:
    rig = Rig()
    await rig.assign(1)
    assert rig.consumer._wanted() == {_PLACE}
    await rig.consumer._hand_out_all({})
    for offset in range(900):
        rig.queue.put_nowait(offset)
    assert rig.consumer._wanted() == set()
