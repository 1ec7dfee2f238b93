"""What a tenant's topic makes of batches, however often and from wherever it is read again."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import SubmissionCode
from streams.domain.bridge.inbox import (
    SEAL_WITHIN_MS,
    Create,
    Inbox,
    Record,
    Reject,
    line_of,
)

_MAX_BYTES = 40
_OPS = st.sampled_from([*[None] * 12, *[b"seal"] * 4, b"open", b"abort", b"explode"])
_KEYS = st.sampled_from([*[b"a", b"b"] * 6, None, b"\xff"])
_VALUES = st.sampled_from([None, b" ", b'{"n":1}', b"{\n}", b"no", b"x" * 60])
_STEPS = st.sampled_from([*[0] * 40, 1000, SEAL_WITHIN_MS])


def _lines(records: Sequence[Record], key: str) -> list[bytes]:
    return [line for r in records if (line := line_of(r, key)) is not None]


class _Reader:
    """Carries actions out, commits now and then, and can be killed."""

    def __init__(self) -> None:
        self.made: dict[str, tuple[bytes, bytes]] = {}
        self.creates = 0
        self.commit, self.done = 0, 0

    def read(self, log: Sequence[Record], end: int, commits: bool) -> None:
        inbox = Inbox("t", 0, max_bytes=_MAX_BYTES, done=self.done)
        for record in log[self.commit : end]:
            for action in inbox.feed(record):
                if isinstance(action, Create):
                    batch = action.batch
                    lines = _lines(log[batch.offset : action.sealed_at], batch.key)
                    assert (len(lines), sum(map(len, lines))) == (batch.lines, batch.size_bytes)
                    made = (b"".join(lines), action.request)
                    assert self.made.setdefault(batch.batch_id, made) == made
                    self.creates += 1
        if commits and inbox.floor is not None:
            self.commit, self.done = inbox.floor, inbox.done


@st.composite
def _logs(draw: st.DrawFn) -> list[Record]:
    at_ms, log = 0, []
    for offset in range(draw(st.integers(4, 40))):
        at_ms += draw(_STEPS)
        key, op, value = draw(_KEYS), draw(_OPS), draw(_VALUES)
        log.append(Record(offset=offset, at_ms=at_ms, key=key, op=op, value=value))
    return log


@settings(max_examples=300)
@given(_logs(), st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=6))
def test_any_cut_and_replay_makes_the_same_batches(
    log: list[Record], kills: list[tuple[int, bool]]
) -> None:
    once = _Reader()
    once.read(log, len(log), commits=True)
    killed = _Reader()
    for end, commits in [*kills, (len(log), True)]:
        killed.read(log, max(end, killed.done), commits)
    assert killed.made == once.made
    if all(commits for _, commits in kills):
        assert killed.creates == once.creates


def _feed(*records: tuple[bytes | None, bytes | None, bytes]) -> list[object]:
    inbox = Inbox("t", 0, max_bytes=_MAX_BYTES)
    found: list[object] = []
    for offset, (key, op, value) in enumerate(records):
        record = Record(offset=offset, at_ms=0, key=key, op=op, value=value)
        found += inbox.feed(record)
    return found


def _refused(actions: list[object]) -> list[SubmissionCode]:
    return [a.code for a in actions if isinstance(a, Reject)]


def test_two_batches_with_one_key_one_after_another_are_two() -> None:
    one = [(b"k", None, b"1"), (b"k", b"seal", b"{}")]
    creates = [a for a in _feed(*one, *one) if isinstance(a, Create)]
    assert len({c.batch.batch_id for c in creates}) == 2


def test_what_cannot_be_a_batch_is_told() -> None:
    assert _refused(_feed((b"k", b"seal", b"{}"))) == [SubmissionCode.EMPTY_BATCH]
    assert _refused(_feed((b"k", b"explode", b""))) == [SubmissionCode.INVALID_OP]
    assert _refused(_feed((None, None, b"1"), (None, None, b"2"))) == [SubmissionCode.INVALID_KEY]
    unstamped = Record(offset=0, at_ms=0, key=b"k", value=b"1", stamped=False)
    assert _refused(list(Inbox("t", 0, max_bytes=_MAX_BYTES).feed(unstamped))) == [
        SubmissionCode.INVALID_TOPIC
    ]
    giant = _feed((b"k", None, b"x" * 60), (b"k", None, b"1"), (b"k", b"seal", b"{}"))
    assert _refused(giant) == [SubmissionCode.TOO_LARGE]
    assert not any(isinstance(a, Create) for a in giant)


def test_a_batch_that_is_never_sealed_does_not_hold_the_commit_for_ever() -> None:
    inbox = Inbox("t", 0, max_bytes=_MAX_BYTES)
    inbox.feed(Record(offset=7, at_ms=0, key=b"k", value=b"1"))
    assert inbox.floor == 7
    told = _refused(list(inbox.at_end(2 * SEAL_WITHIN_MS)))
    assert told == [SubmissionCode.NOT_SEALED]
    assert inbox.floor == 8


def test_what_was_carried_out_is_not_repeated_when_an_older_batch_is_still_open() -> None:
    log = [
        Record(offset=0, at_ms=0, key=b"old", value=b"1"),
        Record(offset=1, at_ms=0, key=b"new", value=b"2"),
        Record(offset=2, at_ms=0, key=b"new", op=b"seal", value=b"{}"),
        Record(offset=3, at_ms=0, key=b"old", op=b"seal", value=b"{}"),
    ]
    reader = _Reader()
    reader.read(log, 3, commits=True)
    assert (reader.commit, reader.done, reader.creates) == (0, 3, 1)
    reader.read(log, 4, commits=True)
    assert reader.creates == 2
    assert sorted(reader.made.values()) == [(b"1\n", b"{}"), (b"2\n", b"{}")]
