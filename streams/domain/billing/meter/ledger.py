"""The usage ledger of a chunk: which of its lines are billed, and their tokens by model.

Like the controller's it only ever gains lines, so usage may be repeated and shuffled as it likes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from schemas.records import LineUsage, MeterChunkRow, MeteredUsage, Usage, UsageRecorded
from streams.domain.billing.tokens import add
from streams.domain.chunk import bit_of, chunk_of, packed, unpacked
from streams.domain.outcome.usage import ABSURD

#: A replay must find its lines set for as long as usage.recorded may hold it: that is 90 days, and
#: up to 7 more, since Kafka removes whole segments of a log.
LEDGER_KEPT_MS = 100 * 86_400_000


#: A record and its offset.
Placed = tuple[UsageRecorded, int]


@dataclass(frozen=True, slots=True)
class Metered:
    """The batch, or the sum of real-time requests, that usage belongs to."""

    tenant: str
    batch_id: str
    endpoint: str
    window: str
    created_at_ms: int

    @property
    def key(self) -> tuple[str, str]:
        """Tenant and batch: a batch id alone may be anyone's."""
        return self.tenant, self.batch_id


@dataclass(frozen=True, slots=True)
class Sum:
    """Tokens, and the lines that used them."""

    lines: int
    usage: Usage


#: By model, and whether the figures were absurd.
Sums = Mapping[tuple[str, bool], Sum]


@dataclass(frozen=True, slots=True)
class UsageLedger:
    """One chunk of a batch. watermark: the highest offset folded in."""

    metered: Metered
    chunk: int
    watermark: int = -1
    last_at_ms: int = 0
    accepted: int = 0
    sums: Sums = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Counted:
    """What accept() did. gained: the sums of the new lines; flags: how many had which flag."""

    ledger: UsageLedger
    gained: Sums
    flags: Mapping[str, int]


def metered_of(record: UsageRecorded) -> Metered:
    """What the record's usage belongs to."""
    return Metered(
        record.tenant,
        record.batch_id,
        record.endpoint,
        record.completion_window,
        record.batch_created_at_ms,
    )


def merged(records: Iterable[Placed]) -> list[Placed]:
    """The same usage in as few records as may be: those of a batch that name the same models.

    Each batch's lines keep their order, as of several copies of a line the first one counts.
    """
    found: list[list[Placed]] = []
    growing: dict[tuple[str, str], list[Placed]] = {}
    for placed in records:
        record = placed[0]
        key = (record.tenant, record.batch_id)
        group = growing.get(key)
        if group is None or group[0][0].models != record.models:
            group = growing[key] = []
            found.append(group)
        group.append(placed)
    return [group[0] if len(group) == 1 else _one(group) for group in found]


def _one(group: list[Placed]) -> Placed:
    lines = tuple(line for record, _ in group for line in record.lines)
    at_ms = max(record.at_ms for record, _ in group)
    return replace(group[0][0], lines=lines, at_ms=at_ms), max(offset for _, offset in group)


def by_chunk(lines: Iterable[LineUsage]) -> Mapping[int, list[LineUsage]]:
    """The lines of each chunk. A negative number is no line's."""
    found: dict[int, list[LineUsage]] = {}
    for line in lines:
        if line.line >= 0:
            found.setdefault(chunk_of(line.line), []).append(line)
    return found


def accept(
    before: UsageLedger, record: UsageRecorded, lines: Iterable[LineUsage], offset: int
) -> Counted | None:
    """Folds lines of this chunk. None if nothing is new."""
    bits = before.accepted
    gained: dict[tuple[str, bool], list[int]] = {}
    flags: dict[str, int] = {}
    for line in lines:
        bit = bit_of(line.line)
        if bits & bit:
            continue
        bits |= bit
        flag = _tally(gained, record.models, line)
        flags[flag] = flags.get(flag, 0) + 1
    if bits == before.accepted:
        return None
    sums = {
        key: Sum(
            lines,
            Usage(
                input_tokens=read, cached_tokens=cached, output_tokens=wrote,
                reasoning_tokens=thought,
            ),
        )
        for key, (lines, read, cached, wrote, thought) in gained.items()
    }  # fmt: skip
    after = UsageLedger(
        before.metered,
        before.chunk,
        max(before.watermark, offset),
        max(before.last_at_ms, record.at_ms),
        bits,
        plus(before.sums, sums),
    )
    return Counted(after, sums, flags)


def plus(a: Sums, b: Sums) -> Sums:
    """Both together."""
    total = dict(a)
    for key, more in b.items():
        known = total.get(key)
        total[key] = (
            more if known is None else Sum(known.lines + more.lines, add(known.usage, more.usage))
        )
    return total


def to_row(ledger: UsageLedger) -> MeterChunkRow:
    """The ledger as its table keeps it."""
    metered = ledger.metered
    return MeterChunkRow(
        tenant=metered.tenant,
        batch_id=metered.batch_id,
        chunk=ledger.chunk,
        watermark=ledger.watermark,
        endpoint=metered.endpoint,
        completion_window=metered.window,
        batch_created_at_ms=metered.created_at_ms,
        last_at_ms=ledger.last_at_ms,
        accepted=packed(ledger.accepted),
        sums=tuple(
            MeteredUsage(model=model, flagged=flagged, lines=found.lines, usage=found.usage)
            for (model, flagged), found in ledger.sums.items()
        ),
    )


def from_row(row: MeterChunkRow) -> UsageLedger:
    """The ledger that a row holds."""
    return UsageLedger(
        Metered(
            row.tenant,
            row.batch_id,
            row.endpoint,
            row.completion_window,
            row.batch_created_at_ms,
        ),
        row.chunk,
        row.watermark,
        row.last_at_ms,
        unpacked(row.accepted),
        {(s.model, s.flagged): Sum(s.lines, s.usage) for s in row.sums},
    )


def _tally(
    gained: dict[tuple[str, bool], list[int]], models: tuple[str, ...], line: LineUsage
) -> str:
    """Adds the line's tokens to the sums of its model; its flag."""
    usage = line.usage
    read, cached = usage.input_tokens, usage.cached_tokens
    wrote, thought = usage.output_tokens, usage.reasoning_tokens
    flag = line.usage_flag
    if not (0 <= cached <= read and 0 <= thought <= wrote):
        # Batch-workers see to it; whoever else writes usage is not believed either.
        flag = ABSURD
        read, wrote = max(read, 0), max(wrote, 0)
        cached, thought = min(max(cached, 0), read), min(max(thought, 0), wrote)
    if not read and not wrote:
        return flag
    model = models[line.model] if 0 <= line.model < len(models) else ""
    sums = gained.setdefault((model, flag == ABSURD), [0, 0, 0, 0, 0])
    sums[0] += 1
    sums[1] += read
    sums[2] += cached
    sums[3] += wrote
    sums[4] += thought
    return flag
