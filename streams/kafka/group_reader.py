"""Reading as a member of a consumer group without Faust: topics by pattern, commits with a note.

Faust follows the topics that an app names when it starts. Who reads a topic of each tenant needs
those that are made later, too, and decides by itself how far a partition need not be read again.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaError,
    TopicAuthorizationFailedError,
)
from aiokafka.structs import OffsetAndMetadata

from streams.kafka.connection import REQUEST_TIMEOUT_MS, connection, friendly
from streams.kafka.errors import KafkaBaseError
from streams.kafka.groups import committed_marks, group_name, member_name
from streams.settings import Settings

log = structlog.get_logger(__name__)

#: A topic that matches the pattern is read so long after it was made, at the latest.
_NEW_TOPICS_MS = 5_000
#: One step of work may take so long before the member is thrown out of its group.
_MAX_POLL_INTERVAL_MS = 5 * 60 * 1000
#: Others wait for what a dead member has. Brokers allow no less by default.
_SHORT_SESSION_S = 6.0
#: A topic that may not be read is asked for again after this.
_BARRED_S = 30.0
_FETCH_MAX_WAIT_MS = 100
_FETCH_MAX_BYTES = 16 * 1024 * 1024
_MAX_POLL_RECORDS = 2000


@dataclass(frozen=True, slots=True, order=True)
class TopicPart:
    """One partition of a topic, by the topic's full name."""

    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a partition was read. note: what the reader wants to know of it next time."""

    offset: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """A partition that is this process's. since: another number whenever it is read anew.

    note: of the last commit; empty where there is none.
    """

    since: int
    note: str


class GroupReader:
    """A member of the group of a role. Within one poll nothing is committed by itself."""

    def __init__(
        self,
        settings: Settings,
        role: str,
        *,
        topics: Sequence[str] = (),
        pattern: str | None = None,
    ) -> None:
        """Reads these topics, by their full names, or all whose full names match a pattern."""
        self._settings = settings
        self._role = role
        # The broker gives a static member that comes back what it had before, without asking who
        # sees which topics: it would never read one that was made while it was away.
        self._member = member_name(settings, role) if pattern is None else None
        shortest_s = settings.session_timeout_s if pattern is None else _SHORT_SESSION_S
        self._session_ms = int(min(settings.session_timeout_s, shortest_s) * 1000)
        self._topics, self._pattern = topics, pattern
        self._consumer: AIOKafkaConsumer | None = None
        self._held: dict[TopicPart, Held] = {}
        #: What the group has given this process and it hasn't taken over yet.
        self._given: set[TopicPartition] | None = None
        self._numbers = itertools.count(1)
        #: Partitions of topics that may not be read, paused since that time.
        self._barred: dict[TopicPartition, float] = {}

    async def start(self) -> None:
        """Joins the group; a partition without a commit begins at its beginning.

        Records of transactions that were aborted are never read. Raises BrokerUnreachable.
        """
        consumer = AIOKafkaConsumer(
            **connection(self._settings),
            group_id=group_name(self._settings, self._role),
            group_instance_id=self._member,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            session_timeout_ms=self._session_ms,
            heartbeat_interval_ms=self._session_ms // 5,
            max_poll_interval_ms=_MAX_POLL_INTERVAL_MS,
            metadata_max_age_ms=_NEW_TOPICS_MS,
            fetch_max_wait_ms=_FETCH_MAX_WAIT_MS,
            fetch_max_bytes=_FETCH_MAX_BYTES,
            max_poll_records=_MAX_POLL_RECORDS,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )
        listener = _Listener(self)
        if self._pattern is not None:
            consumer.subscribe(pattern=self._pattern, listener=listener)
        else:
            consumer.subscribe(list(self._topics), listener=listener)
        self._consumer = consumer
        try:
            await consumer.start()
        except (KafkaError, OSError) as error:
            await self.stop()
            raise friendly(error, self._settings) from error

    async def poll(self, timeout_s: float) -> Mapping[TopicPart, Sequence[ConsumerRecord]]:
        """At most 2000 records that came, in order within a partition. Raises KafkaBaseError."""
        consumer = self._started()
        try:
            if self._given is not None:
                await self._take_over(consumer, self._given)
            self._unbar(consumer)
            came = await consumer.getmany(timeout_ms=int(timeout_s * 1000))
        except TopicAuthorizationFailedError as error:
            self._bar(consumer, error)
            return {}
        except IllegalStateError:
            # The group has moved on meanwhile, and has called or will call the listener.
            return {}
        except (KafkaError, OSError) as error:
            raise friendly(error, self._settings) from error
        parts = {TopicPart(tp.topic, tp.partition): records for tp, records in came.items()}
        # aiokafka may hand out records before it has told the listener whose they are. Taking the
        # partition over reads them again.
        return {part: records for part, records in parts.items() if part in self._held}

    def held(self) -> Mapping[TopicPart, Held]:
        """The partitions that are this process's; as of the last poll, if asked right after it."""
        return self._held

    def pause(self, part: TopicPart) -> None:
        """Nothing more of this partition comes, until it is resumed or read anew."""
        with suppress(IllegalStateError):
            self._started().pause(TopicPartition(part.topic, part.partition))

    def resume(self, part: TopicPart) -> None:
        """Ends a pause."""
        with suppress(IllegalStateError):
            self._started().resume(TopicPartition(part.topic, part.partition))

    async def at_end(self, part: TopicPart) -> bool:
        """Whether nothing more has come, as far as the last fetch saw. Raises KafkaBaseError."""
        consumer, tp = self._started(), TopicPartition(part.topic, part.partition)
        try:
            high = consumer.highwater(tp)
            return high is not None and await consumer.position(tp) >= high
        except (AssertionError, IllegalStateError):
            # It went to another process just now; aiokafka asserts that of highwater().
            return False
        except (KafkaError, OSError) as error:
            raise friendly(error, self._settings) from error

    async def commit(self, part: TopicPart, since: int, mark: Mark) -> bool:
        """Says how far a partition was read that is this process's since then.

        False if it no longer is, or will be read anew: nothing is committed. Raises KafkaBaseError.
        """
        held = self._held.get(part)
        if held is None or held.since != since:
            return False
        tp = TopicPartition(part.topic, part.partition)
        try:
            await self._started().commit({tp: OffsetAndMetadata(mark.offset, mark.note)})
        except (CommitFailedError, IllegalStateError):
            log.warning("A partition was taken back meanwhile.", action="commit_refused")
            return False
        except (KafkaError, OSError) as error:
            raise friendly(error, self._settings) from error
        return True

    async def stop(self) -> None:
        """Disconnects. Idempotent.

        Others get its partitions at once where topics are read by a pattern; else it keeps them
        for the session time-out, for whoever comes back under its name.
        """
        consumer, self._consumer = self._consumer, None
        self._held, self._given = {}, None
        if consumer is not None:
            await consumer.stop()

    def given(self, parts: set[TopicPartition]) -> None:
        """The group gives this process these partitions, and only these."""
        self._held, self._given = {}, parts

    def taken(self) -> None:
        """The group takes all partitions back."""
        self._held, self._given = {}, None

    async def _take_over(self, consumer: AIOKafkaConsumer, parts: set[TopicPartition]) -> None:
        """Goes where the last commits say. Raises IllegalStateError, KafkaError, KafkaBaseError."""
        marks = await committed_marks(self._settings, group_name(self._settings, self._role), parts)
        if self._given is not parts:
            return
        held = {}
        for tp, mark in marks.items():
            held[TopicPart(tp.topic, tp.partition)] = Held(next(self._numbers), mark.metadata or "")
            # Whoever paused it meant what was read before.
            consumer.resume(tp)
            # What is no more at 0 begins where it begins; to ask for that takes a leader.
            consumer.seek(tp, max(0, mark.offset))
        self._held, self._given = held, None

    def _bar(self, consumer: AIOKafkaConsumer, error: TopicAuthorizationFailedError) -> None:
        """Leaves out the topic that the error names, where topics are many. Or raises it."""
        named = {tp for tp in consumer.assignment() if tp.topic in error.args}
        if not named or self._pattern is None:
            raise friendly(error, self._settings) from error
        log.error("A topic may not be read.", action="topic_barred", topics=list(error.args))
        for tp in named - consumer.paused():
            consumer.pause(tp)
            self._barred[tp] = time.monotonic()

    def _unbar(self, consumer: AIOKafkaConsumer) -> None:
        over = time.monotonic() - _BARRED_S
        for tp in [tp for tp, since in self._barred.items() if since <= over]:
            del self._barred[tp]
            with suppress(IllegalStateError):
                consumer.resume(tp)

    def _started(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            raise KafkaBaseError("The reader is not running.")
        return self._consumer


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """What aiokafka calls when partitions come and go."""

    def __init__(self, reader: GroupReader) -> None:
        self._reader = reader

    def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        self._reader.taken()

    def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        self._reader.given(assigned)
