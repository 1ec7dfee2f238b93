"""Keeps the read model up with the topics, and lets requests wait until it is.

Two waits are offered: until one's own record was read back, and until everything that the topics
held at the time of asking was read. The second is shared: however many requests ask at once, the
broker is asked for the topics' ends once at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import structlog

from api.log_port import LogIdentity, LogReader
from api.read_model.store import AWAY_LIMIT_MS, HEARTBEAT_MS, ReadModelStore
from schemas.records import ApiKeyRecord
from schemas.topics import Topic
from streams.domain.clock import Clock
from streams.kafka.errors import KafkaBaseError
from streams.kafka.producer import Place

log = structlog.get_logger(__name__)

_POLL_S = 0.5
_RECONNECT_S = 1.0
_ENDS_S = 10.0


class LogReplaced(KafkaBaseError):  # noqa: N818 - it is what is wrong
    """The topics are not those the read model was read from; start the gateway again."""


class Follower:
    """Reads the topics into the store, in a task of its own.

    on_keys: called when API keys may have changed.
    """

    def __init__(
        self,
        reader: LogReader,
        identity: LogIdentity,
        store: ReadModelStore,
        clock: Clock,
        on_keys: Callable[[], None] = lambda: None,
    ) -> None:
        self._reader = reader
        self._identity = identity
        self._store = store
        self._clock = clock
        self._on_keys = on_keys
        self._positions: dict[tuple[str, int], int] = {}
        # When the log was last heard of. A poll that brings nothing proves nothing: the client
        # hides a broker that is away.
        self._heard_ms = 0
        self._advanced = asyncio.Event()
        self._round: asyncio.Task[None] | None = None
        self._next_round: asyncio.Task[None] | None = None
        self.caught_up = False

    async def start(self) -> None:
        """Starts reading where the store ends. Raises KafkaBaseError."""
        known = await self._identity()
        self._positions = self._store.positions()
        await self._reader.start(self._positions)
        ends = await self._reader.ends()
        if any(offset > ends.get(place, 0) for place, offset in self._positions.items()):
            # The same cluster, but it lost records, as after a restored backup.
            log.warning("The log is shorter than it was.", action="read_model_rebuilt")
            await self._store.start_over(known, self._clock.now_ms())
            self._positions = {}
            await self._reader.stop()
            await self._reader.start()
        self._known_identity = known
        self._heard_ms = self._clock.now_ms()

    async def run(self) -> None:
        """Reads until cancelled; survives a broker that comes back as it was.

        Raises LogReplaced if it comes back as another, and aiosqlite.Error if rows can't be kept.
        """
        first_sync = asyncio.create_task(self._first_sync())
        try:
            while True:
                try:
                    await self._read_once()
                except LogReplaced:
                    raise
                except (KafkaBaseError, TimeoutError) as error:
                    log.warning("Reading failed.", action="read_failed", error=str(error))
                    await self._reconnect()
        finally:
            first_sync.cancel()

    async def stop(self) -> None:
        """Stops reading."""
        for task in (self._round, self._next_round):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError, KafkaBaseError):
                    await task
        await self._reader.stop()

    async def reached(self, topic: Topic, place: Place, timeout_s: float) -> bool:
        """Waits until the record at `place` is in the rows; False if it took too long."""
        return await self._wait({(topic.name, place.partition): place.offset + 1}, timeout_s)

    async def sync(self, timeout_s: float) -> None:
        """Waits until everything that is in the topics now is in the rows.

        Raises KafkaBaseError or TimeoutError.
        """
        if self._next_round is None:
            self._next_round = asyncio.create_task(self._one_round(self._round))
        async with asyncio.timeout(timeout_s):
            await asyncio.shield(self._next_round)

    async def _one_round(self, before: asyncio.Task[None] | None) -> None:
        # Whoever asks while the round before this one is under way joins this one: ends that
        # were asked for before a request came in prove nothing to it.
        if before is not None:
            await asyncio.wait([before])
        self._round, self._next_round = self._next_round, None
        ends = await self._reader.ends()
        if not await self._wait(ends, 30.0):
            raise TimeoutError("The read model is far behind the topics.")

    async def _wait(self, wanted: dict[tuple[str, int], int], timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                while any(self._positions.get(p, 0) < offset for p, offset in wanted.items()):
                    await self._advanced.wait()
        except TimeoutError:
            return False
        return True

    async def _read_once(self) -> None:
        records = await self._reader.poll(_POLL_S)
        positions = self._reader.positions()
        if any(offset < self._positions.get(place, 0) for place, offset in positions.items()):
            raise LogReplaced(LogReplaced.__doc__)
        await self._hear(heard=bool(records))
        await self._store.apply(records, positions, self._heard_ms)
        if any(isinstance(r.record, ApiKeyRecord) for r in records):
            self._on_keys()
        if positions != self._positions:
            self._positions = positions
            self._advanced.set()
            self._advanced = asyncio.Event()

    async def _hear(self, *, heard: bool) -> None:
        now_ms = self._clock.now_ms()
        silent_ms = now_ms - self._heard_ms
        if not heard and silent_ms < HEARTBEAT_MS:
            return
        if not heard:
            async with asyncio.timeout(_ENDS_S):
                await self._reader.ends()
        if silent_ms > AWAY_LIMIT_MS:
            raise LogReplaced("The log was out of reach for longer than its tombstones live.")
        self._heard_ms = now_ms

    async def _first_sync(self) -> None:
        while not self.caught_up:
            try:
                await self.sync(30.0)
                self.caught_up = True
            except (KafkaBaseError, TimeoutError):
                await asyncio.sleep(_RECONNECT_S)

    async def _reconnect(self) -> None:
        await asyncio.sleep(_RECONNECT_S)
        await self._reader.stop()
        try:
            if await self._identity() != self._known_identity:
                raise LogReplaced(LogReplaced.__doc__)
            await self._reader.start(self._positions)
        except LogReplaced:
            raise
        except KafkaBaseError as error:
            log.warning("Kafka does not answer.", action="reconnect_failed", error=str(error))
