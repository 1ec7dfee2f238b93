"""`python -m api`: the gateway process, until SIGTERM or SIGINT.

exit 0    stopped when told to
exit 1    a defect, or the log was replaced: start it again
exit 69   Kafka, a topic, the object store or the port is not there
exit 78   settings, the upstream table or the price book are wrong
"""

from __future__ import annotations

import asyncio
import signal
import sys

import pydantic
import structlog

from api.app import serve
from api.read_model.follower import LogReplaced
from api.read_model.store import ReadModelError
from streams.domain.billing.prices import PriceBookError
from streams.domain.upstreams import UpstreamTableError
from streams.kafka.errors import KafkaBaseError
from streams.log import configure
from streams.ports.object_store import ObjectStoreError
from streams.settings import Settings

log = structlog.get_logger(__name__)

_EXIT_DEFECT = 1
_EXIT_UNAVAILABLE = 69
_EXIT_CONFIG = 78


def main() -> int:
    """Runs the gateway; the exit code."""
    try:
        settings = Settings()
    except pydantic.ValidationError as error:
        # Before there is a log to write to.
        sys.stderr.write(f"Backhaul's settings are wrong: {error}\n")
        return _EXIT_CONFIG
    configure(settings, "gateway")
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(settings))
    except LogReplaced as error:
        return _failed(error, _EXIT_DEFECT)
    except (UpstreamTableError, PriceBookError) as error:
        return _failed(error, _EXIT_CONFIG)
    except (KafkaBaseError, ObjectStoreError, ReadModelError, OSError) as error:
        return _failed(error, _EXIT_UNAVAILABLE)
    # The last place that can say why the process ends.
    except Exception:
        log.exception("The gateway crashed.", action="gateway_crashed")
        return _EXIT_DEFECT
    return 0


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    serving = asyncio.create_task(serve(settings, stop))
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


def _failed(error: Exception, code: int) -> int:
    log.error(str(error), action="gateway_failed", error=type(error).__name__)
    return code


if __name__ == "__main__":
    sys.exit(main())
