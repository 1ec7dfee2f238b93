"""What may be committed of a partition, under any order of acks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streams.kafka.unacked import Unacked


@given(st.data())
def test_never_past_a_record_that_is_not_finished(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, 3))
    unacked = Unacked(1, start)
    open_offsets: list[int] = []
    next_offset = start
    finished: list[int] = []
    for _ in range(data.draw(st.integers(0, 60))):
        if len(open_offsets) > 0 and data.draw(st.booleans()):
            offset = open_offsets.pop(data.draw(st.integers(0, len(open_offsets) - 1)))
            unacked.ack(offset)
            finished.append(offset)
        else:
            # A jump is a hole in the log.
            next_offset += data.draw(st.integers(0, 3))
            unacked.hand_out(next_offset)
            open_offsets.append(next_offset)
            next_offset += 1
        done_before_first_open = [o for o in finished if o < min(open_offsets, default=1 << 60)]
        expected = max(done_before_first_open) + 1 if done_before_first_open else None
        assert unacked.safe == expected
        assert len(unacked) == len(open_offsets) + len(finished) - len(done_before_first_open)


def test_everything_finished_is_committed_to_the_end() -> None:
    unacked = Unacked(1, 5)
    for offset in (5, 6, 9):
        unacked.hand_out(offset)
    for offset in (9, 5, 6):
        unacked.ack(offset)
    assert unacked.due() == 10
    unacked.committed = 10
    assert unacked.due() is None


def test_nothing_finished_is_nothing_due() -> None:
    unacked = Unacked(1, 0)
    unacked.hand_out(0)
    assert unacked.due() is None
