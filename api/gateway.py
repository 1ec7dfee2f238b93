"""What the routes work with: the log, the read model, the object store, and the rules of waiting.

A write is answered once the gateway has read its own record back, so that whoever wrote it sees
it. "There is no such object" is said only after reading to the topics' ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar
from weakref import WeakValueDictionary

import structlog
from aiohttp import web

from api import views
from api.auth import Keyring
from api.batches.partial import PartialOutputs
from api.log_port import LogProducer
from api.model_catalogue import ModelCatalogue
from api.prompts.facts import PromptFacts
from api.read_model.follower import Follower
from api.read_model.forecasts import Forecasts
from api.read_model.prompt_queries import PromptQueries
from api.read_model.queries import Queries
from api.read_model.realtime_rows import RealtimeQueries
from api.read_model.store import ReadModelStore
from api.read_model.webhook_rows import WebhookQueries
from api.realtime.lane import Lane
from api.shares import Shares
from api.views import JSON
from schemas.records import BatchSnapshot, FileRecord, Record
from schemas.topics import Topic
from streams.domain.clock import Clock
from streams.domain.upstreams import UpstreamTable
from streams.kafka.producer import Place
from streams.ports.object_store import ObjectStore
from streams.prices import Prices
from streams.rendering.renderer import Renderer
from streams.settings import Settings

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: Uploads at once, and those of one tenant: a slow one may take an hour.
MAX_UPLOADS, UPLOAD_SHARE = 64, 48
#: Files estimated and batches summed up at once: each takes its share of the event loop.
MAX_SCANS = 4
#: Batches made from rows or failed lines at once.
MAX_MAKINGS = 4
#: Of each, those of one tenant: there is always room for another.
SHARE = 2


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Seconds that requests wait; tests shorten them.

    send_s: for the log to have a record. read_back_s: for the read model to have it, too.
    sync_s: for the read model to reach the topics' ends. body_idle_s: for the next bytes of a
    request's body. body_s: for all of a JSON body. upload_s: for all of a file. stalled_s: for a
    client to take the next bytes of a download. preview_s: for a prompt's preview to get its turn.
    accept_s: for a worker to take a real-time request. silence_s: for it to say that it lives.
    """

    send_s: float = 30.0
    read_back_s: float = 10.0
    sync_s: float = 10.0
    body_idle_s: float = 60.0
    body_s: float = 30.0
    upload_s: float = 3600.0
    stalled_s: float = 120.0
    preview_s: float = 30.0
    accept_s: float = 5.0
    silence_s: float = 3.0


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """Everything that a request may need."""

    settings: Settings
    clock: Clock
    producer: LogProducer
    follower: Follower
    rows: ReadModelStore
    queries: Queries
    prompts: PromptQueries
    webhooks: WebhookQueries
    realtime_usage: RealtimeQueries
    store: ObjectStore
    keyring: Keyring
    catalogue: ModelCatalogue
    renderer: Renderer
    upstreams: UpstreamTable
    lane: Lane
    forecasts: Forecasts
    partial: PartialOutputs
    prices: Prices
    timeouts: Timeouts = Timeouts()
    #: Each upload holds a megabyte or two.
    uploads: Shares = field(default_factory=lambda: Shares(MAX_UPLOADS, UPLOAD_SHARE))
    scans: Shares = field(default_factory=lambda: Shares(MAX_SCANS, SHARE))
    #: Each batch made from rows holds its request's body, and that twice.
    makings: Shares = field(default_factory=lambda: Shares(MAX_MAKINGS, SHARE))

    #: What the templates of stored prompts read.
    prompt_facts: PromptFacts = field(default_factory=PromptFacts)
    #: One writer of a tenant's prompts at a time, so that quotas hold; one for each tenant at work.
    prompt_locks: WeakValueDictionary[str, asyncio.Lock] = field(
        default_factory=WeakValueDictionary
    )

    #: One change of a webhook endpoint at a time; one for each endpoint at work.
    webhook_locks: WeakValueDictionary[str, asyncio.Lock] = field(
        default_factory=WeakValueDictionary
    )

    def shown(self, batch: BatchSnapshot) -> JSON:
        """The Batch object, with its cost and what is foreseen for it."""
        return views.batch(batch, self.forecasts.of(batch), self.prices.current())

    async def publish(self, topic: Topic, key: str, record: Record) -> bool:
        """Sends a record and waits until it was read back; False if that took too long.

        Raises KafkaBaseError or TimeoutError if the log may not have it.
        """
        place = await self.send(topic, key, record)
        read_back = await self.follower.reached(topic, place, self.timeouts.read_back_s)
        if not read_back:
            log.warning("Reading lags.", action="read_back_timeout", topic=topic.name)
        return read_back

    async def send(self, topic: Topic, key: str, record: Record | None) -> Place:
        """Sends a record, None for a tombstone. Raises as publish() does."""
        async with asyncio.timeout(self.timeouts.send_s):
            return await self.producer.send(topic, key, record)

    async def sync(self) -> None:
        """Reads to the topics' present ends. Raises KafkaBaseError or TimeoutError."""
        await self.follower.sync(self.timeouts.sync_s)

    async def surely(self, ask: Callable[[], Awaitable[T | None]]) -> T | None:
        """The answer of a query; None only if it is still None at the topics' ends."""
        found = await ask()
        if found is None:
            await self.sync()
            found = await ask()
        return found

    async def file(self, tenant: str, file_id: str) -> FileRecord | None:
        """The tenant's visible file."""
        return await self.surely(lambda: self.queries.file(tenant, file_id, self.clock.now_ms()))

    async def batch(self, tenant: str, batch_id: str) -> BatchSnapshot | None:
        """The tenant's batch."""
        return await self.surely(lambda: self.queries.batch(tenant, batch_id))


GATEWAY = web.AppKey("gateway", Gateway)
