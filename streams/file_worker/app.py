"""The file-worker's process: wires store, upstream table and Kafka to the tasks."""

from __future__ import annotations

import structlog

from schemas.topics import FILE_TASK, PROMPT
from streams.adapters.object_store import open_store
from streams.domain.billing.prices.book import PriceBookError
from streams.domain.clock import SystemClock
from streams.domain.upstreams import UpstreamTableError
from streams.file_worker.assemble import AssemblyRunner
from streams.file_worker.intake import IntakeRunner, Limits
from streams.file_worker.patience import Patience
from streams.file_worker.prompts import StoredPrompts
from streams.file_worker.worker import FileWorker
from streams.kafka.reader import TopicReader
from streams.kafka.role import Role
from streams.ports.object_store import ObjectStoreError
from streams.prices import load_prices
from streams.settings import Settings, load_upstreams

log = structlog.get_logger(__name__)

EXIT_USAGE = 2


def main(settings: Settings) -> int:
    """Runs the role until it is told to stop, and returns its exit code."""
    try:
        role = build(settings)
    except (ObjectStoreError, UpstreamTableError, PriceBookError) as error:
        log.critical(str(error), action="settings_wrong")
        return EXIT_USAGE
    return role.run()


def build(settings: Settings) -> Role:
    """The role, wired. Raises ObjectStoreError, UpstreamTableError, PriceBookError."""
    role = Role("file-worker", settings)
    store = open_store(settings.resolved_store_url)
    clock = SystemClock()
    patience = Patience(clock, role.metrics)
    limits = Limits(
        settings.max_batch_lines, settings.max_line_bytes, settings.max_batch_file_bytes
    )
    prompts = StoredPrompts(TopicReader(settings, [PROMPT], metrics=role.metrics), role.crash)
    prices = load_prices(settings, clock, role.metrics)
    worker = FileWorker(
        role.producer.send,
        IntakeRunner(
            store, load_upstreams(settings).serves, limits, patience, prompts, prices.allows
        ),
        AssemblyRunner(store, patience, role.metrics),
        clock,
        role.metrics,
        role.crash,
    )
    role.add_service(prompts)
    role.consume(FILE_TASK, worker.run)
    role.on_revoked(worker.revoked)
    role.on_stopping(worker.stop)
    return role
