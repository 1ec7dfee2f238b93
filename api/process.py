"""Runs a process of ours that isn't a Faust role, until SIGTERM or SIGINT.

exit 0    stopped when told to
exit 1    a defect, or the log was replaced: start it again
exit 69   Kafka, a topic, the object store or the port is not there
exit 78   settings, the upstream table or the price book are wrong
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable

import pydantic
import structlog

from api.read_model.follower import LogReplaced
from api.read_model.store import ReadModelError
from streams.domain.billing.prices.book import PriceBookError
from streams.domain.upstreams import UpstreamTableError
from streams.kafka.errors import KafkaBaseError
from streams.log import configure
from streams.ports.object_store import ObjectStoreError
from streams.settings import Settings

log = structlog.get_logger(__name__)

EXIT_DEFECT = 1
EXIT_UNAVAILABLE = 69
EXIT_CONFIG = 78

#: Serves until the event is set.
Serve = Callable[[Settings, asyncio.Event], Awaitable[None]]


def run_process(name: str, serve: Serve) -> int:
    """Runs it; the exit code."""
    try:
        settings = Settings()
    except pydantic.ValidationError as error:
        # Before there is a log to write to.
        sys.stderr.write(f"Backhaul's settings are wrong: {error}\n")
        return EXIT_CONFIG
    configure(settings, name)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(settings, serve))
    except LogReplaced as error:
        return _failed(name, error, EXIT_DEFECT)
    except (UpstreamTableError, PriceBookError) as error:
        return _failed(name, error, EXIT_CONFIG)
    except (KafkaBaseError, ObjectStoreError, ReadModelError, OSError) as error:
        return _failed(name, error, EXIT_UNAVAILABLE)
    # The last place that can say why the process ends.
    except Exception:
        log.exception("The process crashed.", action=f"{name}_crashed")
        return EXIT_DEFECT
    return 0


async def until_stopped(stop: asyncio.Event, *tasks: asyncio.Task[None]) -> None:
    """Waits until `stop` is set. Raises what a task ends with, which it must not before."""
    stopped = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        stopped.cancel()


async def cancelled(task: asyncio.Task[None]) -> None:
    """Cancels a task and waits until it has ended."""
    task.cancel()
    await asyncio.wait([task])


async def _serve(settings: Settings, serve: Serve) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    serving = asyncio.ensure_future(serve(settings, stop))
    stopping = asyncio.create_task(stop.wait())
    # Told to stop while it still starts, it has nothing to finish.
    await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
    await serving


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return None
    return uvloop.Loop


def _failed(name: str, error: Exception, code: int) -> int:
    log.error(str(error), action=f"{name}_failed", error=type(error).__name__)
    return code
