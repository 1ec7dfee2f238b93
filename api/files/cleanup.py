"""The named clean-up: removes the bytes that nobody can ask for any more.

    a deleted or expired file    its bytes, once no live batch reads them; then its tombstone
    an ended batch               its plan, claims and segments, but not its output files
    an orphaned upload           an object under files/ that no record names, after a day
    a prompt's past              heads that a newer one replaced or that lost a race, and texts of
                                 versions that no head lists: their tombstones
    a webhook endpoint's past    writes that a newer one replaced or that lost a race, and after a
                                 day what says that it is deleted: their tombstones

Every gateway runs it. Nothing needs a lock: it deletes only what the log says has ended, deletions
and tombstones may be repeated, and the grace period is far longer than a request, so a file that
a create has just looked up is not taken from under it. A crash leaves work for the next pass.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

import structlog

from api.gateway import Gateway
from schemas.records import BatchSnapshot, FileRecord
from schemas.topics import FILE, PROMPT, WEBHOOK
from streams.domain import keys
from streams.kafka.errors import KafkaBaseError
from streams.ports.object_store import ObjectStoreError

log = structlog.get_logger(__name__)

_ROUND = 200
_UPLOADS = "files/"


@dataclass(frozen=True, kw_only=True)
class CleanupTimes:
    """Seconds. grace_s: from a file's or batch's end to the end of its bytes, and from a prompt's
    head or an endpoint's write to its tombstone once it is replaced. orphan_s: the age at which an
    object without a record, or a version's text that no head lists, is one nobody will name, and
    nobody writes a deleted endpoint any more. forget_s: how long the read model remembers a file
    that is gone."""

    pass_every_s: float = 60.0
    uploads_every_s: float = 3600.0
    grace_s: float = 3600.0
    orphan_s: float = 24 * 3600.0
    forget_s: float = 7 * 24 * 3600.0


class Cleanup:
    """Runs passes, or one when asked."""

    def __init__(self, gateway: Gateway, times: CleanupTimes | None = None) -> None:
        self._gateway = gateway
        self._times = times or CleanupTimes()

    async def run(self) -> None:
        """A pass every minute or so, until cancelled; a failed one is tried again."""
        next_uploads_s = 0.0
        while True:
            # Jitter keeps several gateways from doing the same at the same time.
            await asyncio.sleep(self._times.pass_every_s * random.uniform(0.5, 1.5))
            try:
                await self.once()
                if self._gateway.clock.monotonic_s() >= next_uploads_s:
                    await self.remove_orphaned_uploads()
                    wait_s = self._times.uploads_every_s * random.uniform(0.5, 1.5)
                    next_uploads_s = self._gateway.clock.monotonic_s() + wait_s
            except (KafkaBaseError, ObjectStoreError, TimeoutError) as error:
                log.warning(
                    "A clean-up pass failed.",
                    action="cleanup_failed",
                    error=type(error).__name__,
                )

    async def once(self) -> None:
        """One pass over ended files and batches. Raises KafkaBaseError, ObjectStoreError."""
        await self._gateway.sync()
        before_ms = self._before_ms(self._times.grace_s)
        while files := await self._gateway.queries.ended_files(before_ms, _ROUND):
            for file in files:
                await self._remove_file(file)
            # Tombstones are read back, so that the next question doesn't find the same files.
            await self._gateway.sync()
        while batches := await self._gateway.queries.batches_to_clean(before_ms, _ROUND):
            for batch in batches:
                await self._remove_working_objects(batch)
        await self._gateway.rows.forget_files(self._before_ms(self._times.forget_s))
        await self._end_past_prompts()
        await self._end_past_endpoints()

    async def remove_orphaned_uploads(self) -> None:
        """Looks at every uploaded object. Raises KafkaBaseError, ObjectStoreError."""
        before_ms = self._before_ms(self._times.orphan_s)
        old: list[str] = []
        async for info in self._gateway.store.list(_UPLOADS):
            if info.modified_ms <= before_ms:
                old.append(info.key)
            if len(old) >= _ROUND:
                await self._remove_orphans(old)
                old = []
        await self._remove_orphans(old)

    async def _remove_orphans(self, object_keys: list[str]) -> None:
        if not object_keys:
            return
        # After the listing, so that a record written meanwhile counts.
        await self._gateway.sync()
        by_id = {key.rpartition("/")[2]: key for key in object_keys}
        for file_id in await self._gateway.queries.without_record(list(by_id)):
            await self._gateway.store.delete(by_id[file_id])
            log.info("An orphan was removed.", action="orphan_removed", file_id=file_id)

    async def _end_past_prompts(self) -> None:
        # What counts no more never counts again: revisions only grow, a text that was taken from
        # the list is never put back, and a new one is listed within minutes or not at all.
        heads_ms = self._before_ms(self._times.grace_s)
        texts_ms = self._before_ms(self._times.orphan_s)
        while old := await self._gateway.prompts.garbage(
            heads_ms=heads_ms, texts_ms=texts_ms, limit=_ROUND
        ):
            for key in old:
                await self._gateway.send(PROMPT, key, None)
            await self._gateway.sync()
            log.info("Old records of prompts ended.", action="prompts_cleaned", records=len(old))

    async def _end_past_endpoints(self) -> None:
        past_ms = self._before_ms(self._times.grace_s)
        deleted_ms = self._before_ms(self._times.orphan_s)
        while old := await self._gateway.webhooks.past(
            past_ms=past_ms, deleted_ms=deleted_ms, limit=_ROUND
        ):
            for key in old:
                await self._gateway.send(WEBHOOK, key, None)
            await self._gateway.sync()
            log.info("Old records of webhooks ended.", action="webhooks_cleaned", records=len(old))

    async def _remove_file(self, file: FileRecord) -> None:
        await self._gateway.store.delete(file.object.key)
        await self._gateway.store.delete(keys.manifest_of(file.object.key))
        await self._gateway.send(FILE, file.file_id, None)
        log.info("A file's bytes were removed.", action="file_removed", file_id=file.file_id)

    async def _remove_working_objects(self, batch: BatchSnapshot) -> None:
        # Output files end as files do, with their own records.
        ids = [found for found in (batch.output_file_id, batch.error_file_id) if found]
        objects = await self._gateway.queries.object_keys(ids)
        kept = objects | {keys.manifest_of(key) for key in objects}
        removed = 0
        async for info in self._gateway.store.list(keys.batch_prefix(batch.batch_id)):
            if info.key not in kept:
                await self._gateway.store.delete(info.key)
                removed += 1
        await self._gateway.rows.mark_cleaned(batch.batch_id)
        log.info(
            "A batch's working objects were removed.",
            action="batch_cleaned",
            batch_id=batch.batch_id,
            objects=removed,
        )

    def _before_ms(self, seconds: float) -> int:
        return self._gateway.clock.now_ms() - round(seconds * 1000)
