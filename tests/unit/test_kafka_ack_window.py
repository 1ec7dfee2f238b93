"""The ack window under random schedules of admissions, completions and revokes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.topics import FILE_TASK, LINE_READY, Topic
from streams.kafka.ack_window import AckWindow, Slot


@dataclass(eq=False)
class Item:
    topic: Topic
    partition: int
    offset: int
    acked: list[Item] = field(repr=False)

    def ack(self) -> None:
        self.acked.append(self)


@dataclass
class Model:
    """What was admitted and not acked, per place and assignment."""

    limit: int
    acked: list[Item] = field(default_factory=list)
    offsets: dict[tuple[str, int], int] = field(default_factory=dict)
    expected: dict[tuple[str, int], list[Item]] = field(default_factory=dict)
    open: list[Slot[Item]] = field(default_factory=list)
    dropped: list[Slot[Item]] = field(default_factory=list)


_PLACES = [(LINE_READY, 0), (LINE_READY, 1), (FILE_TASK, 0)]


async def _admit(data: st.DataObject, model: Model, window: AckWindow[Item]) -> None:
    topic, partition = data.draw(st.sampled_from(_PLACES))
    place = (topic.name, partition)
    item = Item(topic, partition, model.offsets.get(place, 0), model.acked)
    model.offsets[place] = item.offset + 1
    model.open.append(await asyncio.wait_for(window.admit(item), 30))
    model.expected.setdefault(place, []).append(item)


def _finish(data: st.DataObject, model: Model, window: AckWindow[Item]) -> None:
    slot = model.open.pop(data.draw(st.integers(0, len(model.open) - 1)))
    before = len(model.acked)
    window.finish(slot)
    for item in model.acked[before:]:
        place = (item.topic.name, item.partition)
        assert model.expected[place].pop(0) is item, "acks are in offset order, without holes"


def _revoke(data: st.DataObject, model: Model, window: AckWindow[Item]) -> None:
    topic, partition = data.draw(st.sampled_from(_PLACES))
    window.drop({topic.name: {partition}})
    model.expected.pop((topic.name, partition), None)
    gone = [s for s in model.open if (s.item.topic, s.item.partition) == (topic, partition)]
    model.open = [s for s in model.open if s not in gone]
    model.dropped += gone


@given(st.data())
def test_acks_are_in_order_whatever_finishes_first_and_is_revoked(data: st.DataObject) -> None:
    async def scenario() -> None:
        model = Model(limit=data.draw(st.integers(1, 8)))
        window = AckWindow[Item](model.limit)
        for _ in range(data.draw(st.integers(1, 60))):
            moves = ["revoke"]
            if window.held < model.limit:
                moves.append("admit")
            if model.open:
                moves.append("finish")
            match data.draw(st.sampled_from(moves)):
                case "admit":
                    await _admit(data, model, window)
                case "finish":
                    _finish(data, model, window)
                case _:
                    _revoke(data, model, window)
            assert window.held == sum(len(items) for items in model.expected.values())
        before = len(model.acked)
        for slot in model.dropped:
            window.finish(slot)
        assert len(model.acked) == before, "work of a revoked partition is never acked"
        while model.open:
            _finish(data, model, window)
        assert window.held == 0

    asyncio.run(scenario())


async def test_admission_waits_while_the_window_is_full() -> None:
    acked: list[Item] = []
    window = AckWindow[Item](1)
    first = await window.admit(Item(LINE_READY, 0, 0, acked))
    waiting = asyncio.ensure_future(window.admit(Item(LINE_READY, 0, 1, acked)))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(waiting), 0.02)
    window.finish(first)
    assert (await asyncio.wait_for(waiting, 30)).item.offset == 1


async def test_a_revoke_frees_its_slots() -> None:
    acked: list[Item] = []
    window = AckWindow[Item](2)
    stale = [await window.admit(Item(LINE_READY, 3, n, acked)) for n in range(2)]
    window.drop({LINE_READY.name: {3}})
    assert window.held == 0
    assert not any(slot.live for slot in stale)
    await asyncio.wait_for(window.admit(Item(LINE_READY, 4, 0, acked)), 30)
