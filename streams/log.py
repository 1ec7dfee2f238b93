"""Every process's log: one line per event on stderr, ours and our libraries' alike.

    log = structlog.get_logger(__name__)
    log.info("Batch is finalizing.", action="batch_finalizing", batch_id=batch_id)

Nothing that callers sent (prompts, outputs, custom ids, bodies) is ever logged. So tracebacks
come without local variables, and libraries that would log records at debug level stay at info.
"""

from __future__ import annotations

import logging
import logging.config
import sys
from typing import Any

import structlog
from structlog.typing import Processor

from streams.settings import Settings

#: Least level of libraries' loggers. Below it they log requests and records with their content,
#: or are chatty about what our own lines say already.
_LIBRARY_LEVELS: dict[str, int] = {
    "aiokafka": logging.WARNING,
    "aiosqlite": logging.WARNING,
    "aiohttp.access": logging.WARNING,
    "asyncio": logging.WARNING,
    "faust": logging.WARNING,
    "mode": logging.WARNING,
}
#: Libraries that repeat themselves while a broker is away, and how often they may.
_LIBRARIES = frozenset({"aiokafka", "faust", "mode"})
_QUIET_S = 10.0
_KIND_CHARACTERS = 40
_MOST_KINDS = 1000


def configure(settings: Settings, process: str) -> None:
    """Sends all logging to stderr in the format that the settings ask for."""
    shared = _shared(process, settings.instance)
    console = settings.log_format == "console"
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *(_console() if console else _json()),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    handler.addFilter(_Throttle())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for name, level in _LIBRARY_LEVELS.items():
        logging.getLogger(name).setLevel(max(level, root.level))
    logging.captureWarnings(capture=True)


class _Throttle(logging.Filter):
    """Passes one library message of a kind per while, whatever its arguments.

    Without a broker, aiokafka's clients say a hundred times a second that there is none.
    """

    def __init__(self) -> None:
        super().__init__()
        self._passed_at: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is ours, or the first of its kind for a while."""
        if record.name.partition(".")[0] not in _LIBRARIES:
            return True
        # Templates are few, but some libraries format before they log.
        kind = (record.name, str(record.msg)[:_KIND_CHARACTERS])
        passed_at = self._passed_at.get(kind)
        if passed_at is not None and record.created - passed_at < _QUIET_S:
            return False
        if len(self._passed_at) >= _MOST_KINDS:
            self._passed_at.clear()
        self._passed_at[kind] = record.created
        return True


def _shared(process: str, instance: str) -> list[Processor]:
    def name_process(_: Any, __: str, event: structlog.typing.EventDict) -> Any:
        event["process"] = process
        event["instance"] = instance
        return event

    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        name_process,
    ]


def _json() -> list[Processor]:
    transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [
        structlog.processors.ExceptionRenderer(transformer),
        structlog.processors.JSONRenderer(),
    ]


def _console() -> list[Processor]:
    return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
