"""A file waits for the prompts that it may use, and for nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Literal

import pytest
from structlog.testing import capture_logs

from schemas.records import PromptHead, PromptVersion, PromptVersionRef
from schemas.topics import PROMPT
from streams.domain.prompts.registry import Resolved, Unresolved, head_key, version_key
from streams.file_worker import prompts as module
from streams.file_worker.prompts import StoredPrompts
from streams.kafka.errors import BrokerUnreachable
from streams.kafka.reader import ReadRecord
from tests.support.waiting import eventually

_PLACE = (PROMPT.name, 0)
_SECRET = "the text of the template"


def _version(version_id: str) -> tuple[str, PromptVersion]:
    messages = b'[{"role": "user", "content": "%s"}]' % _SECRET.encode()
    version = PromptVersion(
        tenant="t", slug="s", version_id=version_id, messages=messages, model_config=b"{}"
    )
    return version_key("t", "s", version_id), version


def _head(revision: int, *version_ids: str) -> tuple[str, PromptHead]:
    versions = tuple(
        PromptVersionRef(number=n, version_id=v, created_at_ms=0, size_bytes=0, request_hash="h")
        for n, v in enumerate(version_ids, 1)
    )
    head = PromptHead(
        tenant="t",
        slug="s",
        revision=revision,
        write_id="w",
        prompt_id="prompt_1",
        request_hash="h",
        created_at_ms=0,
        updated_at_ms=0,
        published=len(versions),
        latest=len(versions),
        versions=versions,
    )
    return head_key("t", "s", revision, "w"), head


class _Topic:
    """The topic and a reader of it, which hands out a record only when it may."""

    def __init__(self) -> None:
        self.log: list[tuple[str, PromptVersion | PromptHead | None]] = []
        self.started = self.stopped = False
        self.failures = 0
        self.asked = 0
        self._position = 0
        self._may_read = asyncio.Event()
        self._may_read.set()

    def hold(self) -> None:
        """Nothing arrives until go_on()."""
        self._may_read.clear()

    def go_on(self) -> None:
        self._may_read.set()

    async def start(self, positions: Literal["beginning"]) -> None:
        self.started = True

    async def poll(self, timeout_s: float = 0.2) -> list[ReadRecord]:
        await asyncio.sleep(0)
        await self._may_read.wait()
        self._fail()
        first, self._position = self._position, min(len(self.log), self._position + 1)
        return [ReadRecord(PROMPT, 0, n, 0, *self.log[n]) for n in range(first, self._position)]

    async def ends(self) -> dict[tuple[str, int], int]:
        self.asked += 1
        self._fail()
        return {_PLACE: len(self.log)}

    def positions(self) -> dict[tuple[str, int], int]:
        return {_PLACE: self._position}

    async def stop(self) -> None:
        self.stopped = True

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise BrokerUnreachable(_SECRET)


async def _no_sleep(_: float) -> None:
    await asyncio.sleep(0)


class _World:
    def __init__(self, topic: _Topic) -> None:
        self.topic = topic
        self.broken: list[BaseException] = []
        self.prompts = StoredPrompts(topic, self.broken.append, _no_sleep, say_s=0.001)

    def resolve(self, version: int | None = None) -> Resolved | Unresolved:
        return self.prompts.of("t")("s", version)

    async def waits(self) -> asyncio.Task[None]:
        """A file that waits, after everybody had many turns."""
        task = asyncio.create_task(self.prompts.read_all("batch_1"))
        for _ in range(50):
            await asyncio.sleep(0)
        return task


@pytest.fixture
async def world() -> AsyncIterator[_World]:
    topic = _Topic()
    topic.log += [_version("a"), _head(1, "a")]
    made = _World(topic)
    await made.prompts.on_start()
    yield made
    await made.prompts.on_stop()
    assert topic.stopped
    assert made.broken == []


async def test_all_that_is_there_is_known_before_the_first_task(world: _World) -> None:
    resolved = world.resolve()
    assert isinstance(resolved, Resolved)
    assert resolved.number == 1
    assert isinstance(world.prompts.of("u")("s", None), Unresolved)


async def test_a_file_waits_until_all_prompts_of_now_are_read(world: _World) -> None:
    world.topic.hold()
    await asyncio.sleep(0)
    world.topic.log += [_version("b"), _head(2, "a", "b")]
    waiting = await world.waits()
    assert not waiting.done()
    world.topic.go_on()
    await waiting
    resolved = world.resolve()
    assert isinstance(resolved, Resolved)
    assert resolved.number == 2


async def test_tombstones_take_versions_away(world: _World) -> None:
    world.topic.log.append((_version("a")[0], None))
    await world.prompts.read_all("batch_1")
    assert isinstance(world.resolve(1), Unresolved)


async def test_a_broker_in_trouble_is_waited_out_and_told_without_content(world: _World) -> None:
    world.topic.hold()
    await asyncio.sleep(0)
    with capture_logs() as logs:
        world.topic.log += [_version("b"), _head(2, "a", "b")]
        world.topic.failures = 5
        waiting = await world.waits()
        world.topic.go_on()
        await waiting
    assert isinstance(world.resolve(2), Resolved)
    assert "prompts_not_read" in {entry["action"] for entry in logs}
    assert _SECRET not in repr(logs)


async def test_a_file_that_waits_says_so(world: _World) -> None:
    world.topic.hold()
    await asyncio.sleep(0)
    world.topic.log.append(_version("b"))
    with capture_logs() as logs:
        waiting = asyncio.create_task(world.prompts.read_all("batch_1"))
        await eventually(lambda: logs)
        world.topic.go_on()
        await waiting
    assert logs[0]["action"] == "prompts_waited_for"
    assert (logs[0]["batch_id"], logs[0]["position"], logs[0]["wanted"]) == ("batch_1", 2, 3)
    assert _SECRET not in repr(logs)


async def test_a_start_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CATCH_UP_S", -1.0)
    topic = _Topic()
    topic.log += [_version("a"), _head(1, "a")]
    world = _World(topic)
    with capture_logs() as logs:
        await world.prompts.on_start()
    assert [entry["action"] for entry in logs] == ["catch_up_late"]
    await world.prompts.read_all("batch_1")
    assert isinstance(world.resolve(), Resolved)
    await world.prompts.on_stop()


async def test_a_waiting_file_can_be_given_up(world: _World) -> None:
    world.topic.hold()
    await asyncio.sleep(0)
    world.topic.log.append(_version("b"))
    waiting = await world.waits()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    world.topic.go_on()
    await world.prompts.read_all("batch_2")
