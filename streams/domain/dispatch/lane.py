"""A batch's lines as the dispatcher sees them: each is in exactly one place at a time.

    beyond the cursor ── loaded ──► window ── picked ──► out ── accepted ──► done
                                      ▲                  │
                                      └── again ◄────────┘ retry outcome, lease over, not sent

A *lane* is those lines of a batch that can run on the same pools. Each lane walks the plan with a
cursor of its own, so that a blocked pool holds up nothing but its own lane, and holds only a
window of it in memory.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from schemas.records import OpenRetry
from streams.domain.dispatch.flow import Flow
from streams.domain.dispatch.lease import Leases
from streams.domain.dispatch.slice import LineAt, Picked, Slice

#: What a tenant may spend in one round before it is the next one's turn.
QUANTUM = 16
#: A line costs one, and one more for every so many bytes; never more than a round's worth.
COST_BYTES = 8192
#: Plan rows of a lane's first page and of all later ones: a batch of ten lines loads no more.
FIRST_PAGE_ROWS = 64
PAGE_ROWS = 512
#: With so many lines waiting for another attempt a lane releases no fresh ones: the upstream is
#: unwell, and what waits is held in memory.
MAX_WAITING = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenBatch:
    """A batch whose lines may be released.

    routes: the pools of each lane. done: bitmap of accepted lines. retries: open ones. paused:
    nothing is released until it is resumed. held: nothing is until its tenant has room for it.
    """

    batch_id: str
    tenant: str
    deadline_ms: int
    created_at_ms: int
    total: int
    routes: tuple[tuple[str, ...], ...]
    done: bytes = b""
    retries: tuple[OpenRetry, ...] = ()
    priority: int = 0
    paused: bool = False
    held: bool = False


class Again(NamedTuple):
    """A line that is to run again; partition: where it must go, if that matters."""

    not_before_ms: int
    picked: Picked
    partition: int | None = None


class Out(NamedTuple):
    """A released line. at: None if it was found in line.ready and the plan row is not known."""

    slice: Slice
    attempt: int
    at: LineAt | None
    lane: Lane | None


@dataclass(slots=True, eq=False)
class Lane:
    """One walk through a batch's plan."""

    batch: BatchLines
    number: int
    pools: tuple[str, ...]
    window: deque[LineAt] = field(default_factory=deque)
    again: list[Again] = field(default_factory=list)
    cursor: int = 0
    loading: bool = False
    blocked_until_ms: int = 0
    queued_at: set[str] = field(default_factory=set)
    #: What the dispatcher has counted of this lane into its pools' backlogs.
    counted: int = 0

    def ready(self, now_ms: int) -> bool:
        """Whether a line could be released now."""
        if not self.batch.is_open(now_ms) or self.blocked_until_ms > now_ms:
            return False
        self._skip_done()
        if self.again and self.again[0].not_before_ms <= now_ms:
            return True
        return bool(self.window) and len(self.again) < MAX_WAITING

    def hungry(self) -> bool:
        """Whether the window should be loaded further."""
        if self.loading or self.cursor >= self.batch.total or not self.batch.running:
            return False
        return len(self.window) <= self.page() // 2 and len(self.again) < MAX_WAITING

    def page(self) -> int:
        """How many plan rows to load next."""
        return PAGE_ROWS if self.cursor else FIRST_PAGE_ROWS

    def backlog(self, now_ms: int) -> int:
        """About how many lines could be released now: lanes share what isn't loaded."""
        if not self.batch.running or self.blocked_until_ms > now_ms:
            return 0
        due = self.again and self.again[0].not_before_ms <= now_ms
        beyond = (self.batch.total - self.cursor) // len(self.batch.lanes)
        return len(self.window) + beyond + (len(self.again) if due else 0)

    def load(self, rows: Iterable[LineAt], cursor: int) -> None:
        """Takes in this lane's plan rows between the old cursor and the new one."""
        self.loading = False
        self.cursor = cursor
        batch = self.batch
        fresh: list[LineAt] = []
        for at in rows:
            out = batch.out.get(at.line)
            if out is not None:
                batch.out[at.line] = out._replace(at=at, lane=self)
            elif not batch.is_done(at.line):
                retry = batch.retries.pop(at.line, None)
                if retry is None:
                    fresh.append(at)
                else:
                    self.add_again(Again(retry.not_before_ms, Picked(at, retry.attempt + 1)))
        # Lines that begin with the same stored prompt go together, so that the engine finds the
        # prefix in its cache; those that go on with the prompt before them come first.
        last = self.window[-1].pin if self.window else 0
        self.window.extend(sorted(fresh, key=lambda at: (at.pin != last, at.pin)))

    def mean_cost(self) -> float:
        """What a line costs its tenant, by the first of those loaded; 1 while there are none."""
        some = [line_cost(at) for at in islice(self.window, 4)]
        return sum(some) / len(some) if some else 1.0

    def add_again(self, again: Again) -> None:
        """Lets a line run again."""
        heapq.heappush(self.again, again)

    def pin(self, now_ms: int) -> int | None:
        """The partition that the next line must go to, if that matters."""
        first = self.again[0] if self.again else None
        return first.partition if first and first.not_before_ms <= now_ms else None

    def repin(self, not_before_ms: int, partition: int | None) -> None:
        """Puts the next line off, or lets it go anywhere."""
        first = heapq.heappop(self.again)
        self.add_again(Again(max(first.not_before_ms, not_before_ms), first.picked, partition))

    def cost(self, now_ms: int) -> int:
        """What releasing the next line costs its tenant."""
        due = self.again and self.again[0].not_before_ms <= now_ms
        return line_cost(self.again[0].picked.at if due else self.window[0])

    def pick(
        self, now_ms: int, *, limit: int, max_bytes: int, budget: int, pin: int | None
    ) -> tuple[list[Picked], int]:
        """Up to `limit` lines and what they cost; at least one, whatever its size."""
        picked: list[Picked] = []
        cost = size = 0
        while len(picked) < limit and self.ready(now_ms) and self.pin(now_ms) == pin:
            due = bool(self.again) and self.again[0].not_before_ms <= now_ms
            at = self.again[0].picked.at if due else self.window[0]
            if picked and (cost + line_cost(at) > budget or size + at.length > max_bytes):
                break
            cost += line_cost(at)
            size += at.length
            if due:
                picked.append(heapq.heappop(self.again).picked)
                continue
            picked.append(Picked(self.window.popleft(), 1))
            if not self.again:
                # Nothing can come in between now, so the rest of the slice is quick.
                return picked, self._pick_fresh(picked, limit, max_bytes - size, budget, cost)
        return picked, cost

    def _pick_fresh(
        self, picked: list[Picked], limit: int, room_bytes: int, budget: int, cost: int
    ) -> int:
        window, is_done, retries = self.window, self.batch.is_done, self.batch.retries
        while window and len(picked) < limit:
            at = window[0]
            if is_done(at.line):
                window.popleft()
                continue
            room_bytes -= at.length
            total = cost + line_cost(at)
            if total > budget or room_bytes < 0 or at.line in retries:
                break
            cost = total
            picked.append(Picked(window.popleft(), 1))
        return cost

    def _skip_done(self) -> None:
        """Drops what ended meanwhile, and puts off what must wait for another attempt first."""
        batch = self.batch
        while self.window and (
            batch.is_done(self.window[0].line) or self.window[0].line in batch.retries
        ):
            at = self.window.popleft()
            retry = batch.retries.pop(at.line, None)
            if retry is not None and not batch.is_done(at.line):
                self.add_again(Again(retry.not_before_ms, Picked(at, retry.attempt + 1)))
        while self.again:
            first = self.again[0]
            line = first.picked.at.line
            retry = batch.retries.pop(line, None)
            if batch.is_done(line):
                heapq.heappop(self.again)
            elif retry is not None and retry.attempt >= first.picked.attempt:
                later = Picked(first.picked.at, retry.attempt + 1)
                heapq.heapreplace(self.again, Again(retry.not_before_ms, later))
            else:
                break


class BatchLines:
    """All lanes of one batch, and where each of its lines is.

    out: released lines. retries: open retries of lines whose plan row is not known here.
    released_at_ms: when the latest line was; 0 before the first.
    """

    def __init__(self, batch: OpenBatch, leases: Leases, flow: Flow) -> None:
        self.leases = leases
        self.flow = flow
        self.batch_id = batch.batch_id
        self.tenant = batch.tenant
        self.deadline_ms = batch.deadline_ms
        self.created_at_ms = batch.created_at_ms
        self.total = batch.total
        self.priority = batch.priority
        self.paused = batch.paused
        self.held = batch.held
        self.running = not (batch.paused or batch.held)
        self.out: dict[int, Out] = {}
        self.most_out = 0
        self.released_at_ms = 0
        self.retries = {retry.line: retry for retry in batch.retries}
        self._done = bytearray((batch.total + 7) // 8)
        self._done[: len(batch.done)] = batch.done
        self.accepted = int.from_bytes(self._done, "little").bit_count()
        self.lanes = [Lane(self, n, pools) for n, pools in enumerate(batch.routes)]

    def is_open(self, now_ms: int) -> bool:
        """Whether lines may be released: neither paused, held nor closed, the window not over."""
        return self.running and now_ms < self.deadline_ms

    def left(self) -> list[int]:
        """About how many lines of each lane are not in: lanes share what is out or not loaded."""
        return self._spread(self.total - self.accepted)

    def waiting(self) -> list[int]:
        """About how many lines of each lane are not released: lanes share what is not loaded."""
        return self._spread(self.total - self.accepted - len(self.out))

    def is_done(self, line: int) -> bool:
        """Whether the line is accepted."""
        return bool(self._done[line >> 3] >> (line & 7) & 1)

    def release(self, slice_: Slice, lane: Lane, picked: Sequence[Picked]) -> None:
        """These lines are out now, in this slice."""
        slice_.left = len(picked)
        self.flow.out[slice_.pool] += len(picked)
        for line in picked:
            self.out[line.at.line] = Out(slice_, line.attempt, line.at, lane)
        self.most_out = max(self.most_out, len(self.out))

    def find_out(self, slice_: Slice, attempts: Iterable[tuple[int, int]]) -> None:
        """These (line, attempt) are out in a slice that another process released."""
        for line, attempt in attempts:
            if line >= self.total or self.is_done(line):
                continue
            ended = self.retries.get(line)
            out = self.out.get(line)
            # A slice stays in line.ready while any line of it runs, those that have come back
            # for another attempt included; of several attempts the last one counts.
            if (ended and ended.attempt >= attempt) or (out and out.attempt >= attempt):
                continue
            self._no_longer_out(line)
            self.out[line] = Out(slice_, attempt, None, None)
            self.flow.out[slice_.pool] += 1
            slice_.left += 1

    def forget(self) -> None:
        """Lets go of every line."""
        for line in list(self.out):
            self._no_longer_out(line)
        self.retries.clear()
        for lane in self.lanes:
            lane.window.clear()
            lane.again.clear()

    def accept(self, lines: Iterable[int]) -> None:
        """These lines are in."""
        done, retries = self._done, self.retries
        for line in lines:
            bit = 1 << (line & 7)
            if not done[line >> 3] & bit:
                done[line >> 3] |= bit
                self.accepted += 1
            if retries:
                retries.pop(line, None)
            out = self._no_longer_out(line)
            if out is not None:
                self.flow.finished[out.slice.pool] += 1

    def retry(self, retry: OpenRetry) -> Lane | None:
        """The line waits for its next attempt; the lane in which it now does, if that is known."""
        out = self._no_longer_out(retry.line)
        if out is None or out.at is None or out.lane is None:
            self.retries[retry.line] = retry
            return None
        out.lane.add_again(Again(retry.not_before_ms, Picked(out.at, retry.attempt + 1)))
        return out.lane

    def take_back(self, slice_: Slice, not_before_ms: int, partition: int | None) -> list[Lane]:
        """The slice's lines that are still out in it are to run again, as the same attempt."""
        lanes: list[Lane] = []
        for line, out in self._lines_of(slice_):
            self._no_longer_out(line)
            if out.at is None or out.lane is None:
                # Its plan row will be met by a cursor, with the attempt that this makes known.
                self.retries[line] = OpenRetry(
                    line=line, attempt=out.attempt - 1, not_before_ms=not_before_ms
                )
                continue
            out.lane.add_again(Again(not_before_ms, Picked(out.at, out.attempt), partition))
            lanes.append(out.lane)
        return lanes

    def is_tail(self) -> bool:
        """Whether what is out now may be among the last lines to come in."""
        return self.total - self.accepted - len(self.out) <= self.most_out

    def _spread(self, count: int) -> list[int]:
        if len(self.lanes) == 1:
            return [max(0, count)]
        known = [len(lane.window) + len(lane.again) for lane in self.lanes]
        sharing = [n for n, lane in enumerate(self.lanes) if lane.cursor < self.total]
        sharing = sharing or list(range(len(self.lanes)))
        rest = max(0, count - sum(known))
        for place, number in enumerate(sharing):
            known[number] += rest // len(sharing) + (place < rest % len(sharing))
        return known

    def _no_longer_out(self, line: int) -> Out | None:
        out = self.out.pop(line, None)
        if out is not None:
            self.flow.out[out.slice.pool] -= 1
            out.slice.left -= 1
            if not out.slice.left:
                self.leases.end(out.slice)
        return out

    def _lines_of(self, slice_: Slice) -> list[tuple[int, Out]]:
        if slice_.lines:
            found = ((p.at.line, self.out.get(p.at.line)) for p in slice_.lines)
            return [(n, out) for n, out in found if out is not None and out.slice is slice_]
        return [(n, out) for n, out in self.out.items() if out.slice is slice_]


def line_cost(at: LineAt) -> int:
    """What releasing this line costs its tenant."""
    return min(QUANTUM, 1 + at.length // COST_BYTES)
