"""A realtime-worker for tests of the gateway: the real one, on a fake log and a fake upstream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import msgspec

from api.log_fake import FakeLog
from schemas.metrics import Metrics
from schemas.records import RealtimeCancel, RealtimeLoad, RealtimeReplies, RealtimeRequest
from schemas.topics import CAPACITY, REALTIME_CANCEL, REALTIME_REPLY, REALTIME_REQUEST
from streams.adapters.inference_fake import Behaviour, Events, FakeInferenceClient, Reply, Script
from streams.domain.clock import SystemClock
from streams.domain.upstreams import UpstreamTable, parse_upstreams
from streams.kafka.errors import SendFailed
from streams.realtime_worker.load import LoadReporter
from streams.realtime_worker.upstream import Caller
from streams.realtime_worker.worker import Worker

UPSTREAMS = parse_upstreams(
    {
        "upstreams": [
            {
                "name": "one",
                "base_url": "http://127.0.0.1:1/v1",
                "models": {"m1": {}, "renamed": {"upstream_name": "inside"}, "a/b": {}},
                "realtime_max_in_flight": 4,
            },
            {
                "name": "two",
                "base_url": "http://127.0.0.1:1/v1",
                "models": ["urgent"],
                "priorities": {"realtime": -4},
            },
        ]
    }
)
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def completion(text: str = "hello", **fields: Any) -> Reply:
    """A good answer of the chat endpoint."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m1",
        "choices": [choice],
        "usage": USAGE,
        **fields,
    }
    return Reply(body=msgspec.json.encode(body))


def chunk(text: str) -> bytes:
    """One event of a streamed chat completion."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m1",
        "choices": [choice],
    }
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


DONE = b"data: [DONE]\n\n"


def events(*texts: str, pause_s: float = 0.0, cut: bool = False) -> Events:
    """A streamed chat completion of these words; cut: it breaks off after them."""
    end = () if cut else (DONE,)
    return Events((*(chunk(text) for text in texts), *end), pause_s=pause_s, cut=cut)


def always(behaviour: Behaviour) -> Script:
    """The same for every request."""
    return lambda _path, _body: behaviour


class LaneWorker:
    """A realtime-worker in this process. upstream: what it calls, and what that was asked."""

    def __init__(
        self, log: FakeLog, script: Script, table: UpstreamTable, name: str, process: str
    ) -> None:
        self._log = log
        self._clock = SystemClock()
        self._changed = asyncio.Event()
        self.metrics = Metrics()
        self.upstream = FakeInferenceClient(script)
        callers = {
            name: Caller(upstream, self.upstream, self._clock)
            for name, upstream in table.upstreams.items()
        }
        self.worker = Worker(
            *(name, process, table, callers, self._reply, self._clock, self.metrics),
            *(self._changed.set, lambda _request, _used: None, _broken),
        )
        self.loads = LoadReporter(self.worker, self._load, self._changed)
        #: Parts of answers are thrown away, as if the worker hung.
        self.mute = False
        #: So many records of parts are refused by the broker.
        self.refused = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begins to read requests from the log's end on."""
        requests = self._log.reader([REALTIME_REQUEST, REALTIME_CANCEL])
        await requests.start("end")
        self._tasks.append(asyncio.create_task(self._follow(requests)))
        self._tasks.append(asyncio.create_task(self.loads.run()))

    async def kill(self) -> None:
        """Ends it with all that it does, as kill -9 would."""
        self.mute = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pool in self.worker.pools.values():
            await pool.drain(0.0)

    async def _follow(self, reader: Any) -> None:
        while True:
            for read in await reader.poll(1.0):
                match read.record:
                    case RealtimeRequest() as request:
                        self.worker.take(request)
                    case RealtimeCancel() as cancel:
                        self.worker.cancel(cancel)

    async def _reply(self, partition: int, record: RealtimeReplies) -> None:
        if self.refused:
            self.refused -= 1
            raise SendFailed("the test says so")
        if not self.mute:
            await self._log.send_to(REALTIME_REPLY, partition, record)

    async def _load(self, load: RealtimeLoad) -> None:
        await self._log.send(CAPACITY, load.worker, load)


def _broken(error: BaseException) -> NoReturn:
    raise error


@asynccontextmanager
async def lane_worker(
    log: FakeLog,
    script: Script,
    *,
    table: UpstreamTable = UPSTREAMS,
    name: str = "realtime-worker-0",
    process: str = "p1",
) -> AsyncIterator[LaneWorker]:
    """A worker that runs while the block does."""
    worker = LaneWorker(log, script, table, name, process)
    await worker.start()
    try:
        yield worker
    finally:
        await worker.kill()
