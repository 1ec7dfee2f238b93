"""Puts the gateway together, and runs it: the only module of it that knows the real adapters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol, TypedDict

import structlog
from aiohttp import web

from api.auth import Keyring
from api.batches.partial import PartialOutputs
from api.files.cleanup import Cleanup
from api.gateway import GATEWAY, Gateway, Timeouts
from api.http import middleware
from api.http.body import MAX_BODY_BYTES
from api.http.protocol import EnvelopeRunner
from api.log_port import LogIdentity, LogProducer, LogReader
from api.model_catalogue import ModelCatalogue
from api.process import cancelled, until_stopped
from api.read_model.follower import Follower
from api.read_model.forecasts import Forecasts
from api.read_model.prompt_queries import PromptQueries
from api.read_model.queries import Queries
from api.read_model.realtime_rows import RealtimeQueries
from api.read_model.schema import TOPICS
from api.read_model.store import ReadModelStore
from api.read_model.webhook_rows import WebhookQueries
from api.realtime.lane import Lane, LaneLog
from api.routes import (
    batch_control,
    batches,
    content,
    cost_estimate,
    files,
    from_prompt,
    models,
    prompt_versions,
    prompts,
    realtime,
    realtime_usage,
    retry,
    stripe_webhook,
    usage,
    webhook_changes,
    webhooks,
)
from schemas.metrics import Metrics
from schemas.partitions import partition_for
from schemas.topics import BATCH_FORECAST, CAPACITY, REALTIME_REPLY
from streams.adapters.object_store import open_store
from streams.adapters.stripe_events import StripeEventsReader
from streams.domain.clock import Clock, SystemClock
from streams.domain.upstreams import UpstreamTable
from streams.kafka.health import HealthServer
from streams.kafka.identity import cluster_identity
from streams.kafka.producer import RecordProducer
from streams.kafka.reader import TopicReader
from streams.ports.object_store import ObjectNotFoundError, ObjectStore
from streams.ports.stripe_events import StripeEvents
from streams.prices import load_prices
from streams.rendering.renderer import Renderer
from streams.settings import Settings, load_upstreams

log = structlog.get_logger(__name__)

#: Idle and half-open connections are closed after this.
_KEEP_ALIVE_S = 75.0
#: What requests in flight get to finish once the gateway is told to stop, and what they get
#: once they are cancelled.
_DRAIN_S = 10.0
_SHUTDOWN_S = 1.0
#: A key that is never written: asking for it shows whether the store answers.
_PROBE_KEY = "files/none/none"


def build_app(
    gateway: Gateway, metrics: Metrics, stripe_events: StripeEvents | None = None
) -> web.Application:
    """The HTTP application. stripe_events: who reads what Stripe's webhook tells, if it may."""
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app[GATEWAY] = gateway
    app[middleware.METRICS] = metrics
    middleware.install(app)
    for module in (
        *(files, content, cost_estimate, batches, from_prompt, batch_control, retry, usage, models),
        realtime_usage,
        *(prompts, prompt_versions, realtime, webhooks, webhook_changes),
    ):
        app.add_routes(module.routes)
    if stripe_events is not None:
        stripe_webhook.install(app, stripe_events)
    return app


@asynccontextmanager
async def assembled(
    settings: Settings,
    *,
    producer: LogProducer,
    reader: LogReader,
    identity: LogIdentity,
    lane_log: LaneLog,
    forecast_reader: LogReader,
    object_store: ObjectStore,
    upstreams: UpstreamTable,
    read_model: Path | None,
    clock: Clock | None = None,
    timeouts: Timeouts | None = None,
    metrics: Metrics | None = None,
) -> AsyncIterator[tuple[Gateway, asyncio.Task[None]]]:
    """A gateway on any log and store, and the task that follows the log, which must not end.

    read_model: its file; None for one in memory. Raises KafkaBaseError, ReadModelError,
    PriceBookError.
    """
    clock, timeouts = clock or SystemClock(), timeouts or Timeouts()
    prices = load_prices(settings, clock, metrics)
    async with AsyncExitStack() as stack:
        rows = await ReadModelStore.open(read_model, identity=await identity(), clock=clock)
        stack.push_async_callback(rows.close)
        queries = Queries(rows.reader)
        keyring = Keyring(queries, sync_timeout_s=timeouts.sync_s)
        follower = Follower(reader, identity, rows, clock, on_keys=keyring.forget)
        keyring.follower = follower
        await _started(stack, follower)
        following = asyncio.create_task(follower.run(), name="follower")
        stack.push_async_callback(cancelled, following)
        lane = Lane(
            *(producer, lane_log, clock, settings, metrics or Metrics()),
            accept_s=timeouts.accept_s,
            silence_s=timeouts.silence_s,
        )
        await _started(stack, lane)
        forecasts = Forecasts(forecast_reader, clock)
        await _started(stack, forecasts)
        gateway = Gateway(
            **_questions(rows),
            settings=settings,
            clock=clock,
            producer=producer,
            follower=follower,
            queries=queries,
            store=object_store,
            keyring=keyring,
            catalogue=_catalogue(stack, upstreams, clock),
            renderer=_renderer(stack, metrics),
            upstreams=upstreams,
            lane=lane,
            forecasts=forecasts,
            partial=PartialOutputs(object_store),
            prices=prices,
            timeouts=timeouts,
        )
        yield gateway, following


def _renderer(stack: AsyncExitStack, metrics: Metrics | None) -> Renderer:
    # One process will do for previews; the first one starts it.
    renderer = Renderer(processes=1, metrics=metrics)
    stack.push_async_callback(renderer.stop)
    return renderer


def _catalogue(stack: AsyncExitStack, upstreams: UpstreamTable, clock: Clock) -> ModelCatalogue:
    catalogue = ModelCatalogue(upstreams, clock)
    stack.push_async_callback(catalogue.close)
    return catalogue


class _Questions(TypedDict):
    """What the gateway asks its read model, each kind in a module of its own."""

    rows: ReadModelStore
    prompts: PromptQueries
    webhooks: WebhookQueries
    realtime_usage: RealtimeQueries


def _questions(rows: ReadModelStore) -> _Questions:
    return {
        "rows": rows,
        "prompts": PromptQueries(rows.reader),
        "webhooks": WebhookQueries(rows.reader),
        "realtime_usage": RealtimeQueries(rows.reader),
    }


class _Startable(Protocol):
    async def start(self) -> None: ...

    async def stop(self) -> None: ...


async def _started(stack: AsyncExitStack, part: _Startable) -> None:
    """Starts a part, which stops with the stack, also if it only half started."""
    stack.push_async_callback(part.stop)
    await part.start()


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Runs the gateway until `stop` is set.

    Raises KafkaBaseError, ObjectStoreError, UpstreamTableError, ReadModelError, PriceBookError,
    OSError.
    """
    upstreams = load_upstreams(settings)
    object_store = open_store(settings.resolved_store_url)
    await check_store(object_store)
    metrics = Metrics().with_process()
    ready = Readiness()
    async with AsyncExitStack() as stack:
        health = HealthServer(settings, metrics, ready.waiting_for)
        stack.push_async_callback(health.stop)
        await health.start()
        producer = RecordProducer(settings, metrics=metrics)
        stack.push_async_callback(producer.stop)
        await producer.start()
        gateway, following = await stack.enter_async_context(
            assembled(
                settings,
                producer=producer,
                reader=TopicReader(settings, TOPICS, metrics=metrics),
                identity=_identity_of(settings),
                lane_log=await _lane_log(settings, producer, metrics),
                forecast_reader=TopicReader(settings, [BATCH_FORECAST], metrics=metrics),
                object_store=object_store,
                upstreams=upstreams,
                read_model=read_model_path(settings),
                metrics=metrics,
            )
        )
        ready.follower = gateway.follower
        cleanup = asyncio.create_task(Cleanup(gateway).run(), name="cleanup")
        stack.push_async_callback(cancelled, cleanup)
        stripe_events = stripe_events_of(settings)
        if stripe_events is not None:
            stack.push_async_callback(stripe_events.close)
        app = build_app(gateway, metrics, stripe_events)
        await stack.enter_async_context(listening(app, settings.host, settings.port))
        ready.listening = True
        await until_stopped(stop, following, cleanup)
        ready.listening = False
        log.info("The gateway stops.", action="gateway_stopping")


def stripe_events_of(settings: Settings) -> StripeEvents | None:
    """Who reads Stripe's webhook; None where no secret is set, so that there is no such path."""
    secret, key = settings.stripe_webhook_secret, settings.stripe_key
    if secret is None:
        return None
    return StripeEventsReader(
        secret.get_secret_value(),
        None if key is None else key.get_secret_value(),
        settings.stripe_api_base,
    )


class Readiness:
    """Whether requests can be answered; what /ready says."""

    def __init__(self) -> None:
        self.listening = False
        self.follower: Follower | None = None

    def waiting_for(self) -> str | None:
        """What the gateway waits for; None when it is ready."""
        if self.follower is None:
            return "kafka"
        if not self.follower.caught_up:
            return "reading the topics"
        return None if self.listening else "the listening socket"


@asynccontextmanager
async def listening(app: web.Application, host: str, port: int) -> AsyncIterator[int]:
    """Serves the application; gives the port. Requests in flight may finish at the end."""
    runner = EnvelopeRunner(
        app, access_log=None, keepalive_timeout=_KEEP_ALIVE_S, shutdown_timeout=_SHUTDOWN_S
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        bound = int(runner.addresses[0][1])
        log.info("The gateway listens.", action="gateway_listening", host=host, port=bound)
        yield bound
        for site in list(runner.sites):
            await site.stop()
        # aiohttp's own shutdown would throw away the rest of a body that is still arriving.
        if middleware.IN_FLIGHT in app and not await app[middleware.IN_FLIGHT].drained(_DRAIN_S):
            log.warning("Requests were cut off.", action="requests_cut")
            if GATEWAY in app:
                # Their clients are told so, and don't pay for what we broke off.
                app[GATEWAY].lane.interrupt()
                await app[middleware.IN_FLIGHT].drained(_SHUTDOWN_S)
    finally:
        await runner.cleanup()


async def check_store(object_store: ObjectStore) -> None:
    """Raises ObjectStoreError if the store doesn't answer."""
    with suppress(ObjectNotFoundError):
        await object_store.size(_PROBE_KEY)


def read_model_path(settings: Settings) -> Path:
    """Where this instance keeps its read model."""
    return settings.data_dir / f"gateway-{settings.instance}" / "read-model.sqlite"


async def _lane_log(settings: Settings, producer: RecordProducer, metrics: Metrics) -> LaneLog:
    """The lane's readers; which partition is ours follows from our name."""
    partition = partition_for(settings.instance, await producer.partitions(REALTIME_REPLY))
    return LaneLog(
        replies=TopicReader(
            settings, [REALTIME_REPLY], metrics=metrics, only={REALTIME_REPLY.name: {partition}}
        ),
        loads=TopicReader(settings, [CAPACITY], metrics=metrics),
        partition=partition,
    )


def _identity_of(settings: Settings) -> LogIdentity:
    async def identity() -> str:
        found = await cluster_identity(settings, TOPICS)
        # The same cluster with another prefix is another log, also where there are no topic ids.
        ids = ",".join(f"{name}={found.topic_ids[name]}" for name in sorted(found.topic_ids))
        return f"{found.cluster_id}/{settings.topic_prefix}/{ids}"

    return identity
