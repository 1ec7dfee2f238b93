"""A batch-worker in memory for tests: slices in by hand, upstreams, broker and store are fakes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

from schemas.records import ClaimCheck, DoneLines, Outcome, ReadyLine, ReadyLines
from streams.adapters.inference_fake import FakeInferenceClient, Reply, Script
from streams.adapters.object_store_fake import FakeObjectStore
from streams.batch_worker.caller import Caller
from streams.batch_worker.prompt_line import PromptRequests
from streams.batch_worker.prompts import PromptCache
from streams.batch_worker.worker import Worker
from streams.domain.clock import SystemClock
from streams.domain.upstreams import ModelLimits, Priorities, Upstream, UpstreamTable
from streams.kafka.errors import SendFailed
from tests.support.waiting import eventually

CHAT = "/v1/chat/completions"
FAR_MS = 1 << 50


def _broken(error: BaseException) -> None:
    raise error


def raw(number: int, model: str = "m") -> bytes:
    """A line of an input file."""
    line = {"custom_id": f"c{number}", "method": "POST", "url": CHAT}
    return json.dumps({**line, "body": {"model": model, "n": number}}).encode()


class FakeRenderer:
    """Notes what it is asked; answers with `answer` or raises `error`, once `gate` is open."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[str, ...], Any, str]] = []
        self.answer: Callable[[Any], Sequence[str]] = lambda _variables: ()
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def render(
        self, sources: Sequence[str], variables: bytes, *, fair_key: str
    ) -> list[bytes]:
        self.asked.append((tuple(sources), json.loads(variables), fair_key))
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return [json.dumps(text).encode() for text in self.answer(json.loads(variables))]


class Bench:
    """A worker with two upstreams, 'a' and 'b', and everything that it sent and finished."""

    def __init__(
        self,
        a: Script | None = None,
        b: Script | None = None,
        limit: int = 4,
        priorities: Priorities | None = None,
    ) -> None:
        self.store = FakeObjectStore()
        self.sent: list[DoneLines] = []
        self.finished: list[int] = []
        self.broker_fails = 0
        self.upstreams = {
            name: Upstream(
                name=name,
                base_url="http://x/v1",
                models={"*": ModelLimits(), "alias": ModelLimits(upstream_name="real")},
                max_in_flight=limit,
                max_attempts=2,
                priorities=priorities,
            )
            for name in ("a", "b")
        }
        good: Script = lambda _path, _body: Reply()  # noqa: E731 - a default as short as it is
        self.clients = {"a": FakeInferenceClient(a or good), "b": FakeInferenceClient(b or good)}
        clock = SystemClock()
        self.renderer = FakeRenderer()
        self.cache = PromptCache(self.store, clock)
        prompts = PromptRequests(self.cache, self.renderer, clock)
        callers = {
            name: Caller(
                upstream,
                self.clients[name],
                self.store,
                clock,
                prompts,
                claim_check_bytes=2048,
                random=lambda: 0.0,
            )
            for name, upstream in self.upstreams.items()
        }
        table = UpstreamTable(tuple(self.upstreams.values()))
        self.changes = 0
        self.worker = Worker("w", table, callers, self._send, clock, self._changed, _broken)
        if test := asyncio.current_task():
            # The loop cancels what still runs; nothing that waited may start in its place.
            test.add_done_callback(self._close)

    def _close(self, _test: object) -> None:
        for pool in self.worker.pools.values():
            pool.close()

    async def _send(self, record: DoneLines) -> None:
        await asyncio.sleep(0)
        if self.broker_fails:
            self.broker_fails -= 1
            raise SendFailed
        self.sent.append(record)

    def _changed(self) -> None:
        self.changes += 1

    def take(
        self,
        *lines: ReadyLine,
        offset: int = 0,
        pool: str = "a",
        batch: str = "b1",
        tail: bool = False,
        partition: int = 0,
        deadline_ms: int = FAR_MS,
        endpoint: str = CHAT,
        pins: ClaimCheck | None = None,
    ) -> None:
        """The worker reads a slice."""
        ready = ReadyLines(
            batch_id=batch,
            tenant="t",
            at_ms=0,
            endpoint=endpoint,
            pool=pool,
            deadline_ms=deadline_ms,
            created_at_ms=0,
            tail=tail,
            pins=pins,
            lines=lines,
        )
        self.worker.take(ready, partition, lambda: self.finished.append(offset))

    @property
    def outcomes(self) -> list[Outcome]:
        """Every outcome that the broker has."""
        return [o for record in self.sent for o in record.outcomes]

    def bodies(self, upstream: str = "a") -> list[Any]:
        """The bodies of the calls, parsed."""
        return [json.loads(body) for _, body in self.clients[upstream].requests]

    def requests(self, upstream: str = "a") -> int:
        """How many calls were made."""
        return len(self.clients[upstream].requests)

    def held(self, pool: str = "a") -> int:
        """How many lines the pool holds."""
        return self.worker.pools[pool].held


def lines(*numbers: int, attempt: int = 1) -> list[ReadyLine]:
    """These lines as they travel."""
    return [ReadyLine(line=n, attempt=attempt, raw=raw(n)) for n in numbers]


async def until(condition: Callable[[], object]) -> None:
    """Waits, but not for ever."""
    await eventually(lambda: bool(condition()), within_s=5.0)
