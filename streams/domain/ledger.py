"""The ledger of a chunk: which of 512 lines are accepted, their sums, and their open retries.

A ledger only ever gains lines. Accepting a line that is set already changes nothing, so outcomes
may be repeated and shuffled as they like: the end is the same, and so is the bill.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from schemas.records import (
    ChunkRow,
    CollectedLine,
    DayUsage,
    ModelUsage,
    OpenRetry,
    OutcomeKind,
    Usage,
)
from streams.domain.billing.tokens import add, add_parts
from streams.domain.chunk import (
    BITMAP_BYTES,
    CHUNK_LINES,
    bit_of,
    chunk_of,
    packed,
    unpacked,
)

_FULL = (1 << CHUNK_LINES) - 1
_NO_RETRIES: Mapping[int, OpenRetry] = {}
_NO_USAGE = Usage()
_NO_MODELS: Mapping[str, Usage] = {}
_NO_DAYS: Mapping[tuple[int, str], Usage] = {}


@dataclass(frozen=True, slots=True)
class Counts:
    """Sums over accepted lines.

    by_model: the usage's parts, in batches with several models; empty in others. later: the parts
    of the usage that came on a later UTC day than the batch's creation, by day and model; the model
    is '' in batches with one.
    """

    completed: int = 0
    failed: int = 0
    usage: Usage = _NO_USAGE
    by_model: Mapping[str, Usage] = field(default_factory=lambda: _NO_MODELS)
    later: Mapping[tuple[int, str], Usage] = field(default_factory=lambda: _NO_DAYS)

    @property
    def accepted(self) -> int:
        """Lines that are in, whichever way they ended."""
        return self.completed + self.failed

    def plus(self, other: Counts) -> Counts:
        """The sums over both."""
        return Counts(
            self.completed + other.completed,
            self.failed + other.failed,
            add(self.usage, other.usage),
            add_parts(self.by_model, other.by_model) if other.by_model else self.by_model,
            add_parts(self.later, other.later) if other.later else self.later,
        )


@dataclass(frozen=True, slots=True)
class Ledger:
    """One chunk of a batch's lines.

    watermark: offset of the last event folded in; events up to it are replays.
    accepted: bitmap, the chunk's first line in the lowest bit.
    retries: what the next attempt at a line must know; kept until the line is accepted.
    """

    watermark: int = -1
    accepted: int = 0
    counts: Counts = field(default_factory=Counts)
    retries: Mapping[int, OpenRetry] = field(default_factory=lambda: _NO_RETRIES)

    def has(self, line: int) -> bool:
        """Whether the line is accepted."""
        return bool(self.accepted & bit_of(line))


@dataclass(frozen=True, slots=True)
class Accepted:
    """What accept() did.

    mask: bitmap of the lines newly accepted. lines: these, as they were collected.
    gained: their sums. retries: retries newly opened, or moved on to a higher attempt.
    """

    ledger: Ledger
    mask: int
    lines: Sequence[CollectedLine]
    gained: Counts
    retries: Sequence[OpenRetry]


def accept(
    ledger: Ledger,
    outcomes: Iterable[CollectedLine],
    offset: int,
    models: Sequence[str] = (),
    later_day: int | None = None,
) -> Accepted:
    """Folds the outcomes of one event, all of this chunk, into its ledger.

    models: the event's, if the batch has several, so that its usage is to be known by model.
    later_day: the event's UTC day, counted from 1970, if it isn't that of the batch's creation.
    """
    if offset <= ledger.watermark:
        return Accepted(ledger, 0, (), Counts(), ())
    bits, mask = ledger.accepted, 0
    lines: list[CollectedLine] = []
    retries = dict(ledger.retries)
    opened: dict[int, OpenRetry] = {}
    for outcome in outcomes:
        bit = bit_of(outcome.line)
        if bits & bit:
            continue
        if outcome.kind is OutcomeKind.COMPLETED or outcome.kind is OutcomeKind.FAILED:
            bits |= bit
            mask |= bit
            lines.append(outcome)
            retries.pop(outcome.line, None)
            opened.pop(outcome.line, None)
        elif outcome.kind is OutcomeKind.RETRY and _is_news(retries.get(outcome.line), outcome):
            retry = OpenRetry(
                line=outcome.line, attempt=outcome.attempt, not_before_ms=outcome.retry_at_ms
            )
            retries[outcome.line] = opened[outcome.line] = retry
    gained = count(lines, models)
    if later_day is not None and lines:
        gained = _on_day(gained, later_day)
    folded = Ledger(offset, bits, ledger.counts.plus(gained), retries or _NO_RETRIES)
    return Accepted(folded, mask, lines, gained, tuple(opened.values()))


def count(lines: Sequence[CollectedLine], models: Sequence[str] = ()) -> Counts:
    """The sums over these lines; also by model, if the names of the lines' models are given."""
    completed = read = cached = wrote = reasoned = 0
    for line in lines:
        completed += line.kind is OutcomeKind.COMPLETED
        usage = line.usage
        read += usage.input_tokens
        cached += usage.cached_tokens
        wrote += usage.output_tokens
        reasoned += usage.reasoning_tokens
    usage = Usage(
        input_tokens=read, cached_tokens=cached, output_tokens=wrote, reasoning_tokens=reasoned
    )
    by_model = _by_model(lines, models) if models else _NO_MODELS
    return Counts(completed, len(lines) - completed, usage, by_model)


def _by_model(lines: Sequence[CollectedLine], models: Sequence[str]) -> Mapping[str, Usage]:
    apart: dict[int, list[CollectedLine]] = {}
    for line in lines:
        apart.setdefault(line.model, []).append(line)
    # A line that names no model never ran, and so has used nothing.
    return {
        models[model]: count(of_model).usage
        for model, of_model in apart.items()
        if 0 <= model < len(models)
    }


def _on_day(gained: Counts, day: int) -> Counts:
    parts = gained.by_model or {"": gained.usage}
    return replace(gained, later={(day, model): used for model, used in parts.items()})


def packed_days(counts: Counts) -> tuple[DayUsage, ...]:
    """The usage of later days as records carry it."""
    return tuple(
        [DayUsage(day=d, model=m, usage=counts.later[d, m]) for d, m in sorted(counts.later)]
    )


def unpacked_days(parts: Sequence[DayUsage]) -> Mapping[tuple[int, str], Usage]:
    """The usage of later days in a record."""
    return {(part.day, part.model): part.usage for part in parts} if parts else _NO_DAYS


def packed_models(counts: Counts) -> tuple[ModelUsage, ...]:
    """The usage by model as records carry it."""
    return tuple([ModelUsage(model=m, usage=counts.by_model[m]) for m in sorted(counts.by_model)])


def unpacked_models(parts: Sequence[ModelUsage]) -> Mapping[str, Usage]:
    """The usage by model in a record."""
    return {part.model: part.usage for part in parts} if parts else _NO_MODELS


def total(ledgers: Iterable[Ledger]) -> Counts:
    """The sums over ledgers."""
    counts = Counts()
    for ledger in ledgers:
        counts = counts.plus(ledger.counts)
    return counts


def accepted_prefix(ledgers: Mapping[int, Ledger], known: int = 0) -> int:
    """How many lines are accepted before the first one that is not.

    known: what it was before; lines are never taken back, so counting goes on from there.
    """
    chunk = chunk_of(known)
    while (ledger := ledgers.get(chunk)) is not None and ledger.accepted == _FULL:
        chunk += 1
    bits = 0 if ledger is None else ledger.accepted
    # The lowest zero bit: all ones below it are the chunk's own prefix.
    return chunk * CHUNK_LINES + (~bits & (bits + 1)).bit_length() - 1


def packed_bitmap(ledgers: Mapping[int, Ledger], lines: int) -> bytes:
    """The accepted lines of a whole batch as an AssembleTask carries them."""
    return zlib.compress(bitmap(ledgers, lines))


def bitmap(ledgers: Mapping[int, Ledger], lines: int) -> bytearray:
    """The accepted lines of a whole batch, line 0 in the lowest bit of byte 0."""
    found = bytearray((lines + 7) // 8)
    for chunk, ledger in ledgers.items():
        start = chunk * BITMAP_BYTES
        part = packed(ledger.accepted)[: max(0, len(found) - start)]
        found[start : start + len(part)] = part
    return found


def to_row(batch_id: str, chunk: int, ledger: Ledger) -> ChunkRow:
    """The ledger as its table keeps it."""
    return ChunkRow(
        batch_id=batch_id,
        chunk=chunk,
        watermark=ledger.watermark,
        accepted=packed(ledger.accepted),
        completed=ledger.counts.completed,
        failed=ledger.counts.failed,
        usage=ledger.counts.usage,
        by_model=packed_models(ledger.counts),
        later=packed_days(ledger.counts),
        retries=tuple(ledger.retries[line] for line in sorted(ledger.retries)),
    )


def from_row(row: ChunkRow) -> Ledger:
    """The ledger that a row holds."""
    return Ledger(
        watermark=row.watermark,
        accepted=unpacked(row.accepted),
        counts=Counts(
            row.completed,
            row.failed,
            row.usage,
            unpacked_models(row.by_model),
            unpacked_days(row.later),
        ),
        retries={retry.line: retry for retry in row.retries} or _NO_RETRIES,
    )


def _is_news(known: OpenRetry | None, outcome: CollectedLine) -> bool:
    # A line may run twice after a crash; the second report of the same attempt opens nothing.
    return known is None or outcome.attempt > known.attempt
