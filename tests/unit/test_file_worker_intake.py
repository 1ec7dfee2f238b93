"""The intake task ends in one event whatever the file or the store does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import msgspec
import pytest

from schemas.metrics import STORE_RETRIES, Metrics
from schemas.records import (
    BatchRejected,
    BatchValidated,
    IntakeTask,
    ObjectRef,
    PinnedPrompt,
)
from streams.adapters.object_store_fake import FakeObjectStore
from streams.domain.clock import ManualClock
from streams.domain.intake.prompts import Resolve
from streams.domain.plan import pins_range, read_header
from streams.domain.prompts.pins import decode_pins
from streams.file_worker.intake import STORE_BUDGET_S, IntakeRunner, Limits
from streams.file_worker.patience import Patience
from streams.ports.object_store import ObjectStoreError
from tests.support.intake_files import PromptBook

_KEY = "files/t/file-1"


def _line(n: int, size: int = 0) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": "x" * size}]}
    line = {"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line).encode() + b"\n"


def _prompt_line(n: int, **variables: Any) -> bytes:
    body = {"model": "m", "prompt_slug": "greet", "variables": variables}
    line = {"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line).encode() + b"\n"


def _task(size: int, **changes: Any) -> IntakeTask:
    task = IntakeTask(
        task_id="batch_1:intake",
        batch_id="batch_1",
        tenant="t",
        at_ms=0,
        endpoint="/v1/chat/completions",
        input=ObjectRef(key=_KEY, size_bytes=size),
        deadline_ms=10**15,
    )
    return msgspec.structs.replace(task, **changes)


class _Prompts:
    """One tenant's prompts, and what is done once they are waited for."""

    def __init__(self) -> None:
        self.book = PromptBook()
        self.waited_for: list[str] = []
        self.arrive: Callable[[], None] = lambda: None

    async def read_all(self, batch_id: str) -> None:
        self.waited_for.append(batch_id)
        await asyncio.sleep(0)
        self.arrive()

    def of(self, tenant: str) -> Resolve:
        return partial(self.book.registry.resolve, tenant)


class _Setup:
    def __init__(self, data: bytes | None = None) -> None:
        self.store = FakeObjectStore()
        self.clock = ManualClock()
        self.metrics = Metrics()
        self.prompts = _Prompts()
        self.waited_s = 0.0
        self.size = len(data or b"")
        if data is not None:
            self.store.objects[_KEY] = data
        self.runner = IntakeRunner(
            self.store,
            {"m"}.__contains__,
            Limits(max_lines=100, max_line_bytes=1 << 20, max_file_bytes=10 << 20),
            Patience(self.clock, self.metrics, self._sleep),
            self.prompts,
        )

    async def _sleep(self, seconds: float) -> None:
        self.waited_s += seconds
        self.clock.advance(seconds)

    async def run(self, **changes: Any) -> BatchValidated | BatchRejected:
        return await self.runner.run(_task(self.size, **changes))

    async def errors(self, **changes: Any) -> list[tuple[str, str | None]]:
        event = await self.run(**changes)
        assert isinstance(event, BatchRejected)
        assert event.task_id == "batch_1:intake"
        return [(e.code, e.param) for e in event.errors]


async def test_a_good_file_gets_a_plan_under_a_key_of_its_own() -> None:
    setup = _Setup(_line(1) + _line(2))
    first, second = await setup.run(), await setup.run()
    assert isinstance(first, BatchValidated)
    assert isinstance(second, BatchValidated)
    assert (first.total, first.models, first.tenant) == (2, ("m",), "t")
    assert first.plan.key != second.plan.key
    plan = setup.store.objects[first.plan.key]
    assert read_header(plan) == 2
    assert len(plan) == first.plan.size_bytes


async def test_a_bad_file_is_rejected_with_its_errors_and_stores_nothing() -> None:
    setup = _Setup(_line(1) + b"bad\n")
    assert await setup.errors() == [("invalid_json_line", None)]
    assert list(setup.store.objects) == [_KEY]


async def test_an_input_that_is_gone_is_an_unknown_file() -> None:
    setup = _Setup()
    event = await setup.run()
    assert isinstance(event, BatchRejected)
    assert [(e.code, e.param, e.line) for e in event.errors] == [
        ("invalid_request", "file_id", None)
    ]
    assert event.errors[0].message == (
        "Cannot find file file-1, or organization t does not have access to it."
    )
    assert setup.waited_s == 0


async def test_a_key_that_leaves_the_store_is_an_unknown_file() -> None:
    ref = ObjectRef(key="../../etc/passwd", size_bytes=1)
    assert await _Setup().errors(input=ref) == [("invalid_request", "file_id")]


async def test_an_unknown_endpoint_is_rejected() -> None:
    assert await _Setup(_line(1)).errors(endpoint="/v1/images") == [("invalid_request", "endpoint")]


async def test_a_file_that_is_too_large_is_not_even_read() -> None:
    setup = _Setup()
    setup.size = (10 << 20) + 1
    assert await setup.errors() == [("file_too_large", None)]


async def test_a_file_larger_than_its_record_says_is_found_out() -> None:
    setup = _Setup(_line(1, size=900_000) * 12)
    setup.size = 5
    assert await setup.errors() == [("file_too_large", None)]


@pytest.mark.parametrize("operation", ["size", "get_range", "put", ""])
async def test_a_blip_of_the_store_is_waited_out(operation: str) -> None:
    setup = _Setup(b"".join(_line(n, size=400_000) for n in range(10)))
    setup.store.fail(5, operation)
    event = await setup.run()
    assert isinstance(event, BatchValidated)
    assert event.total == 10
    assert 0 < setup.waited_s < 30
    assert setup.metrics.counter(STORE_RETRIES).labels("failed")._value.get() == 5


async def test_reading_goes_on_where_it_was_when_the_store_failed() -> None:
    setup = _Setup(b"".join(_line(n, size=900_000) for n in range(10)))
    stream = setup.store.stream
    starts: list[int] = []

    async def failing(
        key: str, offset: int = 0, length: int | None = None, chunk_bytes: int = 0
    ) -> AsyncIterator[bytes]:
        starts.append(offset)
        async for chunk in stream(key, offset, length, chunk_bytes):
            yield chunk
            raise ObjectStoreError("cut")

    setup.store.stream = failing  # type: ignore[method-assign]
    event = await setup.run()
    assert isinstance(event, BatchValidated)
    assert event.total == 10
    assert starts == sorted(set(starts))
    assert len(starts) >= 9


@pytest.mark.parametrize("full", [True, False])
async def test_a_store_that_stays_in_trouble_fails_the_batch_after_a_bounded_time(
    full: bool,
) -> None:
    setup = _Setup(_line(1))
    setup.store.full = full
    if not full:
        setup.store.fail(10**6)
    assert await setup.errors() == [("internal_error", None)]
    assert STORE_BUDGET_S / 2 < setup.waited_s < STORE_BUDGET_S * 1.5
    assert list(setup.store.objects) == [_KEY]


async def test_a_large_file_lets_others_have_the_loop_while_it_is_read() -> None:
    setup = _Setup(b"".join(_line(n, size=900_000) for n in range(11)))
    small = _Setup(_line(1))
    large = asyncio.create_task(setup.run())
    await asyncio.sleep(0)
    await small.run()
    assert not large.done()
    assert isinstance(await large, BatchValidated)


async def test_the_event_tells_which_prompts_the_plan_holds() -> None:
    setup = _Setup(_line(1) + _prompt_line(2, name="A", more=1) + _prompt_line(3, name="B"))
    setup.prompts.book.write("greet", {1: "Hi {{name}}"}, published=1)
    event = await setup.run()
    assert isinstance(event, BatchValidated)
    assert event.prompts == (PinnedPrompt(slug="greet", version=1, lines=2),)
    assert event.unused_variables == 1
    plan = setup.store.objects[event.plan.key]
    offset, length = pins_range(event.total, len(plan))
    assert [pin.slug for pin in decode_pins(plan[offset : offset + length])] == ["greet"]


async def test_a_file_is_checked_only_when_all_prompts_of_now_are_there() -> None:
    setup = _Setup(_prompt_line(1, name="A"))
    book = setup.prompts.book
    setup.prompts.arrive = lambda: book.write("greet", {1: "Hi {{name}}"}, published=1)
    event = await setup.run()
    assert isinstance(event, BatchValidated)
    assert setup.prompts.waited_for == ["batch_1"]


async def test_a_file_without_prompts_waits_for_none() -> None:
    setup = _Setup(_line(1, size=5000) + _line(2))
    assert isinstance(await setup.run(), BatchValidated)
    assert setup.prompts.waited_for == []


@pytest.mark.parametrize("chunk", [1, 3, 7, 200, 1 << 20])
@pytest.mark.parametrize("name", [b"prompt_slug", b"\\u0070rompt_slug", b"p\\u0072ompt\\u005Fslug"])
async def test_a_prompt_is_waited_for_wherever_the_store_cuts(chunk: int, name: bytes) -> None:
    line = _prompt_line(1, name="A").replace(b"prompt_slug", name)
    setup = _Setup(_line(0) + line)
    book = setup.prompts.book
    setup.prompts.arrive = lambda: book.write("greet", {1: "Hi {{name}}"}, published=1)
    stream = setup.store.stream

    def cut(
        key: str, offset: int = 0, length: int | None = None, chunk_bytes: int = 0
    ) -> AsyncIterator[bytes]:
        return stream(key, offset, length, chunk)

    setup.store.stream = cut  # type: ignore[method-assign]
    event = await setup.run()
    assert isinstance(event, BatchValidated)
    assert event.prompts[0].lines == 1
    assert setup.prompts.waited_for == ["batch_1"]


async def test_another_tenants_prompt_is_not_found() -> None:
    setup = _Setup(_prompt_line(1, name="A"))
    setup.prompts.book.write("greet", {1: "Hi {{name}}"}, published=1)
    assert await setup.errors(tenant="other") == [("invalid_request", "body.prompt_slug")]


async def test_others_have_the_loop_between_two_new_prompts() -> None:
    lines = [_prompt_line(n, name="A").replace(b"greet", b"p%d" % n) for n in range(50)]
    setup = _Setup(b"".join(lines))
    for n in range(50):
        setup.prompts.book.write(f"p{n}", {1: "Hi {{name}}"}, published=1)
    turns = 0
    task = asyncio.create_task(setup.run())
    while not task.done():
        turns += 1
        await asyncio.sleep(0)
    assert isinstance(task.result(), BatchValidated)
    assert turns >= 50
