"""Which batches one partition of a tenant's topic holds: a fold of its records.

    line (no op) ──► open ── seal ──► a batch of the ordinary kind
    open ──────────►  │ ├─── open, abort ──► its lines are forgotten
                      │ └─── not sealed in time, or too many others open ──► told so, forgotten
                      └──── too large ──► refused ── seal, open, abort, time ──► forgotten

A key is free again once its batch was sealed. Lines are only counted: they stay in the topic, and
are read again when their batch is sealed (`line_of`). Everything follows from the records alone
(their times are the broker's), so whoever reads the partition again from `floor` makes the same
batches with the same ids and bytes. What was carried out before is not repeated: `done` is as far
as the reader before had come, and what lies below it only counts lines.
"""

from __future__ import annotations

from dataclasses import dataclass

from schemas.errors import SubmissionCode
from schemas.headers import Op
from streams.domain.ids import submitted_ids

#: A batch must be sealed so long after its first record: until then, everything since is read
#: again when a reader starts. Less than orphaned objects live, and than the topic's retention.
SEAL_WITHIN_MS = 6 * 3600 * 1000
#: By the reader's clock, which may differ from the broker's, it gets that much more.
_CLOCKS_DIFFER_MS = 60 * 1000
#: Of one partition: what a tenant's forgotten batches can cost in memory.
MAX_OPEN = 1000
_MAX_KEY_CHARACTERS = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A record as it was read. op: the header's value; None for a line. at_ms: by the broker.

    stamped: whether the broker vouches for at_ms; where not, nothing of it counts.
    """

    offset: int
    at_ms: int
    key: bytes | None
    op: bytes | None = None
    value: bytes | None = None
    stamped: bool = True


@dataclass(slots=True, kw_only=True)
class Open:
    """A batch that is not sealed, begun by the record at `offset`.

    size_bytes: of its lines, with their ends. refused: its end was told, its lines don't count any
    more.
    """

    key: str
    batch_id: str
    file_id: str
    offset: int
    at_ms: int
    lines: int = 0
    size_bytes: int = 0
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Create:
    """Make a batch of the key's lines from batch.offset to before sealed_at.

    at_ms: when it was sealed. request: the seal's value, unread.
    """

    batch: Open
    sealed_at: int
    at_ms: int
    request: bytes


@dataclass(frozen=True, slots=True)
class Reject:
    """Tell the tenant. key: as it came. batch_id: None where no batch has begun."""

    key: bytes | None
    code: SubmissionCode
    batch_id: str | None = None


Action = Create | Reject
"""What is to be done about a record."""


class Inbox:
    """One partition. Feed it every record once, in order."""

    def __init__(self, topic: str, partition: int, *, max_bytes: int, done: int = 0) -> None:
        """max_bytes: of a batch's lines. done: what precedes it was carried out before."""
        self._topic, self._partition = topic, partition
        self._max_bytes = max_bytes
        self._done = done
        #: Oldest first.
        self._open: dict[str, Open] = {}
        #: What was last told of a record that is nobody's, so that it is told once in a row.
        self._told: SubmissionCode | None = None
        #: Where reading goes on; None before the first record.
        self.position: int | None = None

    @property
    def floor(self) -> int | None:
        """What precedes it is never needed again; None before the first record."""
        first = next(iter(self._open.values()), None)
        return self.position if first is None else first.offset

    @property
    def done(self) -> int:
        """What precedes it was carried out, once the actions so far were."""
        return max(self._done, self.position or 0)

    def feed(self, record: Record) -> list[Action]:
        """What to do because of a record."""
        actions = self._overdue(record.at_ms - SEAL_WITHIN_MS) if record.stamped else []
        actions += self._judged(record)
        self.position = record.offset + 1
        return actions if record.offset >= self._done else []

    def at_end(self, now_ms: int) -> list[Action]:
        """What to do because nothing more has come."""
        return self._overdue(now_ms - SEAL_WITHIN_MS - _CLOCKS_DIFFER_MS)

    def _overdue(self, begun_by_ms: int) -> list[Action]:
        actions: list[Action] = []
        while self._open:
            oldest = next(iter(self._open.values()))
            if oldest.at_ms > begun_by_ms:
                break
            actions += self._give_up(oldest, SubmissionCode.NOT_SEALED)
        return actions

    def _judged(self, record: Record) -> list[Action]:
        if not record.stamped:
            return self._nobodys(record, SubmissionCode.INVALID_TOPIC)
        key = _key(record.key)
        if key is None:
            return self._nobodys(record, SubmissionCode.INVALID_KEY)
        self._told = None
        if record.op is None:
            return self._line(key, record)
        try:
            op = Op(record.op.decode())
        except ValueError:
            return [Reject(key.encode(), SubmissionCode.INVALID_OP, self._id(key))]
        match op:
            case Op.OPEN:
                self._open.pop(key, None)
                return self._begin(key, record)
            case Op.SEAL:
                return self._seal(key, record)
            case Op.ABORT:
                self._open.pop(key, None)
                return []

    def _nobodys(self, record: Record, code: SubmissionCode) -> list[Action]:
        # A producer that forgot the key of a thousand lines is told once.
        told, self._told = self._told, code
        return [] if told is code else [Reject(_short(record.key), code)]

    def _line(self, key: str, record: Record) -> list[Action]:
        line = _one_line(record.value)
        if line is None:
            return []
        actions = [] if key in self._open else self._begin(key, record)
        batch = self._open[key]
        if batch.refused:
            return actions
        if batch.size_bytes + len(line) > self._max_bytes:
            batch.refused = True
            return [*actions, Reject(key.encode(), SubmissionCode.TOO_LARGE, batch.batch_id)]
        batch.lines += 1
        batch.size_bytes += len(line)
        return actions

    def _begin(self, key: str, record: Record) -> list[Action]:
        actions: list[Action] = []
        if len(self._open) >= MAX_OPEN:
            oldest = next(iter(self._open.values()))
            actions = self._give_up(oldest, SubmissionCode.TOO_MANY_OPEN)
        batch_id, file_id = submitted_ids(self._topic, self._partition, record.offset, record.at_ms)
        self._open[key] = Open(
            key=key,
            batch_id=batch_id,
            file_id=file_id,
            offset=record.offset,
            at_ms=record.at_ms,
        )
        return actions

    def _seal(self, key: str, record: Record) -> list[Action]:
        batch = self._open.pop(key, None)
        if batch is None or not (batch.lines or batch.refused):
            batch_id = batch.batch_id if batch else None
            return [Reject(key.encode(), SubmissionCode.EMPTY_BATCH, batch_id)]
        # Of a refused batch the end was told before.
        if batch.refused:
            return []
        return [Create(batch, record.offset, record.at_ms, record.value or b"")]

    def _give_up(self, batch: Open, code: SubmissionCode) -> list[Action]:
        del self._open[batch.key]
        if batch.refused:
            return []
        return [Reject(batch.key.encode(), code, batch.batch_id)]

    def _id(self, key: str) -> str | None:
        batch = self._open.get(key)
        return batch.batch_id if batch else None


def line_of(record: Record, key: str) -> bytes | None:
    """The line that a record adds to the batch that is open under this key; None if it adds none.

    It ends with a newline and has no other.
    """
    if record.op is not None or not record.stamped or _key(record.key) != key:
        return None
    return _one_line(record.value)


def _key(raw: bytes | None) -> str | None:
    """The key, if it can be one."""
    try:
        key = (raw or b"").decode()
    except UnicodeDecodeError:
        return None
    return key if 0 < len(key) <= _MAX_KEY_CHARACTERS and key.isprintable() else None


def _short(key: bytes | None) -> bytes | None:
    """What of a bad key goes back to whoever sent it, who will know it."""
    return None if key is None else key[:_MAX_KEY_CHARACTERS]


def _one_line(value: bytes | None) -> bytes | None:
    # JSON may be spread over several lines; in JSON text a line's end is but white space.
    line = (value or b"").strip().replace(b"\r", b" ").replace(b"\n", b" ")
    return line + b"\n" if line else None
