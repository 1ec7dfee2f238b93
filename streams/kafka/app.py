"""The Faust app of a role, with the settings that faust.md section 10 arrives at."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import faust
from faust.app.base import BootStrategy
from faust.tables.manager import TableManager
from faust.types import TP

from streams.kafka.errors import SendFailed
from streams.kafka.fence import Fence
from streams.kafka.groups import group_name, member_name
from streams.settings import Settings

#: Faust only logs when an event takes longer; a model call may take ten minutes.
_SLOW_S = 3600.0
#: Members learn of a rebalance by their heartbeat, so it decides how long joining takes.
_HEARTBEAT_S = 1.0
#: Heartbeats per session time-out, at least.
_HEARTBEATS = 5


@dataclass(frozen=True, kw_only=True)
class AppOptions:
    """What a role asks of its app.

    tables: whether it has any, which decides the group protocol. on_revoked: awaited before the
    partitions are given up. on_crash: ends the process; called from any thread.
    """

    settings: Settings
    role: str
    tables: bool
    commit_interval_s: float
    commit_every: int
    max_poll_records: int
    fence: Fence
    on_revoked: Callable[[set[TP]], Awaitable[None]]
    on_crash: Callable[[BaseException], None]

    @property
    def member(self) -> str:
        """The static group member id."""
        return member_name(self.settings, self.role)

    @property
    def heartbeat_s(self) -> float:
        """Seconds between heartbeats."""
        return min(_HEARTBEAT_S, self.settings.session_timeout_s / _HEARTBEATS)

    @property
    def rebalance_timeout_s(self) -> float:
        """How long members may take to give up partitions and join again."""
        return self.settings.session_timeout_s


class _Boot(BootStrategy):
    """Starts what we use: no web server, no monitor, no leader election, no reply topic."""

    def server(self) -> Iterable[Any]:
        app = self.app
        return [app.producer, app.consumer, app.agents, app.topics, app.tables]


class _Tables(TableManager):
    """Faust's, without the second that it sleeps at start."""

    mundane_level = "debug"

    async def on_start(self) -> None:
        await self._update_channels()
        await self.recovery.start()


class RoleApp(faust.App):
    """A Faust app on our transport."""

    mundane_level = "debug"
    BootStrategy = _Boot

    def __init__(self, options: AppOptions) -> None:
        self.options = options
        settings = options.settings
        super().__init__(
            group_name(settings, options.role),
            broker=f"kafka://{settings.kafka.split(',')[0].strip()}",
            # Assignments are keyed by it, so it must be unique and survive a restart.
            canonical_url=f"http://{options.member}",
            TableManager=_Tables,
            store="memory://",
            processing_guarantee="at_least_once",
            stream_wait_empty=False,
            stream_recovery_delay=0.0,
            stream_processing_timeout=_SLOW_S,
            broker_commit_livelock_soft_timeout=_SLOW_S,
            broker_session_timeout=settings.session_timeout_s,
            broker_request_timeout=max(30.0, settings.session_timeout_s + 5),
            broker_rebalance_timeout=options.rebalance_timeout_s,
            broker_heartbeat_interval=options.heartbeat_s,
            broker_commit_interval=options.commit_interval_s,
            broker_commit_every=options.commit_every,
            consumer_group_instance_id=options.member,
            table_standby_replicas=0,
            topic_disable_leader=True,
            topic_replication_factor=settings.kafka_replicas,
            web_enabled=False,
            autodiscover=False,
        )

    def on_init_dependencies(self) -> Iterable[Any]:
        """Faust's, without its monitor, which costs more per record than all of our own work."""
        return self.boot_strategy.server()

    def on_rebalance_start(self) -> None:
        """Faust's, which later warns if no sensor has said anything."""
        super().on_rebalance_start()
        self._rebalancing_sensor_state = {"no": "sensors"}

    async def on_first_start(self) -> None:
        """Faust's makes folders that a memory store doesn't need."""

    def _crash(self, reason: BaseException) -> None:
        """Called, from any thread, when any part of the app crashes."""
        super()._crash(reason)
        self.options.on_crash(reason)

    async def _producer_flush(self, logger: Any) -> None:
        """A flush for a revoke or a stop: bounded, because a rebalance waits for it."""
        try:
            async with asyncio.timeout(self.options.settings.session_timeout_s / 3):
                await self.producer.flush()
        except (TimeoutError, SendFailed):
            self.options.on_crash(SendFailed("The changelogs could not be flushed in time."))

    def _new_transport(self) -> Any:
        # Imported late, because the transport's parts look their app up here.
        from streams.kafka.transport import Transport  # noqa: PLC0415

        return Transport(self.conf.broker_consumer, self)

    def _new_producer_transport(self) -> Any:
        return self.transport


def app_of(transport: Any) -> RoleApp:
    """The app that a transport serves."""
    return cast("RoleApp", transport.app)
