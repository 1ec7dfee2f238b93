"""The assembly task: merges a batch's segments into its output and error file, in input order.

    list segments ─► indexes ─► winners ─► for each window: read, fill gaps, write ─► check ─► event

Each attempt writes under new names and leaves nothing behind if it fails. Memory: the winners
(25 bytes a line), the plan (16 bytes a line) and a few windows of 4 MB, however large the batch.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import structlog

from schemas.errors import LineCode
from schemas.metrics import ASSEMBLY_MISMATCHES, LINES_LOST, Metrics
from schemas.records import AssembleTask, BatchAssembled
from streams.domain import assembly, keys
from streams.domain.assembly import Accepted, Span, Tally, Window, Winners
from streams.domain.outcome.render import NO_CUSTOM_ID
from streams.domain.plan import PlanError, read_header, read_rows, rows_range
from streams.file_worker.patience import Patience
from streams.file_worker.reading import PatientRanges
from streams.file_worker.writing import Files
from streams.kafka.failpoint import reach
from streams.ports.object_store import ObjectStore, ObjectStoreError
from streams.segments.reading import SegmentReader, Source

log = structlog.get_logger(__name__)


class AssemblyRunner:
    """Runs assembly tasks. Waits for a store in trouble as long as it takes, loudly."""

    def __init__(self, store: ObjectStore, patience: Patience, metrics: Metrics) -> None:
        self._store = store
        self._patience = patience
        self._lost = metrics.counter(LINES_LOST)
        self._mismatches = metrics.counter(ASSEMBLY_MISMATCHES)

    async def run(self, task: AssembleTask) -> BatchAssembled:
        """The event that answers the task. Raises AssemblyError only because of a bug."""
        if task.plan is None or task.total == 0:
            return self._event(task)
        trouble = self._patience.trouble(None, batch_id=task.batch_id, task="assembly")
        while True:
            try:
                return await self._attempt(task)
            except ObjectStoreError as error:
                await trouble.wait_after(error)

    async def _attempt(self, task: AssembleTask) -> BatchAssembled:
        async with Files(self._store, task) as files:
            attempt = _Attempt(task, self._reader(task), files)
            tally = await attempt.write()
            agrees = assembly.check(task, tally)
            now_ms = self._patience.clock.now_ms()
            output, error, manifest = await files.publish(tally, agrees, now_ms)
        self._report(task, tally, agrees)
        reach("file_worker.files_stored")
        return msgspec.structs.replace(
            self._event(task), output=output, error=error, manifest=manifest, lost=tally.lost
        )

    def _reader(self, task: AssembleTask) -> SegmentReader:
        witnesses = [ref.key for ref in (task.plan, task.input) if ref is not None]
        ranges = PatientRanges(self._store, self._patience, task.batch_id, witnesses)
        return SegmentReader(self._store, ranges)

    def _report(self, task: AssembleTask, tally: Tally, agrees: bool) -> None:
        if tally.lost:
            self._lost.inc(tally.lost)
            log.error(
                "Results of counted lines can't be read back; they became output_lost.",
                action="lines_lost",
                batch_id=task.batch_id,
                lines=tally.lost,
            )
        if not agrees:
            self._mismatches.inc()
            log.error(
                "The files of a batch disagree with the ledger's counts.",
                action="assembly_mismatch",
                batch_id=task.batch_id,
                completed=tally.completed,
                failed=tally.failed,
                lost=tally.lost,
                ledger_completed=task.completed,
                ledger_failed=task.failed,
            )

    def _event(self, task: AssembleTask) -> BatchAssembled:
        return BatchAssembled(
            task_id=task.task_id,
            batch_id=task.batch_id,
            tenant=task.tenant,
            at_ms=self._patience.clock.now_ms(),
        )


class _Attempt:
    """One pass over all lines of a batch."""

    def __init__(self, task: AssembleTask, reader: SegmentReader, files: Files) -> None:
        self._task = task
        self._reader = reader
        self._files = files
        self._tally = Tally()
        self._plan: bytes | None = None

    async def write(self) -> Tally:
        """Writes every line to one of the files."""
        segments = await self._reader.segments(keys.segments_prefix(self._task.batch_id))
        winners = Winners(self._task.total, Accepted(self._task))
        async for number, entries in self._reader.indexes(segments):
            winners.add(number, entries)
        for window in winners.windows():
            await self._write_window(segments, winners, window)
        return self._tally

    async def _write_window(self, segments: list[Source], winners: Winners, window: Window) -> None:
        texts = await self._reader.lines(segments, window.spans)
        for span in window.spans:
            if not assembly.is_whole(texts.get(span.line, b""), span):
                texts.pop(span.line, None)
        missing = [line for line in range(window.first, window.end) if line not in texts]
        texts |= await self._unanswered(winners, missing)
        gone = set(missing)
        output: list[bytes] = []
        error: list[bytes] = []
        for line in range(window.first, window.end):
            if line not in gone and winners.completed(line):
                output.append(texts[line])
            else:
                error.append(texts[line])
        self._tally.completed += len(output)
        self._tally.failed += len(error) - len(missing)
        await self._files.write_output(b"".join(output))
        await self._files.write_error(b"".join(error))

    async def _unanswered(self, winners: Winners, missing: list[int]) -> dict[int, bytes]:
        """The error lines of lines without an outcome, with custom ids from the input file."""
        found = dict.fromkeys(missing, NO_CUSTOM_ID)
        if missing and self._task.input is not None:
            source = Source(self._task.input.key, self._task.input.size_bytes)
            for group in assembly.groups(await self._input_spans(missing)):
                raws = await self._reader.lines([source], group)
                found |= {line: assembly.custom_id_of(raw) for line, raw in raws.items()}
        made = {}
        for line, custom_id in found.items():
            counted = line in winners.accepted
            made[line] = assembly.unanswered_line(self._task, line, counted, custom_id)
            if counted or assembly.unfinished_code(self._task) is LineCode.OUTPUT_LOST:
                self._tally.lost += 1
            else:
                self._tally.unfinished += 1
        return made

    async def _input_spans(self, missing: Iterable[int]) -> list[Span]:
        """Where these lines lie in the input file; nothing if the plan can't be read."""
        if self._plan is None:
            ref = self._task.plan
            assert ref is not None  # noqa: S101 - run() answers tasks without a plan itself
            self._plan = await self._reader.whole(Source(ref.key, ref.size_bytes)) or b""
        try:
            rows = read_header(self._plan)
            spans = []
            for line in missing:
                at, length = rows_range(line, 1)
                if line < rows:
                    row = read_rows(self._plan[at : at + length])[0]
                    spans.append(Span(line, 0, row.offset, row.length))
        except (PlanError, IndexError):
            return []
        return spans
