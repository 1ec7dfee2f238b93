"""Assembly puts every line in exactly one file, in input order, whatever lies in the segments."""

from __future__ import annotations

import hashlib
import json
import random
import zlib
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.metrics import LINES_LOST, Metrics
from schemas.records import AssembledFile, AssembleReason, AssembleTask, ObjectRef, OutcomeKind
from streams.adapters.object_store_fake import FakeObjectStore
from streams.domain import assembly, keys, segment
from streams.domain.assembly import AssemblyError, Tally
from streams.domain.clock import ManualClock
from streams.domain.plan import PlanBuilder
from streams.domain.segment import RenderedLine
from streams.file_worker.assemble import AssemblyRunner
from streams.file_worker.patience import Patience
from streams.segments.reading import READS_AT_ONCE

_BATCH = "batch_1"
_COMPLETED, _FAILED = OutcomeKind.COMPLETED, OutcomeKind.FAILED


def _text(line: int, copy: str = "", size: int = 0) -> bytes:
    return json.dumps({"custom_id": f"r{line}", "copy": copy, "pad": "x" * size}).encode()


def _copy(line: int, offset: int, kind: OutcomeKind = _COMPLETED, **text: Any) -> RenderedLine:
    return RenderedLine(line, offset, kind, _text(line, **text))


class _Batch:
    """A batch in a fake store, as intake, collector and controller would leave it."""

    def __init__(self, total: int, store: FakeObjectStore | None = None) -> None:
        self.total = total
        self.store = store or FakeObjectStore()
        self.clock = ManualClock()
        self.metrics = Metrics()
        self.kinds: dict[int, OutcomeKind] = {}
        self.pauses = 0
        plan = PlanBuilder()
        raw = b""
        for line in range(total):
            text = json.dumps({"custom_id": f"r{line}", "body": {}}).encode()
            plan.add(len(raw), len(text), 0)
            raw += text + b"\n"
        self.input = ObjectRef(key=keys.uploaded_file("t", "file-1"), size_bytes=len(raw))
        self.plan = ObjectRef(key=keys.plan(_BATCH, "1"), size_bytes=len(plan.build()))
        self.store.objects |= {self.input.key: raw, self.plan.key: plan.build()}

    def segment(self, name: str, *lines: RenderedLine) -> None:
        self.store.objects[keys.segment(_BATCH, name)] = segment.build(lines)

    def count(self, kind: OutcomeKind, *lines: int) -> None:
        self.kinds |= dict.fromkeys(lines, kind)

    def task(self, reason: AssembleReason = AssembleReason.COMPLETED) -> AssembleTask:
        bits = sum(1 << line for line in self.kinds)
        kinds = list(self.kinds.values())
        return AssembleTask(
            task_id="task",
            batch_id=_BATCH,
            tenant="t",
            at_ms=0,
            reason=reason,
            input=self.input,
            plan=self.plan,
            total=self.total,
            accepted=zlib.compress(bits.to_bytes((self.total + 7) // 8, "little")),
            completed=kinds.count(_COMPLETED),
            failed=kinds.count(_FAILED),
        )

    async def assemble(self, **task: Any) -> _Files:
        runner = AssemblyRunner(
            self.store, Patience(self.clock, self.metrics, self._sleep), self.metrics
        )
        return _Files(self.store, await runner.run(self.task(**task)))

    async def _sleep(self, seconds: float) -> None:
        self.pauses += 1
        self.clock.advance(seconds)


class _Files:
    """What an assembly wrote."""

    def __init__(self, store: FakeObjectStore, event: Any) -> None:
        self.store = store
        self.event = event
        self.output = self._lines(event.output)
        self.error = self._lines(event.error)

    def _lines(self, file: AssembledFile | None) -> list[dict[str, Any]]:
        if file is None:
            return []
        data = self.store.objects[file.object.key]
        assert hashlib.sha256(data).hexdigest() == file.object.sha256
        assert len(data) == file.object.size_bytes
        assert data.endswith(b"\n")
        lines: list[dict[str, Any]] = [json.loads(line) for line in data.splitlines()]
        assert len(lines) == file.lines
        return lines

    @property
    def manifest(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.store.objects[self.event.manifest.key])
        return found


def _ids(lines: list[dict[str, Any]]) -> list[str]:
    return [line["custom_id"] for line in lines]


def _codes(lines: list[dict[str, Any]]) -> list[str]:
    return [line["error"]["code"] for line in lines]


async def test_lines_come_in_input_order_from_many_segments() -> None:
    batch = _Batch(6)
    batch.segment("1", _copy(5, 1), _copy(1, 2), _copy(3, 3, _FAILED))
    batch.segment("2", _copy(0, 4), _copy(4, 5), _copy(2, 6, _FAILED))
    batch.count(_COMPLETED, 0, 1, 4, 5)
    batch.count(_FAILED, 2, 3)
    files = await batch.assemble()
    assert _ids(files.output) == ["r0", "r1", "r4", "r5"]
    assert _ids(files.error) == ["r2", "r3"]
    assert files.event.lost == 0


async def test_the_manifest_says_what_is_in_the_files() -> None:
    batch = _Batch(3)
    batch.segment("1", _copy(0, 1), _copy(1, 2, _FAILED))
    batch.count(_COMPLETED, 0)
    batch.count(_FAILED, 1)
    files = await batch.assemble(reason=AssembleReason.EXPIRED)
    manifest = files.manifest
    counts = {k: manifest[k] for k in ("total", "completed", "failed", "unfinished", "lost")}
    assert counts == {"total": 3, "completed": 1, "failed": 1, "unfinished": 1, "lost": 0}
    assert manifest["agrees_with_ledger"] is True
    assert manifest["output"]["object"]["sha256"] == files.event.output.object.sha256
    assert manifest["error"]["file_id"] == files.event.error.file_id
    assert manifest["error"]["lines"] == 2


@pytest.mark.parametrize("kind", [_COMPLETED, _FAILED])
async def test_a_file_without_lines_is_not_written(kind: OutcomeKind) -> None:
    batch = _Batch(1)
    batch.segment("1", _copy(0, 1, kind))
    batch.count(kind, 0)
    before = len(batch.store.objects)
    event = (await batch.assemble()).event
    assert (event.output is None) is (kind is _FAILED)
    assert (event.error is None) is (kind is _COMPLETED)
    assert len(batch.store.objects) == before + 2


async def test_the_copy_with_the_lowest_offset_wins() -> None:
    batch = _Batch(2)
    batch.segment("a", _copy(0, 9, copy="late"), _copy(1, 3, copy="first"))
    batch.segment("b", _copy(0, 4, copy="first"), _copy(1, 8, _FAILED, copy="late"))
    batch.segment("c", _copy(0, 4, copy="first"), _copy(0, 11, copy="late"))
    batch.count(_COMPLETED, 0, 1)
    assert [line["copy"] for line in (await batch.assemble()).output] == ["first", "first"]


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (AssembleReason.CANCELLED, "batch_cancelled"),
        (AssembleReason.EXPIRED, "batch_expired"),
    ],
)
async def test_lines_that_were_not_counted_are_errors_with_their_custom_id(
    reason: AssembleReason, code: str
) -> None:
    batch = _Batch(4)
    batch.segment("1", _copy(1, 1), _copy(2, 2, copy="too late"))
    batch.count(_COMPLETED, 1)
    files = await batch.assemble(reason=reason)
    assert _ids(files.output) == ["r1"]
    assert _ids(files.error) == ["r0", "r2", "r3"]
    assert _codes(files.error) == [code] * 3
    assert all(line["response"] is None for line in files.error)
    assert all(line["id"].startswith("batch_req_") for line in files.error)
    assert files.event.lost == 0


async def test_a_batch_that_ended_before_its_plan_has_no_files() -> None:
    batch = _Batch(1)
    task = msgspec.structs.replace(batch.task(), plan=None, input=None, total=0)
    patience = Patience(batch.clock, batch.metrics)
    event = await AssemblyRunner(batch.store, patience, batch.metrics).run(task)
    assert (event.output, event.error, event.manifest) == (None, None, None)


async def test_a_segment_that_is_broken_for_good_costs_only_its_lines() -> None:
    batch = _Batch(4)
    batch.segment("good", _copy(0, 1), _copy(2, 2))
    batch.segment("bad", _copy(1, 3), _copy(3, 4, _FAILED))
    batch.store.broken.add(keys.segment(_BATCH, "bad"))
    batch.count(_COMPLETED, 0, 1, 2)
    batch.count(_FAILED, 3)
    files = await batch.assemble()
    assert _ids(files.output) == ["r0", "r2"]
    assert list(zip(_ids(files.error), _codes(files.error), strict=True)) == [
        ("r1", "output_lost"),
        ("r3", "output_lost"),
    ]
    assert files.event.lost == 2
    assert batch.metrics.counter(LINES_LOST)._value.get() == 2
    assert files.manifest["agrees_with_ledger"] is True
    assert batch.pauses > 3


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 5000])
async def test_a_damaged_segment_costs_only_its_lines(damage: bytes) -> None:
    batch = _Batch(2)
    batch.segment("good", _copy(0, 1))
    batch.store.objects[keys.segment(_BATCH, "bad")] = damage
    batch.count(_COMPLETED, 0, 1)
    files = await batch.assemble()
    assert _ids(files.output) == ["r0"]
    assert _codes(files.error) == ["output_lost"]


async def test_a_line_whose_bytes_are_damaged_is_lost() -> None:
    batch = _Batch(3)
    batch.segment("1", *[_copy(line, line) for line in range(3)])
    key = keys.segment(_BATCH, "1")
    batch.store.objects[key] = b"\x00" + batch.store.objects[key][1:]
    batch.count(_COMPLETED, 0, 1, 2)
    files = await batch.assemble()
    assert _ids(files.output) == ["r1", "r2"]
    assert _ids(files.error) == ["r0"]


async def test_custom_ids_are_null_when_the_input_is_gone_too() -> None:
    batch = _Batch(2)
    del batch.store.objects[batch.input.key]
    files = await batch.assemble(reason=AssembleReason.CANCELLED)
    assert _ids(files.error) == [None, None]
    batch = _Batch(2)
    batch.store.objects[batch.plan.key] = b"not a plan"
    files = await batch.assemble(reason=AssembleReason.CANCELLED)
    assert _ids(files.error) == [None, None]


@pytest.mark.parametrize("operation", ["list", "get_range", "write", "close", "put", ""])
@pytest.mark.parametrize("times", [1, 30])
async def test_a_store_in_trouble_is_waited_for(operation: str, times: int) -> None:
    batch = _Batch(4)
    batch.segment("1", _copy(0, 1), _copy(1, 2, _FAILED))
    batch.count(_COMPLETED, 0)
    batch.count(_FAILED, 1)
    before = set(batch.store.objects)
    batch.store.fail(times, operation)
    files = await batch.assemble(reason=AssembleReason.CANCELLED)
    assert (len(files.output), len(files.error), files.event.lost) == (1, 3, 0)
    assert batch.pauses > 0
    assert len(set(batch.store.objects) - before) == 3
    assert batch.store.writers == 0


async def test_a_full_store_is_waited_for_and_holds_nothing_half_done() -> None:
    batch = _Batch(2)
    batch.segment("1", _copy(0, 1), _copy(1, 2, _FAILED))
    batch.count(_COMPLETED, 0)
    batch.count(_FAILED, 1)
    before = set(batch.store.objects)
    batch.store.full = True

    async def until_there_is_room(seconds: float) -> None:
        batch.clock.advance(seconds)
        assert set(batch.store.objects) == before
        assert batch.store.writers == 0
        batch.pauses += 1
        batch.store.full = batch.pauses < 50

    patience = Patience(batch.clock, batch.metrics, until_there_is_room)
    event = await AssemblyRunner(batch.store, patience, batch.metrics).run(batch.task())
    assert event.output is not None
    assert event.error is not None
    assert batch.pauses == 50


async def test_two_attempts_write_under_different_names() -> None:
    batch = _Batch(1)
    batch.segment("1", _copy(0, 1))
    batch.count(_COMPLETED, 0)
    first, second = await batch.assemble(), await batch.assemble()
    assert first.event.output.object.key != second.event.output.object.key
    assert first.event.output.file_id == second.event.output.file_id
    assert first.output == second.output


async def test_a_ledger_that_counted_otherwise_is_reported_and_the_files_stand() -> None:
    batch = _Batch(2)
    batch.segment("1", _copy(0, 1), _copy(1, 2, _FAILED))
    batch.count(_COMPLETED, 0, 1)
    files = await batch.assemble()
    assert (len(files.output), len(files.error)) == (1, 1)
    assert files.manifest["agrees_with_ledger"] is False


def test_a_missing_or_double_line_stops_the_assembly() -> None:
    batch = _Batch(3)
    for completed in (2, 4):
        with pytest.raises(AssemblyError):
            assembly.check(batch.task(), Tally(completed=completed))


def test_a_damaged_bitmap_is_an_error_and_a_huge_one_is_cut() -> None:
    task = _Batch(8).task()
    with pytest.raises(AssemblyError):
        assembly.Accepted(msgspec.structs.replace(task, accepted=b"junk"))
    bomb = msgspec.structs.replace(task, accepted=zlib.compress(b"\xff" * 10_000_000))
    assert [line in assembly.Accepted(bomb) for line in (0, 7, 8, 9999)] == [
        True,
        True,
        False,
        False,
    ]


async def test_handles_and_memory_are_bounded_with_thousands_of_segments() -> None:
    batch = _Batch(3000)
    for line in range(3000):
        batch.segment(f"{line * 7919 % 3000:05}", _copy(line, line))
    batch.count(_COMPLETED, *range(3000))
    files = await batch.assemble()
    assert _ids(files.output) == [f"r{line}" for line in range(3000)]
    assert batch.store.most_reads <= READS_AT_ONCE


def test_windows_and_reads_stay_within_their_bounds() -> None:
    total = 20_000
    batch = _Batch(0)
    batch.total = total
    batch.count(_COMPLETED, *range(total))
    winners = assembly.Winners(total, assembly.Accepted(batch.task()))
    shuffled = list(range(total))
    random.Random(1).shuffle(shuffled)
    for number in range(20):
        lines = sorted(shuffled[number::20])
        entries = [
            segment.SegmentEntry(line, 1, _COMPLETED, n * 3001, 3000)
            for n, line in enumerate(lines)
        ]
        winners.add(number, entries)
    windows = list(winners.windows())
    assert [w.first for w in windows[1:]] == [w.end for w in windows[:-1]]
    assert windows[-1].end == total
    for window in windows:
        assert sum(span.length for span in window.spans) <= assembly.WINDOW_BYTES
        reads = assembly.reads(window.spans)
        # A window's lines are neighbours in every segment that has some of them.
        assert len(reads) <= 20
        assert sorted(s.line for r in reads for s in r.spans) == list(
            range(window.first, window.end)
        )


_COPIES = st.lists(
    st.tuples(st.integers(0, 15), st.integers(0, 5), st.sampled_from([_COMPLETED, _FAILED])),
    max_size=40,
)


@settings(max_examples=60)
@given(copies=_COPIES, seed=st.integers(0, 1000), data=st.data())
async def test_repeated_and_shuffled_segments_give_identical_files(
    copies: list[tuple[int, int, OutcomeKind]], seed: int, data: st.DataObject
) -> None:
    # One record of line.done says one thing, however often it is packed.
    outcomes = {(line, offset): kind for line, offset, kind in copies}
    counted = data.draw(st.sets(st.sampled_from(sorted({line for line, _ in outcomes}) or [0])))
    rng = random.Random(seed)
    written = []
    for repeat in (1, 3):
        batch = _Batch(16)
        for line in counted & {line for line, _ in outcomes}:
            first = min(offset for known, offset in outcomes if known == line)
            batch.count(outcomes[line, first], line)
        for number in range(repeat):
            items = list(outcomes.items())
            rng.shuffle(items)
            half = rng.randrange(len(items) + 1)
            for part, some in enumerate((items[:half], items[half:])):
                lines = [
                    _copy(line, offset, kind, copy=str(offset)) for (line, offset), kind in some
                ]
                batch.segment(f"{rng.random()}-{number}-{part}", *lines)
        files = await batch.assemble(reason=AssembleReason.EXPIRED)
        assert len(files.output) + len(files.error) == 16
        assert files.manifest["agrees_with_ledger"] is True
        written.append((files.output, files.error))
    assert written[0] == written[1]
