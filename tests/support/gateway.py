"""A gateway for tests: the real application on a real socket, on a fake log and a fake store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from openai import APIStatusError, AsyncOpenAI, OpenAI

from api.accounts.keys import create_key
from api.app import assembled, build_app, listening
from api.gateway import Gateway, Timeouts
from api.log_fake import FakeLog
from api.log_port import LogProducer
from api.read_model.schema import TOPICS, from_create
from api.realtime.lane import LaneLog
from schemas.metrics import Metrics
from schemas.records import BatchCreate, BatchSnapshot, Record
from schemas.topics import BATCH_COMMAND, BATCH_FORECAST, BATCH_STATUS, CAPACITY, REALTIME_REPLY
from streams.adapters.object_store_fake import FakeObjectStore
from streams.domain.clock import Clock, SystemClock
from streams.domain.upstreams import UpstreamTable, parse_upstreams
from streams.ports.object_store import ObjectStore
from streams.ports.stripe_events import StripeEvents
from streams.settings import Settings

#: Long enough for a slow machine; a test of a time-out has its own.
TIMEOUTS = Timeouts(send_s=30.0, read_back_s=30.0, sync_s=30.0)
UPSTREAMS = parse_upstreams(
    {"upstreams": [{"name": "one", "base_url": "http://127.0.0.1:1/v1", "models": ["m1", "a/b"]}]}
)


class SDK:
    """One client of the official SDK, called the same way whether it is asynchronous or not."""

    def __init__(self, client: AsyncOpenAI | OpenAI) -> None:
        self.client = client

    async def __call__(self, call: Callable[[Any], Any]) -> Any:
        """The result of a call, such as `lambda c: c.batches.retrieve(id)`."""
        if isinstance(self.client, AsyncOpenAI):
            return await call(self.client)
        return await asyncio.to_thread(call, self.client)

    async def all(self, call: Callable[[Any], Any]) -> list[Any]:
        """Every item of a list, page after page as the SDK turns them."""
        if isinstance(self.client, AsyncOpenAI):
            return [item async for item in call(self.client)]
        return await asyncio.to_thread(lambda: list(call(self.client)))

    async def refused(self, call: Callable[[Any], Any]) -> APIStatusError:
        """The exception that the SDK makes of an error answer."""
        with pytest.raises(APIStatusError) as caught:
            await self(call)
        return caught.value


@dataclass
class GatewayUnderTest:
    """A gateway that listens, two tenants' keys, and the controller's part played by the test."""

    gateway: Gateway
    log: FakeLog
    store: FakeObjectStore
    port: int
    keys: dict[str, str]
    clients: list[AsyncOpenAI | OpenAI] = field(default_factory=list)
    sessions: list[aiohttp.ClientSession] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The API's base URL."""
        return f"http://127.0.0.1:{self.port}/v1"

    def client(self, tenant: str = "acme", *, retries: int = 0) -> AsyncOpenAI:
        """The SDK, asynchronous."""
        client = AsyncOpenAI(base_url=self.url, api_key=self.keys[tenant], max_retries=retries)
        self.clients.append(client)
        return client

    def sync_client(self, tenant: str = "acme", *, retries: int = 0) -> OpenAI:
        """The SDK, synchronous: to be called in a thread."""
        client = OpenAI(base_url=self.url, api_key=self.keys[tenant], max_retries=retries)
        self.clients.append(client)
        return client

    def sdk(self, kind: str = "async", tenant: str = "acme") -> SDK:
        """The SDK in one of its two forms."""
        return SDK(self.client(tenant) if kind == "async" else self.sync_client(tenant))

    def http(self, tenant: str | None = "acme") -> aiohttp.ClientSession:
        """A plain HTTP client, for what the SDK would not send."""
        headers = {} if tenant is None else {"Authorization": f"Bearer {self.keys[tenant]}"}
        session = aiohttp.ClientSession(f"http://127.0.0.1:{self.port}", headers=headers)
        self.sessions.append(session)
        return session

    async def upload(self, data: bytes = b'{"custom_id": "1"}\n', tenant: str = "acme") -> str:
        """The id of a fresh file of purpose 'batch'."""
        made = await self.client(tenant).files.create(file=("in.jsonl", data), purpose="batch")
        return made.id

    async def create(self, file_id: str = "file-none", tenant: str = "acme") -> str:
        """The id of a fresh batch."""
        made = await self.client(tenant).batches.create(
            input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        return made.id

    async def close_clients(self) -> None:
        """Closes every client made here."""
        for session in self.sessions:
            await session.close()
        for client in self.clients:
            if isinstance(client, AsyncOpenAI):
                await client.close()
            else:
                client.close()

    def commands(self, kind: type[Record]) -> list[Record]:
        """Commands of this kind in the log."""
        return [r.record for r in self.log.of(BATCH_COMMAND) if isinstance(r.record, kind)]

    async def show(self, batch_id: str, **changes: object) -> BatchSnapshot:
        """Publishes a snapshot as the controller would, and waits until it is shown."""
        return await show(self.log, self.gateway, batch_id, **changes)


async def show(log: FakeLog, gateway: Gateway, batch_id: str, **changes: object) -> BatchSnapshot:
    """The batch's last snapshot, or its create command, with these changes, as a new snapshot."""
    before = [r.record for r in log.of(BATCH_STATUS) if r.key == batch_id]
    creates = [r.record for r in log.of(BATCH_COMMAND) if r.key == batch_id]
    last = before[-1] if before else creates[0]
    base = from_create(last) if isinstance(last, BatchCreate) else last
    assert isinstance(base, BatchSnapshot)
    snapshot = msgspec.structs.replace(base, revision=base.revision + 1, **changes)
    await publish(gateway, log, snapshot)
    return snapshot


async def publish(gateway: Gateway, producer: LogProducer, snapshot: BatchSnapshot) -> None:
    """Publishes a snapshot and waits until the gateway shows it."""
    place = await producer.send(BATCH_STATUS, snapshot.batch_id, snapshot)
    assert await gateway.follower.reached(BATCH_STATUS, place, 10.0)


@asynccontextmanager
async def running_gateway(
    *,
    settings: Settings | None = None,
    log: FakeLog | None = None,
    store: ObjectStore | None = None,
    read_model: Path | None = None,
    upstreams: UpstreamTable = UPSTREAMS,
    clock: Clock | None = None,
    timeouts: Timeouts = TIMEOUTS,
    tenants: Sequence[str] = ("acme", "rival"),
    stripe_events: StripeEvents | None = None,
    metrics: Metrics | None = None,
) -> AsyncIterator[GatewayUnderTest]:
    """A gateway on a fake log that has a key for each tenant."""
    clock = clock or SystemClock()
    log = log or FakeLog(clock)
    store = store or FakeObjectStore(clock)
    keys = {}
    for tenant in tenants:
        _, keys[tenant] = await create_key(log, tenant, "test", clock=clock)
    async with (
        assembled(
            settings or Settings(),
            producer=log,
            reader=log.reader(TOPICS),
            identity=log.identity,
            lane_log=LaneLog(
                replies=log.reader([REALTIME_REPLY]), loads=log.reader([CAPACITY]), partition=0
            ),
            forecast_reader=log.reader([BATCH_FORECAST]),
            object_store=store,
            upstreams=upstreams,
            read_model=read_model,
            clock=clock,
            timeouts=timeouts,
        ) as (gateway, _following),
        listening(build_app(gateway, metrics or Metrics(), stripe_events), "127.0.0.1", 0) as port,
    ):
        await gateway.sync()
        gateway.follower.caught_up = True
        running = GatewayUnderTest(gateway, log, store, port, keys)  # type: ignore[arg-type]
        try:
            yield running
        finally:
            await running.close_clients()
