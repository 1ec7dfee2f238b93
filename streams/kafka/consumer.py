"""Reads for the agents of a role, whole batches at a time, and commits what is finished.

Faust's own consumer hands records out one by one at four futures each, drops what it fetched
for a paused partition, and commits past unfinished records (faust.md, sections 0 and 1).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, cast

import structlog
import uvloop
from aiokafka.errors import KafkaError
from faust.events import Event
from faust.transport.conductor import Conductor
from faust.transport.consumer import ensure_TP
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage, Message
from mode import Service, ServiceT

from streams.kafka.app import app_of
from streams.kafka.consumer_thread import ConsumerThread
from streams.kafka.errors import SendFailed
from streams.kafka.recovery import replay, settle
from streams.kafka.unacked import Unacked

log = structlog.get_logger(__name__)

#: How long one fetch may wait for the first record, and so how late a new assignment is noticed.
_FETCH_S = 0.25
#: The same while some topics are full, whose space must be noticed soon.
_FETCH_WHILE_FULL_S = 0.02
#: How long to sleep when there is nothing to fetch from at all.
_IDLE_S = 0.02
#: A queue is full at this share of its size; above it there is room for one more poll.
_FULL_SHARE = 0.8

Records = Sequence[Any]


class GroupConsumer(driver.Consumer):
    """Reads for the agents and commits for them."""

    mundane_level = "debug"
    _thread: ConsumerThread
    _commit_every: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unacked: dict[TP, Unacked] = {}
        self._commit_due = asyncio.Event()
        self._healing: set[TP] = set()

    def _new_consumer_thread(self) -> ConsumerThread:
        # The thread gets uvloop, too; mode closes only loops that it made itself.
        loop = uvloop.new_event_loop()
        thread = ConsumerThread(self, loop=self.loop, thread_loop=loop, beacon=self.beacon)
        thread._close_thread_loop_on_stop = True
        return thread

    # -- positions --------------------------------------------------------------------------

    async def perform_seek(self) -> None:
        """Goes to each partition's commit, or where this assignment has handed out more."""
        generation = self.app.consumer_generation_id
        current = {tp: u for tp, u in self._unacked.items() if u.generation == generation}
        starts = await self._thread.start_over({tp: u.next for tp, u in current.items()})
        self._unacked = {
            tp: current.get(tp) or Unacked(generation, start, committed)
            for tp, (start, committed) in starts.items()
        }
        self._healing.clear()

    def is_live(self, tp: TP, generation: int) -> bool:
        """Whether a record of this partition and generation may still be worked on and acked."""
        unacked = self._unacked.get(tp)
        return unacked is not None and unacked.generation == generation

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Lets the role drop its work, commits what is finished, then forgets the partitions."""
        self.stop_flow()
        app = app_of(self.transport)
        await app.options.on_revoked(revoked)
        try:
            async with asyncio.timeout(app.options.settings.session_timeout_s / 3):
                # The first may only have waited for a commit that was under way.
                await self.commit()
                await self.commit()
        except (TimeoutError, KafkaError, SendFailed) as error:
            # What isn't committed is done again by whoever gets the partition.
            log.warning(
                "Could not commit before giving up partitions.",
                action="commit_on_revoke_failed",
                error=type(error).__name__,
            )
        for tp in revoked:
            self._unacked.pop(tp, None)
        await super().on_partitions_revoked(revoked)

    # -- reading ----------------------------------------------------------------------------

    async def _drain_messages(self, fetcher: ServiceT) -> None:
        while not (self.should_stop or fetcher.should_stop):
            if not self.flow_active:
                await self.wait(self.can_resume_flow.wait())
                continue
            wanted = self._wanted()
            if not wanted:
                await asyncio.sleep(_IDLE_S)
                continue
            full = len(wanted) < len(self._active_partitions)
            batches = await self._getmany(wanted, _FETCH_WHILE_FULL_S if full else _FETCH_S)
            if batches:
                await self._hand_out_all(batches)
            if self.app.in_recovery and self.flow_active:
                settle(app_of(self.transport), self._thread.positions(self._active_partitions))

    def _wanted(self) -> set[TP]:
        """A copy of the active partitions, without those that nothing may be handed out of now."""
        return {tp for tp in self._active_partitions if self._is_changelog_tp(tp) or self._open(tp)}

    def _open(self, tp: TP) -> bool:
        # Until the very end of a rebalance, Faust may clear the agents' queues once more.
        return not self.app.rebalancing and not self._is_full(tp)

    def _is_full(self, tp: TP) -> bool:
        queue = self._queue(tp)
        return queue is None or queue.qsize() >= queue.maxsize * _FULL_SHARE

    def _queue(self, tp: TP) -> Any:
        """The queue of the one agent that reads this partition's topic."""
        for channel in cast("Conductor", self.app.topics)._tp_index.get(tp, ()):
            return channel.queue
        return None

    async def _hand_out_all(self, batches: Mapping[Any, Records]) -> None:
        generation = self.app.consumer_generation_id
        back: dict[TP, tuple[int, int]] = {}
        for raw_tp, records in batches.items():
            tp = ensure_TP(raw_tp)
            if not self._take(tp, records, generation):
                back[tp] = (self._expected(tp, records[0].offset), records[-1].offset)
        if back:
            await self._thread.call_thread(self._thread.give_back, back)

    def _take(self, tp: TP, records: Records, generation: int) -> bool:
        """Hands records out; False if they are to be fetched again.

        A rebalance may have begun, or ended, while the fetch was in flight.
        """
        if not self.flow_active or tp not in self._active_partitions:
            return False
        if self._is_changelog_tp(tp):
            return replay(app_of(self.transport), tp, records)
        unacked, queue = self._unacked.get(tp), self._queue(tp)
        if self.app.rebalancing or queue is None:
            return False
        if unacked is None or unacked.generation != generation:
            return False
        if records[0].offset > unacked.next and not self._is_hole(tp, unacked, records):
            return False
        for record in records:
            if record.offset >= unacked.next:
                message = self._message(tp, record, generation)
                unacked.hand_out(record.offset)
                queue.force_put_nowait(
                    Event(self.app, record.key, record.value, record.headers, message)
                )
        return True

    def _expected(self, tp: TP, found: int) -> int:
        unacked = self._unacked.get(tp)
        return found if unacked is None else min(found, unacked.next)

    def _is_hole(self, tp: TP, unacked: Unacked, records: Records) -> bool:
        """Whether a jump is a hole in the log, which it is if it is there a second time.

        Our topics have no holes but where retention cut them off, so at first a jump is taken
        for records that got lost on the way, and the partition is read again from where it
        should have gone on.
        """
        if tp in self._healing:
            self._healing.discard(tp)
            return True
        self._healing.add(tp)
        log.warning(
            "Reading jumped ahead; going back.",
            action="gap_healed",
            topic=tp.topic,
            partition=tp.partition,
            expected=unacked.next,
            found=records[0].offset,
        )
        return False

    def _message(self, tp: TP, record: Any, generation: int) -> ConsumerMessage:
        return ConsumerMessage(
            record.topic,
            record.partition,
            record.offset,
            record.timestamp,
            record.timestamp_type,
            record.headers,
            record.key,
            record.value,
            None,
            record.serialized_key_size,
            record.serialized_value_size,
            tp,
            generation_id=generation,
        )

    # -- acks and commits -------------------------------------------------------------------

    def ack(self, message: Message) -> bool:
        """Marks a record as finished. Of an older generation it does nothing."""
        if message.acked:
            return False
        message.acked = True
        unacked = self._unacked.get(message.tp)
        if unacked is None or unacked.generation != message.generation_id:
            return False
        unacked.ack(message.offset)
        self._n_acked += 1
        if self._n_acked >= self._commit_every:
            self._commit_due.set()
        return True

    @Service.task
    async def _commit_handler(self) -> None:
        while not self.should_stop:
            try:
                async with asyncio.timeout(self.commit_interval):
                    await self._commit_due.wait()
            except TimeoutError:
                pass
            await self.commit()

    async def force_commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Flushes the changelogs, then commits each partition up to its first unfinished record.

        topics, start_new_transaction: Faust's; commits are always of everything, and plain.
        """
        self._commit_due.clear()
        self._n_acked = 0
        due = [(tp, u, offset) for tp, u in self._unacked.items() if (offset := u.due())]
        if not due:
            return False
        await self.app.producer.flush()
        live = {tp: offset for tp, u, offset in due if self._unacked.get(tp) is u}
        if not live or not await self._commit(live):
            return False
        for tp, unacked, offset in due:
            if tp in live:
                unacked.committed = offset
        return True

    def committed(self, tp: TP) -> int | None:
        """What this process last committed or found committed."""
        unacked = self._unacked.get(tp)
        return None if unacked is None else unacked.committed

    def finished(self, tp: TP) -> int | None:
        """The offset below which every record is finished; None if nothing is known yet."""
        unacked = self._unacked.get(tp)
        if unacked is None:
            return None
        return unacked.committed if unacked.safe is None else unacked.safe

    def next_offset(self, tp: TP) -> int | None:
        """The offset that will be handed out next; None if the partition isn't held."""
        unacked = self._unacked.get(tp)
        return None if unacked is None else unacked.next

    def on_buffer_full(self, tp: TP) -> None:
        """Faust's back-pressure; ours is in _wanted."""

    def on_buffer_drop(self, tp: TP) -> None:
        """Faust's back-pressure; ours is in _wanted."""

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust's own livelock detector only logs, and needs its monitor; see watchdog.py."""
