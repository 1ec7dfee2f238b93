"""Packs outcomes into segments and tells what is in them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field

import structlog

from schemas.records import (
    ClaimCheck,
    CollectedLine,
    DoneLines,
    ObjectRef,
    Outcome,
    OutcomeKind,
    SegmentWritten,
)
from streams.domain import keys, segment
from streams.domain.clock import Clock
from streams.domain.ids import new_segment_id
from streams.domain.segment import RenderedLine
from streams.kafka.errors import KafkaBaseError
from streams.kafka.failpoint import reach
from streams.ports.object_store import ObjectNotFoundError, ObjectStore, ObjectStoreError

log = structlog.get_logger(__name__)

#: A segment holds at most this, so that its event is far below the largest record and its bytes
#: fit in memory; one line may be larger.
PART_LINES, PART_BYTES = 4000, 16 * 1024 * 1024
#: Pauses while the object store or the broker fails; outcomes are never given up.
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.1, 5.0

_FINAL = (OutcomeKind.COMPLETED, OutcomeKind.FAILED)

Send = Callable[[SegmentWritten], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Taken:
    """A record of line.done as it was read. `finished` is called when its outcomes are told."""

    done: DoneLines
    partition: int
    offset: int
    finished: Callable[[], None]
    bytes: int


@dataclass(slots=True)
class _Part:
    outcomes: list[tuple[int, Outcome]] = field(default_factory=list)
    bytes: int = 0


class Packer:
    """Writes segments and their events, in order, until both are safe."""

    def __init__(self, store: ObjectStore, send: Send, clock: Clock) -> None:
        self._store = store
        self._send = send
        self._clock = clock

    async def pack(self, records: list[Taken]) -> None:
        """Stores and announces the outcomes of one batch; returns when the broker knows."""
        for part in _parts(records):
            await self._pack_part(records[0], part)

    async def _pack_part(self, first: Taken, part: _Part) -> None:
        batch_id = first.done.batch_id
        models: dict[str, int] = {}
        told: list[CollectedLine] = []
        rendered: list[RenderedLine] = []
        for offset, outcome in part.outcomes:
            if outcome.kind in _FINAL:
                line = await self._rendered(batch_id, outcome)
                if line is None:
                    continue
                rendered.append(RenderedLine(outcome.line, offset, outcome.kind, line))
            elif outcome.kind is not OutcomeKind.RETRY:
                continue
            told.append(_collected(offset, outcome, models))
        if not told:
            return
        event = SegmentWritten(
            segment_id=new_segment_id(),
            batch_id=batch_id,
            tenant=first.done.tenant,
            at_ms=self._clock.now_ms(),
            segment=await self._stored(batch_id, rendered) if rendered else None,
            partition=first.partition,
            models=tuple(models),
            lines=tuple(told),
        )
        await self._announced(event)

    async def _rendered(self, batch_id: str, outcome: Outcome) -> bytes | None:
        """The outcome's line; None if it is lost, and then the line will run again."""
        if outcome.rendered is not None:
            return outcome.rendered
        found = await self._claimed(outcome.claim) if outcome.claim else None
        if found is None:
            log.error(
                "An outcome's line is not in the object store; the line will run again.",
                action="claim_lost",
                batch_id=batch_id,
                line=outcome.line,
            )
        return found

    async def _claimed(self, claim: ClaimCheck) -> bytes | None:
        pause = _Pause("claim_not_read")
        while True:
            try:
                data = await self._store.get_range(claim.key, claim.offset, claim.length)
            except ObjectNotFoundError:
                return None
            except ObjectStoreError as error:
                await pause.after(error)
            else:
                whole = claim.sha256 in (None, hashlib.sha256(data).hexdigest())
                return data if whole and len(data) == claim.length else None

    async def _stored(self, batch_id: str, rendered: list[RenderedLine]) -> ObjectRef:
        data = segment.build(rendered)
        digest = hashlib.sha256(data).hexdigest()
        pause = _Pause("segment_not_stored")
        while True:
            # A new name each time: a failed put may still have written something.
            key = keys.segment(batch_id, new_segment_id())
            try:
                await self._store.put(key, data)
            except ObjectStoreError as error:
                await pause.after(error)
            else:
                reach("collector.segment_stored")
                return ObjectRef(key=key, size_bytes=len(data), sha256=digest)

    async def _announced(self, event: SegmentWritten) -> None:
        pause = _Pause("event_not_taken")
        while True:
            try:
                await self._send(event)
            except KafkaBaseError as error:
                await pause.after(error)
            else:
                reach("collector.event_sent")
                return


class _Pause:
    """Waits longer after each failure."""

    def __init__(self, action: str) -> None:
        self._action = action
        self._next_s = _FIRST_PAUSE_S

    async def after(self, error: Exception) -> None:
        log.warning("Trying again.", action=self._action, error=type(error).__name__)
        await asyncio.sleep(self._next_s)
        self._next_s = min(self._next_s * 2, _MAX_PAUSE_S)


def outcome_bytes(outcome: Outcome) -> int:
    """About how much the outcome takes in a segment."""
    if outcome.rendered is not None:
        return len(outcome.rendered)
    return outcome.claim.length if outcome.claim is not None else 0


def _parts(records: Iterable[Taken]) -> Iterator[_Part]:
    part = _Part()
    for taken in records:
        for outcome in taken.done.outcomes:
            size = outcome_bytes(outcome)
            if part.outcomes and (
                part.bytes + size > PART_BYTES or len(part.outcomes) >= PART_LINES
            ):
                yield part
                part = _Part()
            part.outcomes.append((taken.offset, outcome))
            part.bytes += size
    if part.outcomes:
        yield part


def _collected(offset: int, outcome: Outcome, models: dict[str, int]) -> CollectedLine:
    model = models.setdefault(outcome.model, len(models)) if outcome.model else -1
    return CollectedLine(
        line=outcome.line,
        done_offset=offset,
        kind=outcome.kind,
        attempt=outcome.attempt,
        retry_at_ms=outcome.retry_at_ms,
        model=model,
        usage=outcome.usage,
        usage_flag=outcome.usage_flag,
    )
