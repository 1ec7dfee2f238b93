"""What is read of a running batch's files is a beginning of the files that assembly will write."""

from __future__ import annotations

import json
import random
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.batches.partial import PartialOutputs
from schemas.metrics import Metrics
from schemas.records import (
    AssembleReason,
    AssembleTask,
    BatchSnapshot,
    BatchStatus,
    ObjectRef,
    OutcomeKind,
)
from streams.adapters.object_store_fake import FakeObjectStore
from streams.domain import keys, segment
from streams.domain.chunk import CHUNK_LINES
from streams.domain.clock import ManualClock
from streams.domain.ledger import Ledger, accepted_prefix
from streams.domain.partial import PIECE_BYTES
from streams.domain.plan import PlanBuilder
from streams.domain.segment import RenderedLine
from streams.file_worker.assemble import AssemblyRunner
from streams.file_worker.patience import Patience
from streams.ports.object_store import ObjectStoreError

_BATCH = "batch_1"
_COMPLETED, _FAILED = OutcomeKind.COMPLETED, OutcomeKind.FAILED


def _copy(line: int, offset: int, kind: OutcomeKind = _COMPLETED, pad: int = 0) -> RenderedLine:
    text = {"custom_id": f"r{line}", "offset": offset, "pad": "x" * (pad + offset % 7)}
    return RenderedLine(line, offset, kind, json.dumps(text).encode())


class _CountingStore(FakeObjectStore):
    """Counts ranged reads."""

    ranges = 0

    async def get_range(self, key: str, offset: int, length: int) -> bytes:
        self.ranges += 1
        return await super().get_range(key, offset, length)


class _Running:
    """A running batch: outcomes are stored and announced in the order of their offsets."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.store = _CountingStore()
        self.accepted: dict[int, OutcomeKind] = {}
        self.names = random.Random(1)
        plan = PlanBuilder()
        for line in range(total):
            plan.add(line, 1, 0)
        self.plan = ObjectRef(key=keys.plan(_BATCH, "1"), size_bytes=len(plan.build()))
        self.store.objects[self.plan.key] = plan.build()

    def stored(self, *lines: RenderedLine) -> None:
        """A segment that the controller has not heard of."""
        name = f"{self.names.getrandbits(64):016x}"
        self.store.objects[keys.segment(_BATCH, name)] = segment.build(lines)

    def announced(self, *lines: RenderedLine) -> None:
        """A segment that the controller has folded."""
        self.stored(*lines)
        for line in sorted(lines, key=lambda copy: copy.done_offset):
            self.accepted.setdefault(line.line, line.kind)

    @property
    def prefix(self) -> int:
        return next(n for n in range(self.total + 1) if n not in self.accepted)

    def snapshot(self) -> BatchSnapshot:
        return BatchSnapshot(
            batch_id=_BATCH,
            tenant="t",
            revision=1,
            status=BatchStatus.IN_PROGRESS,
            created_at_ms=0,
            expires_at_ms=0,
            endpoint="/v1/embeddings",
            input_file_id="file-1",
            completion_window="24h",
            metadata={},
            request_hash="",
            errors=(),
            total=self.total,
            completed=0,
            failed=0,
            accepted_prefix=self.prefix,
        )

    async def final(self, reason: AssembleReason) -> dict[bool, bytes]:
        """The output (True) and error file (False) as assembly writes them."""
        bits = sum(1 << line for line in self.accepted)
        kinds = list(self.accepted.values())
        task = AssembleTask(
            task_id="task",
            batch_id=_BATCH,
            tenant="t",
            at_ms=0,
            reason=reason,
            plan=self.plan,
            total=self.total,
            accepted=zlib.compress(bits.to_bytes((self.total + 7) // 8, "little")),
            completed=kinds.count(_COMPLETED),
            failed=kinds.count(_FAILED),
        )
        patience = Patience(ManualClock(), Metrics())
        event = await AssemblyRunner(self.store, patience, Metrics()).run(task)
        files = {True: event.output, False: event.error}
        return {
            output: b"" if file is None else self.store.objects[file.object.key]
            for output, file in files.items()
        }


async def _read(partial: PartialOutputs, running: _Running, output: bool, start: int = 0) -> bytes:
    found = await partial.of(running.snapshot())
    size = found.files.size(output=output)
    return b"".join([part async for part in found.read(start, size, output=output)])


_EVENTS = st.lists(
    st.tuples(
        st.lists(
            st.tuples(st.integers(0, 11), st.sampled_from([_COMPLETED, _FAILED])),
            min_size=1,
            max_size=6,
        ),
        st.sampled_from(["announced", "lost", "twice"]),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(_EVENTS, st.booleans(), st.sampled_from(list(AssembleReason)[1:]))
async def test_whatever_was_read_begins_the_final_file(
    events: Any, cold: bool, reason: AssembleReason
) -> None:
    running = _Running(12)
    follower = PartialOutputs(running.store)
    held = {True: b"", False: b""}
    offset = 0

    async def look() -> None:
        for output, before in held.items():
            partial = PartialOutputs(running.store) if cold else follower
            held[output] = before + await _read(partial, running, output, len(before))

    for number, (lines, how) in enumerate(events, 1):
        copies = [_copy(line, offset + n, kind) for n, (line, kind) in enumerate(lines)]
        offset += len(copies)
        if how == "lost":
            # The collector is killed before it tells; the next one packs the same outcomes
            # again, unless the batch has been cancelled by then.
            running.stored(*copies)
            await look()
            if number == len(events):
                break
        running.announced(*copies)
        if how == "twice":
            running.announced(*copies)
        await look()
    final = await running.final(reason)
    for output, bytes_held in held.items():
        assert final[output].startswith(bytes_held)
    certain = [kind for line, kind in running.accepted.items() if line < running.prefix]
    assert held[True].count(b"\n") == certain.count(_COMPLETED)
    assert held[False].count(b"\n") == certain.count(_FAILED)


async def test_any_range_is_cut_from_the_same_bytes() -> None:
    running = _Running(40)
    order = list(range(40))
    random.Random(2).shuffle(order)
    for n in range(0, 40, 5):
        copies = [
            _copy(x, n + i, _FAILED if x % 3 else _COMPLETED)
            for i, x in enumerate(order[n : n + 5])
        ]
        running.announced(*copies)
    partial = PartialOutputs(running.store)
    final = await running.final(AssembleReason.COMPLETED)
    found = await partial.of(running.snapshot())
    for output, whole in final.items():
        assert found.files.size(output=output) == len(whole)
        for start in range(0, len(whole), 13):
            for end in (start + 1, start + 200, len(whole)):
                if end <= len(whole):
                    parts = [part async for part in found.read(start, end, output=output)]
                    assert b"".join(parts) == whole[start:end]


async def test_large_lines_come_in_pieces_of_bounded_size() -> None:
    running = _Running(30)
    running.announced(*[_copy(line, line, pad=200_000) for line in range(30)])
    found = await PartialOutputs(running.store).of(running.snapshot())
    size = found.files.size(output=True)
    parts = [part async for part in found.read(0, size, output=True)]
    assert max(map(len, parts)) <= PIECE_BYTES
    assert b"".join(parts) == (await running.final(AssembleReason.COMPLETED))[True]


async def test_a_follower_costs_the_reads_of_what_is_new() -> None:
    running = _Running(100)
    partial = PartialOutputs(running.store)
    held = b""
    for line in range(100):
        running.announced(_copy(line, line))
        before = running.store.ranges
        held += await _read(partial, running, True, len(held))
        assert running.store.ranges - before == 2, "the new segment's index, and the new line"


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 5000])
async def test_where_a_winner_can_not_be_known_nothing_is_said(damage: bytes) -> None:
    running = _Running(2)
    running.announced(_copy(0, 1))
    running.store.objects[keys.segment(_BATCH, "bad")] = damage
    with pytest.raises(ObjectStoreError):
        await _read(PartialOutputs(running.store), running, True)


async def test_a_damaged_line_is_never_sent() -> None:
    running = _Running(1)
    running.announced(_copy(0, 1))
    (key,) = [key for key in running.store.objects if "/segments/" in key]
    running.store.objects[key] = b"\x00" + running.store.objects[key][1:]
    with pytest.raises(ObjectStoreError):
        await _read(PartialOutputs(running.store), running, True)


async def test_after_a_failing_store_the_same_reader_goes_on() -> None:
    running = _Running(2)
    running.announced(_copy(0, 1))
    partial = PartialOutputs(running.store)
    for operation in ("list", "get_range"):
        running.store.fail(1, operation)
        with pytest.raises(ObjectStoreError):
            await _read(partial, running, True)
    assert (await _read(partial, running, True)).count(b"\n") == 1


async def test_indexes_are_bounded_by_their_lines() -> None:
    running = _Running(10)
    running.announced(*[_copy(line, line) for line in range(10)])
    partial = PartialOutputs(running.store, max_lines=25)
    for n in range(9):
        snapshot = running.snapshot()
        await partial.of(type(snapshot)(**{**_fields(snapshot), "batch_id": f"batch_{n}"}))
        assert sum(kept.files.total for kept in partial._kept.values()) <= 25


def _fields(snapshot: BatchSnapshot) -> dict[str, Any]:
    return {name: getattr(snapshot, name) for name in snapshot.__struct_fields__}


@given(st.sets(st.integers(0, 3 * CHUNK_LINES)), st.integers(0, 3 * CHUNK_LINES), st.data())
def test_the_prefix_ends_before_the_first_line_that_is_not_in(
    some: set[int], first: int, data: Any
) -> None:
    lines = (some | set(range(first))) - {first}
    chunks: dict[int, Ledger] = {}
    for line in lines:
        before = chunks.get(line // CHUNK_LINES, Ledger())
        chunks[line // CHUNK_LINES] = Ledger(accepted=before.accepted | 1 << line % CHUNK_LINES)
    assert accepted_prefix(chunks) == first
    assert accepted_prefix(chunks, data.draw(st.integers(0, first))) == first
