"""The clean-up: what nobody can ask for goes, what somebody may need stays, twice is once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial

import pytest

from api.files.cleanup import Cleanup, CleanupTimes
from schemas.records import BatchStatus, FileRecord, ObjectRef
from schemas.topics import FILE
from streams.domain import keys
from streams.domain.clock import ManualClock
from streams.kafka.errors import KafkaBaseError
from streams.ports.object_store import ObjectStoreError
from tests.support.gateway import GatewayUnderTest, running_gateway
from tests.support.waiting import eventually

TIMES = CleanupTimes()
HEARD_EVERY_S = 10 * 3600


@dataclass
class Cleaned:
    """A gateway whose clock stands still until it is moved, and its clean-up."""

    gateway: GatewayUnderTest
    clock: ManualClock
    cleanup: Cleanup

    @property
    def objects(self) -> set[str]:
        return set(self.gateway.store.objects)

    async def pass_after(self, seconds: float) -> None:
        # A gateway that hears nothing for longer than tombstones live would start over.
        while seconds > HEARD_EVERY_S:
            asked = self.gateway.log.ends_asked
            self.clock.advance(HEARD_EVERY_S)
            seconds -= HEARD_EVERY_S
            self.gateway.log.wake()
            await eventually(partial(self._asked_more_than, asked))
        self.clock.advance(seconds)
        await self.cleanup.once()

    def _asked_more_than(self, asked: int) -> bool:
        return self.gateway.log.ends_asked > asked

    def tombstones(self) -> list[str]:
        return [r.key for r in self.gateway.log.of(FILE) if r.record is None]

    async def end_batch(self, batch_id: str, **changes: object) -> None:
        now_ms = self.clock.now_ms()
        await self.gateway.show(
            batch_id, status=BatchStatus.COMPLETED, completed_at_ms=now_ms, **changes
        )


@pytest.fixture
async def cleaned() -> AsyncIterator[Cleaned]:
    clock = ManualClock()
    async with running_gateway(clock=clock) as gateway:
        yield Cleaned(gateway, clock, Cleanup(gateway.gateway, TIMES))


async def test_a_deleted_files_bytes_go_after_the_grace_period_and_then_its_record(
    cleaned: Cleaned,
) -> None:
    file_id = await cleaned.gateway.upload()
    kept = await cleaned.gateway.upload()
    await cleaned.gateway.client().files.delete(file_id)
    await cleaned.pass_after(TIMES.grace_s - 1)
    assert f"files/acme/{file_id}" in cleaned.objects
    await cleaned.pass_after(1)
    assert cleaned.objects == {f"files/acme/{kept}"}
    assert cleaned.tombstones() == [file_id]
    await cleaned.pass_after(60)
    assert cleaned.tombstones() == [file_id]


async def test_an_expired_files_bytes_go_too(cleaned: Cleaned) -> None:
    file_id = await cleaned.gateway.upload()
    await cleaned.pass_after(30 * 24 * 3600 + TIMES.grace_s - 1)
    assert cleaned.objects == {f"files/acme/{file_id}"}
    await cleaned.pass_after(2)
    assert cleaned.objects == set()


@pytest.mark.parametrize("how", ["deleted", "expired"])
async def test_a_live_batch_keeps_its_input_until_it_ends(cleaned: Cleaned, how: str) -> None:
    file_id = await cleaned.gateway.upload()
    batch_id = await cleaned.gateway.create(file_id)
    if how == "deleted":
        await cleaned.gateway.client().files.delete(file_id)
    await cleaned.pass_after(31 * 24 * 3600)
    assert cleaned.objects == {f"files/acme/{file_id}"}
    await cleaned.end_batch(batch_id)
    await cleaned.pass_after(1)
    assert cleaned.objects == set()


async def _record_output(cleaned: Cleaned, batch_id: str, key: str) -> None:
    """The file 'file-out', as the controller records it."""
    record = FileRecord(
        file_id="file-out",
        tenant="acme",
        object=ObjectRef(key=key, size_bytes=3),
        filename=f"{batch_id}_output.jsonl",
        purpose="batch_output",
        created_at_ms=cleaned.clock.now_ms(),
        batch_id=batch_id,
    )
    await cleaned.gateway.gateway.publish(FILE, "file-out", record)


async def test_an_ended_batchs_working_objects_go_and_its_output_stays(cleaned: Cleaned) -> None:
    batch_id = await cleaned.gateway.create()
    store = cleaned.gateway.store
    output = keys.assembled(batch_id, "attempt-2")
    kept = {output, output + ".manifest", keys.plan("batch_other", "p")}
    working = {
        keys.plan(batch_id, "p1"),
        keys.claim(batch_id, "c1"),
        keys.segment(batch_id, "s1"),
        keys.assembled(batch_id, "attempt-1"),
        keys.manifest_of(keys.assembled(batch_id, "attempt-1")),
    }
    for key in kept | working:
        await store.put(key, b"x")
    await _record_output(cleaned, batch_id, output)
    await cleaned.pass_after(TIMES.grace_s * 2)
    assert cleaned.objects == kept | working
    await cleaned.end_batch(batch_id, output_file_id="file-out")
    await cleaned.pass_after(TIMES.grace_s - 1)
    assert cleaned.objects == kept | working
    await cleaned.pass_after(1)
    assert cleaned.objects == kept


async def test_an_output_file_that_was_deleted_takes_its_manifest_with_it(
    cleaned: Cleaned,
) -> None:
    batch_id = await cleaned.gateway.create()
    key = keys.assembled(batch_id, "file-out")
    await cleaned.gateway.store.put(key, b"{}\n")
    await cleaned.gateway.store.put(key + ".manifest", b"{}")
    await _record_output(cleaned, batch_id, key)
    await cleaned.end_batch(batch_id, output_file_id="file-out")
    client = cleaned.gateway.client()
    assert (await client.files.content("file-out")).text == "{}\n"
    await client.files.delete("file-out")
    assert (await client.batches.retrieve(batch_id)).output_file_id == "file-out"
    await cleaned.pass_after(TIMES.grace_s)
    assert cleaned.objects == set()


async def test_uploads_without_a_record_go_after_a_day(cleaned: Cleaned) -> None:
    store = cleaned.gateway.store
    file_id = await cleaned.gateway.upload()
    await store.put(keys.uploaded_file("acme", "file-orphan"), b"x")
    await cleaned.cleanup.remove_orphaned_uploads()
    cleaned.clock.advance(TIMES.orphan_s)
    await store.put(keys.uploaded_file("acme", "file-young"), b"x")
    await cleaned.cleanup.remove_orphaned_uploads()
    assert cleaned.objects == {f"files/acme/{file_id}", "files/acme/file-young"}


async def test_an_upload_whose_record_could_not_be_sent_is_an_orphan(cleaned: Cleaned) -> None:
    cleaned.gateway.log.unreachable = True
    with pytest.raises(Exception, match="503"):
        await cleaned.gateway.upload()
    assert len(cleaned.objects) == 1
    cleaned.gateway.log.unreachable = False
    cleaned.clock.advance(TIMES.orphan_s)
    await cleaned.cleanup.remove_orphaned_uploads()
    assert cleaned.objects == set()


async def test_two_gateways_that_clean_at_once_do_no_harm(cleaned: Cleaned) -> None:
    ended = [await cleaned.gateway.upload() for _ in range(10)]
    kept = await cleaned.gateway.upload()
    for file_id in ended:
        await cleaned.gateway.client().files.delete(file_id)
    cleaned.clock.advance(TIMES.grace_s)
    async with running_gateway(
        log=cleaned.gateway.log, store=cleaned.gateway.store, clock=cleaned.clock
    ) as second:
        other = Cleanup(second.gateway, TIMES)
        await asyncio.gather(cleaned.cleanup.once(), other.once())
    assert cleaned.objects == {f"files/acme/{kept}"}
    assert set(cleaned.tombstones()) == set(ended)


@pytest.mark.parametrize("fault", ["store", "log"])
async def test_a_pass_that_fails_in_the_middle_is_finished_by_the_next(
    cleaned: Cleaned, fault: str
) -> None:
    for _ in range(3):
        await cleaned.gateway.client().files.delete(await cleaned.gateway.upload())
    cleaned.clock.advance(TIMES.grace_s)
    if fault == "store":
        cleaned.gateway.store.fail(1, "delete")
    else:
        cleaned.gateway.log.unreachable = True
    with pytest.raises((ObjectStoreError, KafkaBaseError)):
        await cleaned.cleanup.once()
    cleaned.gateway.log.unreachable = False
    await cleaned.cleanup.once()
    assert cleaned.objects == set()
    assert len(cleaned.tombstones()) == 3


async def test_a_record_repeated_after_the_end_is_ended_again(cleaned: Cleaned) -> None:
    file_id = await cleaned.gateway.upload()
    (first,) = cleaned.gateway.log.of(FILE)
    assert isinstance(first.record, FileRecord)
    await cleaned.gateway.client().files.delete(file_id)
    await cleaned.pass_after(TIMES.grace_s)
    # As a controller does that died before it could commit.
    await cleaned.gateway.gateway.publish(FILE, file_id, first.record)
    with pytest.raises(Exception, match="No such File object"):
        await cleaned.gateway.client().files.retrieve(file_id)
    await cleaned.pass_after(60)
    assert cleaned.tombstones() == [file_id, file_id]


async def test_the_loop_survives_a_failed_pass(cleaned: Cleaned) -> None:
    await cleaned.gateway.client().files.delete(await cleaned.gateway.upload())
    cleaned.clock.advance(TIMES.grace_s)
    cleaned.gateway.store.fail(1, "delete")
    cleanup = Cleanup(cleaned.gateway.gateway, CleanupTimes(pass_every_s=0.01))
    running = asyncio.create_task(cleanup.run())
    await eventually(lambda: not cleaned.objects)
    running.cancel()
    await asyncio.wait([running])
