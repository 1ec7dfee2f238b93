"""When a replay of changelogs counts as complete."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from faust.types import TP

from streams.kafka.recovery import replay, settle
from streams.kafka.tables import RowStore

_OURS, _OTHER, _STREAM = TP("log", 0), TP("log", 1), TP("stream", 0)


class FakeRecovery:
    """Faust's recovery, as far as it matters."""

    def __init__(self, highwaters: dict[TP, int]) -> None:
        self.active_tps = {_OURS, _OTHER}
        self.active_highwaters = highwaters
        self.active_offsets: dict[TP, int | None] = dict.fromkeys(self.active_tps)
        self.in_recovery = True
        self.signal_recovery_end = asyncio.Event()
        store = RowStore("memory://", cast("Any", None), cast("Any", None), table_name="t")
        self.tp_to_table = dict.fromkeys(self.active_tps, SimpleNamespace(data=store))

    def need_recovery(self) -> bool:
        return any(
            highwater > (-1 if (at := self.active_offsets[tp]) is None else at)
            for tp, highwater in self.active_highwaters.items()
        )


def _app(recovery: FakeRecovery) -> Any:
    return SimpleNamespace(tables=SimpleNamespace(recovery=recovery))


async def _waiter(recovery: FakeRecovery) -> asyncio.Task[Any]:
    """Faust, as it waits for the end."""
    waiting = asyncio.create_task(recovery.signal_recovery_end.wait())
    await asyncio.sleep(0)
    return waiting


async def _ended(waiting: asyncio.Task[Any]) -> bool:
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return waiting.done() or not waiting.cancel()


def _records(*offsets: int) -> list[Any]:
    return [SimpleNamespace(offset=o, key=b"k", value=None, headers=()) for o in offsets]


async def test_a_replay_ends_when_every_changelog_is_read_to_its_end() -> None:
    recovery = FakeRecovery({_OURS: 4, _OTHER: 1})
    waiting = await _waiter(recovery)
    replay(_app(recovery), _OURS, _records(3, 4))
    settle(_app(recovery), {_OURS: 5, _OTHER: 0})
    await asyncio.sleep(0)
    assert not waiting.done()
    replay(_app(recovery), _OTHER, _records(0, 1))
    settle(_app(recovery), {_OURS: 5, _OTHER: 2})
    assert await _ended(waiting)


async def test_the_end_of_one_replay_is_not_taken_for_that_of_the_next() -> None:
    recovery = FakeRecovery({_OURS: -1, _OTHER: -1})
    settle(_app(recovery), {_OURS: 0, _OTHER: 0})
    settle(_app(recovery), {_OURS: 0, _OTHER: 0})
    assert not await _ended(await _waiter(recovery))


async def test_what_was_compacted_away_is_not_waited_for() -> None:
    recovery = FakeRecovery({_OURS: 9, _OTHER: -1})
    waiting = await _waiter(recovery)
    replay(_app(recovery), _OURS, _records(2))
    settle(_app(recovery), {_OURS: 10, _OTHER: 0})
    assert await _ended(waiting)


async def test_a_replay_that_has_not_begun_is_not_over() -> None:
    """Faust says that it recovers before it has looked how much there is."""
    recovery = FakeRecovery({})
    waiting = await _waiter(recovery)
    settle(_app(recovery), {})
    settle(_app(recovery), {_STREAM: 7})
    assert not await _ended(waiting)


def test_a_batch_that_comes_twice_does_not_move_the_replay_back() -> None:
    recovery = FakeRecovery({_OURS: 4, _OTHER: -1})
    replay(_app(recovery), _OURS, _records(3, 4))
    replay(_app(recovery), _OURS, _records(3))
    assert recovery.active_offsets[_OURS] == 4


def test_records_of_a_changelog_that_is_not_replayed_are_given_back() -> None:
    recovery = FakeRecovery({})
    assert not replay(_app(recovery), TP("log", 5), _records(0))
