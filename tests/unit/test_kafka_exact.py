"""A sender that is not needed any more is ended, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from streams.kafka import exact
from streams.kafka.exact import part_sender
from streams.kafka.group_reader import TopicPart
from streams.settings import Settings


class _Sender:
    """One that takes its time to stop."""

    def __init__(self, *_: Any) -> None:
        self.stopping, self.may_stop = asyncio.Event(), asyncio.Event()
        self.stopped = False

    async def start(self) -> None: ...

    async def stop(self) -> None:
        self.stopping.set()
        await self.may_stop.wait()
        self.stopped = True


async def test_who_is_cancelled_while_a_sender_stops_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sender = _Sender()
    monkeypatch.setattr(exact, "PartSender", lambda *_: sender)

    async def work() -> None:
        async with part_sender(Settings(), "test", TopicPart("t", 0)):
            pass

    task = asyncio.create_task(work())
    await sender.stopping.wait()
    task.cancel()
    await asyncio.sleep(0)
    sender.may_stop.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sender.stopped
