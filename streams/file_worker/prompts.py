"""Follows the stored prompts, and lets a file wait until those that it may use are known."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Literal, Protocol

import structlog
from mode import Service

from schemas.records import PromptHead, PromptVersion
from schemas.topics import PROMPT
from streams.background import Tasks
from streams.domain.intake.prompts import Resolve
from streams.domain.prompts.registry import Registry
from streams.file_worker.patience import Sleep
from streams.kafka.errors import KafkaBaseError
from streams.kafka.reader import ReadRecord

log = structlog.get_logger(__name__)

#: Prompts are known before the first task, unless reading them takes longer than this.
CATCH_UP_S = 10.0
#: How often a file that waits says so.
SAY_S = 10.0
_POLL_S = 1.0
_PAUSE_S = 1.0


class PromptReader(Protocol):
    """The part of TopicReader that is needed here."""

    async def start(self, positions: Literal["beginning"]) -> None:
        """Connects. Raises KafkaBaseError."""
        ...

    async def poll(self, timeout_s: float = 0.2) -> list[ReadRecord]:
        """What has arrived, waiting so long for the first. Raises KafkaBaseError."""
        ...

    async def ends(self) -> dict[tuple[str, int], int]:
        """The offset that the next record of each partition will get."""
        ...

    def positions(self) -> dict[tuple[str, int], int]:
        """Where the next poll goes on."""
        ...

    async def stop(self) -> None:
        """Disconnects."""
        ...


class StoredPrompts(Service):
    """The prompts of all tenants, as far as they were read; one task beside reads on."""

    def __init__(
        self,
        reader: PromptReader,
        failed: Callable[[BaseException], None],
        sleep: Sleep = asyncio.sleep,
        say_s: float = SAY_S,
    ) -> None:
        super().__init__()
        self._reader = reader
        self._sleep = sleep
        self._say_s = say_s
        self._registry = Registry()
        #: The next offset, of which everything before is in the registry.
        self._position = 0
        self._stepped = asyncio.Event()
        self._beside = Tasks(failed)

    async def on_start(self) -> None:
        """Reads what there is, and begins to follow. Raises KafkaBaseError."""
        await self._reader.start("beginning")
        await self._catch_up()
        self._beside.start(self._follow())

    async def on_stop(self) -> None:
        """Closes what on_start opened."""
        await self._beside.stop(0.0)
        await self._reader.stop()

    def of(self, tenant: str) -> Resolve:
        """Looks up that tenant's prompts."""
        return partial(self._registry.resolve, tenant)

    async def read_all(self, batch_id: str) -> None:
        """Returns once the topic was read up to its present end.

        So whatever any gateway has acknowledged by now is known, whichever of them took the
        batch. As long as the broker is in trouble it waits: nothing could be answered meanwhile
        anyway.
        """
        wanted = await self._end(batch_id)
        while self._position < wanted:
            try:
                await asyncio.wait_for(self._stepped.wait(), self._say_s)
            except TimeoutError:
                log.warning(
                    "A file waits to be checked until the stored prompts are read.",
                    action="prompts_waited_for",
                    batch_id=batch_id,
                    position=self._position,
                    wanted=wanted,
                )

    async def _end(self, batch_id: str) -> int:
        while True:
            try:
                return (await self._reader.ends()).get((PROMPT.name, 0), 0)
            except KafkaBaseError as error:
                log.warning(
                    "Could not find out how many stored prompts there are.",
                    action="prompts_not_read",
                    batch_id=batch_id,
                    error=type(error).__name__,
                )
                await self._sleep(_PAUSE_S)

    async def _catch_up(self) -> None:
        end = (await self._reader.ends()).get((PROMPT.name, 0), 0)
        give_up = time.monotonic() + CATCH_UP_S
        while self._reader.positions().get((PROMPT.name, 0), 0) < end:
            if time.monotonic() > give_up:
                log.warning("Stored prompts are still being read.", action="catch_up_late")
                return
            await self._step(0.2)

    async def _follow(self) -> None:
        while True:
            try:
                await self._step(_POLL_S)
            except KafkaBaseError as error:
                # Files that name a prompt of before are checked meanwhile, others wait.
                log.warning(
                    "Could not read stored prompts.",
                    action="prompts_not_read",
                    error=type(error).__name__,
                )
                await self._sleep(_PAUSE_S)

    async def _step(self, timeout_s: float) -> None:
        for read in await self._reader.poll(timeout_s):
            if read.record is None or isinstance(read.record, PromptHead | PromptVersion):
                self._registry.apply(read.key, read.record)
        self._position = self._reader.positions().get((PROMPT.name, 0), 0)
        stepped, self._stepped = self._stepped, asyncio.Event()
        stepped.set()
