"""What each process says of its load, by which work is divided."""

from __future__ import annotations

import msgspec


class PartitionSeen(msgspec.Struct, frozen=True, kw_only=True):
    """How far a worker has read a line.ready partition."""

    partition: int
    next_offset: int
    committed: int


class PoolLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's load on one upstream pool."""

    pool: str
    credits: int
    held: int
    in_flight: int = 0
    wants: int = 0
    call_ms: int = 0
    limit: int = -1
    reason: str = ""


class WorkerLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A batch-worker's load, on change (within 50 ms) and each second. Stale after 3 s."""

    worker: str
    at_ms: int
    partitions: tuple[PartitionSeen, ...]
    pools: tuple[PoolLoad, ...]
    stopping: bool = False


class DueLines(msgspec.Struct, frozen=True, kw_only=True):
    """Lines that must be in by a certain time."""

    deadline_ms: int
    lines: int


class PoolBacklog(msgspec.Struct, frozen=True, kw_only=True):
    """Lines that wait for one upstream pool."""

    pool: str
    lines: int
    tenants: int = 1
    due: tuple[DueLines, ...] = ()


class ControllerLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A controller's backlog, by which several controllers share the workers' credits."""

    controller: str
    at_ms: int
    pools: tuple[PoolBacklog, ...]


class RealtimePoolLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A realtime-worker's load on one upstream pool."""

    pool: str
    in_flight: int
    waiting: int
    ttft_us: tuple[int, ...]
    itl_us: tuple[int, ...]
    ttft_sent_ms: tuple[int, ...] = ()
    gaps: int = 0
    gaps_us: int = 0
    awaiting: int = 0


class RealtimeLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A realtime-worker's load, on change (within 50 ms) and each second. Stale after 3 s."""

    worker: str
    process: str
    at_ms: int
    in_flight: int
    oldest_wait_ms: int
    pools: tuple[RealtimePoolLoad, ...]
    stopping: bool = False
