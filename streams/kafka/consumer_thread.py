"""The thread that fetches, heartbeats and commits for a role's group: our aiokafka consumer.

Faust fixes a fetch wait of 1.5 s and round-robin partitions, which move at every rebalance, and
says nothing about heartbeats; hence our own consumer inside Faust's thread.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any, cast

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from faust.transport.consumer import ensure_TP
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.types import TP

from streams.kafka.app import app_of
from streams.kafka.connection import REQUEST_TIMEOUT_MS, connection
from streams.kafka.reader import FETCH_MAX_WAIT_MS

#: A client-side limit that makes a member leave when it reads nothing for long; days, because
#: the stall watchdog does that job and knows the difference between idle and stuck.
_MAX_POLL_INTERVAL_MS = 7 * 86_400_000
_METADATA_MAX_AGE_MS = 60_000


#: Where each partition starts, and what is committed of it.
Starts = Mapping[TP, tuple[int, int | None]]


class ConsumerThread(AIOKafkaConsumerThread):
    """The thread that fetches, heartbeats and commits."""

    mundane_level = "debug"
    #: Set before a graceful stop: the group need not wait for the session to run out.
    leave_on_stop = False

    async def on_start(self) -> None:
        """Connects, and lets the fence hear every answered heartbeat."""
        await super().on_start()
        self._watch_membership(self._ensure_consumer()._coordinator)

    def on_crash(self, msg: str, *fmt: Any, **kwargs: Any) -> None:
        """Faust prints here; the role reports the crash."""

    def _create_worker_consumer(self, transport: Any) -> AIOKafkaConsumer:
        app = app_of(transport)
        options = app.options
        # A class of its own, because the sticky assignor remembers in class attributes.
        sticky = type("Sticky", (StickyPartitionAssignor,), {})
        assignor = app.assignor if options.tables else sticky
        return AIOKafkaConsumer(
            **connection(options.settings),
            group_id=app.conf.id,
            group_instance_id=options.member,
            partition_assignment_strategy=[assignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=options.max_poll_records,
            max_poll_interval_ms=_MAX_POLL_INTERVAL_MS,
            session_timeout_ms=int(options.settings.session_timeout_s * 1000),
            heartbeat_interval_ms=int(options.heartbeat_s * 1000),
            rebalance_timeout_ms=int(options.rebalance_timeout_s * 1000),
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            fetch_max_wait_ms=FETCH_MAX_WAIT_MS,
            metadata_max_age_ms=_METADATA_MAX_AGE_MS,
        )

    def _watch_membership(self, coordinator: Any) -> None:
        fence = app_of(self.transport).options.fence
        heartbeat, complete = coordinator._do_heartbeat, coordinator._on_join_complete
        reset = coordinator.reset_generation

        async def heard() -> bool:
            sent_at = time.monotonic()
            answered = bool(await heartbeat())
            if answered:
                fence.heard(sent_at)
            return answered

        async def joined(*args: Any) -> None:
            fence.heard(time.monotonic())
            await complete(*args)

        def lost() -> None:
            fence.lost()
            reset()

        coordinator._do_heartbeat = heard
        coordinator._on_join_complete = joined
        coordinator.reset_generation = lost

    async def give_back(self, dropped: Mapping[TP, tuple[int, int]]) -> None:
        """Fetches again what was fetched but not handed out: (from where, last offset) each.

        Where somebody has moved the partition back by now, or it is no longer held, nothing is
        to be done. Going back too far does no harm: records are handed out once.
        """
        positions = self.positions(dropped)
        consumer = self._ensure_consumer()
        for tp, (first, last) in dropped.items():
            if positions.get(tp, -1) > last:
                consumer.seek(TopicPartition(tp.topic, tp.partition), first)

    def positions(self, tps: Collection[TP]) -> dict[TP, int]:
        """The next offset to fetch of each assigned partition that has one."""
        subscription = self._ensure_consumer()._subscription.subscription
        assignment = None if subscription is None else subscription.assignment
        if assignment is None:
            return {}
        states = {tp: assignment.state_value(TopicPartition(tp.topic, tp.partition)) for tp in tps}
        return {tp: s.position for tp, s in states.items() if s and s.has_valid_position}

    async def start_over(self, instead: Mapping[TP, int]) -> Starts:
        """Moves each assigned stream partition to its commit, or to its beginning without one.

        instead: where to move some of them. Returns where each now is, and its commit. aiokafka's
        own leaves a partition without a commit where it is, which may be past records that were
        fetched and thrown away in a rebalance.
        """
        return cast("Starts", await self.call_thread(self._start_over, instead))

    async def _start_over(self, instead: Mapping[TP, int]) -> Starts:
        consumer = self._ensure_consumer()
        changelogs = self.app.tables.changelog_topics
        held = [raw for raw in consumer.assignment() if raw.topic not in changelogs]
        commits = {raw: await consumer.committed(raw) for raw in held}
        fresh = [raw for raw, commit in commits.items() if commit is None]
        beginnings = await consumer.beginning_offsets(fresh) if fresh else {}
        found: dict[TP, tuple[int, int | None]] = {}
        for raw, commit in commits.items():
            tp = ensure_TP(raw)
            start = instead.get(tp, beginnings[raw] if commit is None else commit)
            consumer.seek(raw, start)
            found[tp] = (start, commit)
        return found

    async def on_thread_stop(self) -> None:
        """Leaves the group first if told to; a static member would otherwise be waited for."""
        if self.leave_on_stop and self._consumer is not None:
            self._consumer._coordinator._group_instance_id = None
        await super().on_thread_stop()
