"""Wires the controller: commands and events in, tables, tasks, snapshots, usage and lines out."""

from __future__ import annotations

from typing import cast

import structlog
from faust.types import TP
from mode import Service

from schemas.topics import ACCOUNT, BATCH_COMMAND, BATCH_EVENT, BATCH_STATUS
from streams.adapters.object_store import open_store
from streams.background import Tasks
from streams.controller.assignment import Assignment, Parts
from streams.controller.books import Books
from streams.controller.commands import CommandRelay
from streams.controller.enqueued import EnqueuedFollower
from streams.controller.input_lines import InputLines
from streams.controller.loads import Loads
from streams.controller.log import BatchLog, Step
from streams.controller.meter import ControllerMeter
from streams.controller.outstanding import find_outstanding
from streams.controller.ports import Rows
from streams.controller.release import Releaser
from streams.controller.routes import Routes
from streams.controller.snapshots import Snapshots
from streams.controller.windows import Windows
from streams.domain.billing.budgets.holds import BudgetHolds
from streams.domain.billing.prices.book import PriceBookError
from streams.domain.clock import SystemClock
from streams.domain.upstreams import UpstreamTable, UpstreamTableError
from streams.kafka.consumer import GroupConsumer
from streams.kafka.reader import TopicReader
from streams.kafka.role import Role
from streams.ports.object_store import ObjectStore, ObjectStoreError
from streams.prices import Prices, load_prices
from streams.settings import Settings, load_upstreams

log = structlog.get_logger(__name__)

EXIT_USAGE = 2
#: A crash folds again what is not committed, and the workers of a batch wait meanwhile.
_COMMIT_S, _COMMIT_EVERY = 0.5, 500
#: Most of a line that may travel in Kafka, whatever the settings say.
_MAX_TRAVELLING_BYTES = 1024 * 1024


class Controller(Service):
    """The role's parts, and what happens to its partitions."""

    def __init__(
        self, role: Role, table: UpstreamTable, store: ObjectStore, prices: Prices
    ) -> None:
        super().__init__()
        self._role = role
        self._name = f"{role.name}-{role.settings.instance}"
        self._clock = SystemClock()
        self._books = Books(
            cast("Rows", role.table("batches", BATCH_EVENT)),
            cast("Rows", role.table("chunks", BATCH_EVENT)),
        )
        self._meter = ControllerMeter(role.metrics)
        self._loads = Loads(role.settings, self._clock, role.metrics)
        self._enqueued = EnqueuedFollower(
            TopicReader(role.settings, [ACCOUNT], metrics=role.metrics),
            TopicReader(role.settings, [BATCH_STATUS], metrics=role.metrics),
            self._clock,
            BudgetHolds(prices.current),
        )
        self._snapshots = Snapshots(self._books, role.producer, role.fence)
        claim_check_bytes = min(role.settings.claim_check_bytes, _MAX_TRAVELLING_BYTES)
        self._lines = InputLines(store, claim_check_bytes)
        self._routes = Routes(table)
        self._relay = CommandRelay(role.producer, role.reject)
        self._log = BatchLog(
            self._books,
            self._snapshots,
            role.producer,
            role.fence,
            role.reject,
            self._stepped,
        )
        self._beside = Tasks(role.crash)
        self._assignment: Assignment | None = None
        role.consume(BATCH_COMMAND, self._relay.consume)
        role.consume(BATCH_EVENT, self._log.consume)
        role.add_service(self)
        role.on_assigned(self._assigned)
        role.on_revoked(self._revoked)
        role.on_stopping(self._stopping)

    async def on_start(self) -> None:
        """Begins what runs beside the agents. Raises KafkaBaseError."""
        await self._loads.start()
        await self._enqueued.start()
        self._beside.start(self._loads.work())
        self._beside.start(self._enqueued.follow_limits())
        self._beside.start(self._enqueued.follow_batches())
        self._beside.start(self._relay.work())
        self._beside.start(self._log.work())
        self._beside.start(self._snapshots.work())

    async def on_stop(self) -> None:
        """Ends it."""
        await self._stopping()
        await self._beside.stop(0.0)
        await self._lines.close()
        await self._loads.stop()
        await self._enqueued.stop()

    async def _assigned(self, assignment: dict[str, set[int]]) -> None:
        await self._stopping()
        held = assignment.get(BATCH_EVENT.name, set())
        partitions = await self._role.producer.partitions(BATCH_EVENT)
        self._books.load(held, partitions)
        self._snapshots.reset()
        if held:
            self._assignment = Assignment(held, self._parts(), self._role.crash)
            self._assignment.start()

    async def _revoked(self, _revoked: dict[str, set[int]]) -> None:
        await self._stopping()
        self._books.clear()

    async def _stopping(self) -> None:
        assignment, self._assignment = self._assignment, None
        if assignment is not None:
            await assignment.stop()

    def _stepped(self, step: Step) -> None:
        self._meter.stepped(step)
        if self._assignment is not None:
            self._assignment.stepped(step)

    def _parts(self) -> Parts:
        role = self._role
        return Parts(
            books=self._books,
            loads=self._loads,
            enqueued=self._enqueued,
            clock=self._clock,
            find_outstanding=lambda mine: find_outstanding(role.settings, mine, role.metrics),
            folded=self._folded,
            flush_tables=role.app.producer.flush,
            new_releaser=lambda: Releaser(
                self._name,
                self._books,
                self._lines,
                self._routes,
                self._enqueued.tenants,
                role.producer,
                role.fence,
                self._clock,
                self._meter.foresaw,
                role.crash,
            ),
            new_windows=lambda: Windows(self._books, role.producer, self._clock),
        )

    def _folded(self, partition: int) -> int | None:
        consumer = cast("GroupConsumer", self._role.app.consumer)
        full_name = BATCH_EVENT.full_name(self._role.settings.topic_prefix)
        return consumer.finished(TP(full_name, partition))


def main(settings: Settings) -> int:
    """Runs a controller until it is told to stop; the exit code."""
    try:
        role = build(settings)
    except (ObjectStoreError, UpstreamTableError, PriceBookError) as error:
        log.critical(str(error), action="settings_wrong")
        return EXIT_USAGE
    return role.run()


def build(settings: Settings) -> Role:
    """The role, wired. Raises ObjectStoreError, UpstreamTableError, PriceBookError."""
    table = load_upstreams(settings)
    store = open_store(settings.resolved_store_url)
    role = Role(
        "controller",
        settings,
        tables=True,
        commit_interval_s=_COMMIT_S,
        commit_every=_COMMIT_EVERY,
    )
    Controller(role, table, store, load_prices(settings, metrics=role.metrics))
    return role
