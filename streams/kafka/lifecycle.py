"""Runs a role from its first connection to its exit code: signals, order, budgets.

Faust's own worker would install its logging, redirect prints, serve tables over HTTP and leave
the process with an exception; here the app is started as the service that it is.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

import structlog
import uvloop
from aiokafka.errors import KafkaError

from streams.kafka.admin import ensure_changelog
from streams.kafka.connection import friendly, partition_counts
from streams.kafka.consumer import GroupConsumer
from streams.kafka.errors import KafkaBaseError
from streams.kafka.health import HealthServer
from streams.kafka.watchdog import watch

if TYPE_CHECKING:
    from streams.kafka.role import Role

log = structlog.get_logger(__name__)

EXIT_OK = 0
EXIT_FAILED = 1
#: How long the Faust app may take to stop, and anything else after it.
_APP_STOP_S = 10.0
_REST_STOP_S = 5.0


def run_role(role: Role) -> int:
    """Blocks until the role ends, and returns the exit code."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(role))


async def _run(role: Role) -> int:
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[str] = loop.create_future()
    role.crashed = loop.create_future()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _request, stop, number.name)
    life = _Life(role)
    starting = loop.create_task(life.start())
    ends: set[asyncio.Future[Any]] = {stop, role.crashed}
    await asyncio.wait({starting, *ends}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done() and starting.exception() is None:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    if stop.done() and not role.crashed.done():
        log.info("Stopping.", action="stopping", reason=stop.result())
        await life.stop(starting, graceful=True)
        if not role.crashed.done():
            return EXIT_OK
        _report(role, starting)
        return EXIT_FAILED
    _report(role, starting)
    await life.stop(starting, graceful=False)
    return EXIT_FAILED


def _request(stop: asyncio.Future[str], name: str) -> None:
    if not stop.done():
        stop.set_result(name)


def _report(role: Role, starting: asyncio.Task[None]) -> None:
    crashed = role.crashed
    error = crashed.result() if crashed is not None and crashed.done() else starting.exception()
    if error is None:
        return
    if isinstance(error, KafkaError):
        error = friendly(error, role.settings)
    if isinstance(error, KafkaBaseError):
        log.critical(str(error), action="role_failed", error=type(error).__name__)
    else:
        log.critical("The role failed.", action="role_failed", exc_info=error)


class _Life:
    """What was started, so that exactly that is stopped, in reverse."""

    def __init__(self, role: Role) -> None:
        self._role = role
        self._health = HealthServer(role.settings, role.metrics, role.waiting_for)
        self._app_started = False
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises KafkaBaseError, or whatever a service of the role raises."""
        role = self._role
        try:
            await self._health.start()
        except OSError as error:
            raise KafkaBaseError(f"The health endpoint can't listen: {error}.") from error
        await self._prepare_topics()
        await role.producer.start()
        for service in role.services:
            await service.maybe_start()
        self._app_started = True
        await role.app.start()
        self._watching = asyncio.create_task(watch(role))

    async def _prepare_topics(self) -> None:
        role = self._role
        names = {topic.name: full for full, topic in role.topics.items()}
        sources = {s.name: s.full_name(role.settings.topic_prefix) for _, s in role.tables}
        counts = await partition_counts(role.settings, names | sources)
        for table, source in role.tables:
            partitions = len(counts[source.name])
            await ensure_changelog(role.settings, table.changelog, partitions)
            table.create(partitions)

    async def stop(self, starting: asyncio.Task[None], *, graceful: bool) -> None:
        role = self._role
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting}, timeout=_REST_STOP_S)
        if self._watching is not None:
            self._watching.cancel()
        if graceful:
            await role.drain()
        if self._app_started:
            if graceful:
                consumer = role.app.consumer
                assert isinstance(consumer, GroupConsumer)  # noqa: S101 - our transport's
                consumer._thread.leave_on_stop = True
            await _bounded(role.app.stop(), _APP_STOP_S, "Kafka")
        for service in reversed(role.services):
            await _bounded(service.stop(), _REST_STOP_S, type(service).__name__)
        await _bounded(role.producer.stop(), _REST_STOP_S, "the producer")
        await _bounded(self._health.stop(), _REST_STOP_S, "the health endpoint")
        log.info("Stopped.", action="stopped")


async def _bounded(stopping: Awaitable[None], budget_s: float, what: str) -> None:
    """Waits for one part to stop; if it doesn't, the process ends here, as at a kill."""
    try:
        async with asyncio.timeout(budget_s):
            await stopping
    except TimeoutError:
        log.error("Did not stop in time.", action="stop_timed_out", part=what)
        os._exit(EXIT_FAILED)
    except Exception as error:
        # The other parts must still be stopped.
        log.error("Did not stop cleanly.", action="stop_failed", part=what, exc_info=error)
