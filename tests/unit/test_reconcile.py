"""Reconciling: balanced books balance, and any single number that is changed is found and named."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from schemas.records import BatchSnapshot, MeterSend, SendState, Usage
from streams.domain.billing.meter.send import FLAGGED, NO_CUSTOMER, UNCLEAR
from streams.domain.billing.reconcile.output_file import Cutter, UnreadableLine, usage_of_line
from streams.domain.billing.reconcile.sums import (
    ALL_MODELS,
    Account,
    Books,
    Cause,
    Difference,
    Expected,
    Range,
    SinkBooks,
    Within,
    ranges,
    sums,
)
from streams.domain.billing.tokens import split
from tests.support.books import Line, snapshot, sum_of, used

_NOW_MS = 1_700_000_000_000
_MINUTE_MS = 60_000

usages = st.builds(
    lambda rest, cached, rest_out, thought: used(
        rest + cached, rest_out + thought, cached, thought
    ),
    *(st.integers(0, 50) for _ in range(4)),
)
batches = st.lists(st.tuples(st.sampled_from("abc"), usages), min_size=1, max_size=12)


def _send(account: Account, tokens: int, number: int = 0, **fields: object) -> MeterSend:
    values: dict[str, object] = {
        "identifier": f"{account.batch_id}:{account.model}:{account.token_type}:{number}",
        "watermark": 3,
        "tenant": account.tenant,
        "batch_id": account.batch_id,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "batch_created_at_ms": _NOW_MS,
        "model": account.model,
        "token_type": account.token_type,
        "flagged": False,
        "flush": number,
        "tokens": tokens,
        "at_ms": _NOW_MS,
        "state": SendState.CONFIRMED,
        "customer": "cus_ada",
        "event_name": f"meter_{account.token_type}",
        "changed_at_ms": _NOW_MS,
    }
    return MeterSend(**(values | fields))  # type: ignore[arg-type]


def _by_model(lines: Sequence[Line]) -> dict[str, Usage]:
    return {
        model: sum_of([usage for name, usage in lines if name == model])
        for model in {name for name, _ in lines}
    }


def _accounts(batch: BatchSnapshot, lines: Sequence[Line]) -> dict[Account, int]:
    return {
        Account(batch.tenant, batch.batch_id, model, token_type.value): tokens
        for model, usage in _by_model(lines).items()
        for token_type, tokens in split(usage).items()
        if tokens
    }


def _sends(batch: BatchSnapshot, lines: Sequence[Line], data: st.DataObject) -> list[MeterSend]:
    """All that was used, cut into sends anyhow, in any state that needs nobody."""
    found = []
    states = st.sampled_from([SendState.CONFIRMED, SendState.SENT, SendState.PENDING])
    for account, tokens in _accounts(batch, lines).items():
        cut = data.draw(st.integers(0, tokens))
        for number, part in enumerate((cut, tokens - cut)):
            found.append(_send(account, part, number, state=data.draw(states)))
    return found


def _close(
    batch: BatchSnapshot,
    output: dict[str, Usage] | None,
    sends: Sequence[MeterSend],
    *,
    settled: bool = True,
) -> list[Difference]:
    books = Books()
    books.add_batch(batch, output, settled=settled)
    for send in sends:
        books.add_send(send)
    return books.close()


@given(batches, st.data())
def test_balanced_books_balance(lines: list[Line], data: st.DataObject) -> None:
    batch = snapshot("b", lines, _NOW_MS)
    sends = data.draw(st.permutations(_sends(batch, lines, data)))
    assert _close(batch, _by_model(lines), sends) == []


@given(batches, st.data(), st.integers(1, 1000))
def test_a_changed_number_of_an_output_file_is_found_and_named(
    lines: list[Line], data: st.DataObject, more: int
) -> None:
    batch = snapshot("b", lines, _NOW_MS)
    output = _by_model(lines)
    model = data.draw(st.sampled_from(sorted(output)))
    field, name = data.draw(
        st.sampled_from([("input_tokens", "input"), ("output_tokens", "output")])
    )
    before = output[model]
    output[model] = replace(before, **{field: getattr(before, field) + more})
    [found] = _close(batch, output, _sends(batch, lines, data))
    assert found.cause is Cause.OUTPUT
    assert found.account == Account("ada", "b", model, name)
    assert found.found - found.expected == more


@given(batches, st.data(), st.integers(1, 1000))
def test_a_changed_number_of_a_send_is_found_and_named(
    lines: list[Line], data: st.DataObject, more: int
) -> None:
    batch = snapshot("b", lines, _NOW_MS)
    sends = _sends(batch, lines, data)
    if not sends:
        return
    place = data.draw(st.integers(0, len(sends) - 1))
    less = data.draw(st.booleans()) and sends[place].tokens >= more
    changed = sends[place] = replace(
        sends[place], tokens=sends[place].tokens + (-more if less else more)
    )
    [found] = _close(batch, _by_model(lines), sends)
    assert found.cause is (Cause.NOT_SENT if less else Cause.SENT_TOO_MUCH)
    assert found.account == Account("ada", "b", changed.model, changed.token_type)
    assert abs(found.found - found.expected) == more


@given(batches, st.data(), st.integers(1, 1000))
def test_a_changed_number_of_the_ledger_is_found_on_both_sides(
    lines: list[Line], data: st.DataObject, more: int
) -> None:
    truth = snapshot("b", lines, _NOW_MS)
    [*rest, (model, usage)] = lines
    wrong = [*rest, (model, replace(usage, input_tokens=usage.input_tokens + more))]
    found = _close(snapshot("b", wrong, _NOW_MS), _by_model(lines), _sends(truth, lines, data))
    assert {d.cause for d in found} == {Cause.OUTPUT, Cause.NOT_SENT}
    assert {d.account for d in found} == {Account("ada", "b", model, "input")}


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        (SendState.PENDING, None),
        (SendState.SENT, None),
        (SendState.CONFIRMED, None),
        (SendState.PARKED, Cause.PARKED),
        (SendState.REJECTED, Cause.REJECTED),
        (SendState.CANCELLING, None),
        (SendState.CANCELLED, None),
        (SendState.WRITTEN_OFF, None),
    ],
)
def test_what_is_on_its_way_is_no_difference_and_what_waits_for_somebody_is(
    state: SendState, cause: Cause | None
) -> None:
    lines = [("a", used(10))]
    send = _send(Account("ada", "b", "a", "input"), 10, state=state, reason=FLAGGED)
    found = _close(snapshot("b", lines, _NOW_MS), _by_model(lines), [send])
    assert [d.cause for d in found] == ([] if cause is None else [cause])


def test_what_a_person_has_decided_is_shown_apart() -> None:
    lines = [("a", used(10))]
    account = Account("ada", "b", "a", "input")
    states = [SendState.CONFIRMED, SendState.CANCELLED, SendState.WRITTEN_OFF, SendState.PARKED]
    books = Books()
    books.add_batch(snapshot("b", lines, _NOW_MS), _by_model(lines), settled=True)
    for number, state in enumerate(states):
        books.add_send(_send(account, number + 1, number, state=state))
    books.close()
    [entry] = books.entries()
    assert (entry.sent.cancelled, entry.sent.written_off, entry.sent.adjusted) == (2, 3, 5)
    assert [send.identifier for send in entry.waiting] == ["b:a:input:3"]


def test_what_no_send_has_yet_is_on_its_way_until_the_meter_must_have_sent_it() -> None:
    lines = [("a", used(10))]
    batch = snapshot("b", lines, _NOW_MS)
    books = Books()
    books.add_batch(batch, _by_model(lines), settled=False)
    assert books.close() == []
    assert books.entries()[0].sent.on_way == 10
    [found] = _close(batch, _by_model(lines), [])
    assert (found.cause, found.expected, found.found) == (Cause.NOT_SENT, 10, 0)


def test_an_output_file_that_is_gone_is_not_taken_for_an_equal_one() -> None:
    lines = [("a", used(10))]
    books = Books()
    books.add_batch(snapshot("b", lines, _NOW_MS), None, settled=False)
    assert books.close() == []
    assert books.entries()[0].output is None


def test_what_was_sent_for_a_batch_that_nobody_knows_is_too_much() -> None:
    books = Books()
    books.add_send(_send(Account("ada", "ghost", "a", "input"), 10))
    [found] = books.close()
    assert (found.cause, found.found) == (Cause.SENT_TOO_MUCH, 10)


def test_a_batch_whose_usage_is_not_known_by_model_is_compared_as_a_whole() -> None:
    lines = [("a", used(10)), ("b", used(5, 7))]
    batch = replace(snapshot("b", lines, _NOW_MS), usage_by_model=())
    sends = [_send(account, tokens) for account, tokens in _accounts(batch, lines).items()]
    assert _close(batch, {"a": used(15), "x": used(0, 7)}, sends) == []
    [found] = _close(batch, _by_model(lines), sends[1:])
    assert found.account.model == ALL_MODELS


def test_sums_are_by_tenant_model_and_type_and_real_time_is_apart() -> None:
    books = Books()
    for batch_id in ("b1", "b2"):
        batch = snapshot(batch_id, [("a", used(10))], _NOW_MS)
        books.add_batch(batch, {"a": used(10)} if batch_id == "b1" else None, settled=True)
        books.add_send(_send(Account("ada", batch_id, "a", "input"), 10))
    books.add_send(_send(Account("ada", "rt", "a", "input"), 3, completion_window=""))
    found = [
        (entry.account.batch_id, entry.output, entry.ledger, entry.sent.confirmed)
        for entry in sums(books.entries())
    ]
    assert found == [("all batches", 10, 20, 20), ("real-time requests", None, None, 3)]


# -- the sink --------------------------------------------------------------------------------

_ACCOUNT = Account("ada", "b", "a", "input")


def _sink(sends: Sequence[MeterSend], *, lag_ms: int = 0) -> tuple[SinkBooks, list[Range]]:
    books = SinkBooks(sends, _NOW_MS + 10 * _MINUTE_MS, lag_ms)
    return books, ranges(sends)


def test_ranges_are_whole_minutes_around_the_sends_of_a_customer_and_meter() -> None:
    at_ms = _NOW_MS // _MINUTE_MS * _MINUTE_MS
    sends = [
        _send(_ACCOUNT, 1, at_ms=at_ms + 59_999),
        _send(_ACCOUNT, 2, at_ms=at_ms + 3 * _MINUTE_MS),
        _send(_ACCOUNT, 4, customer="cus_bo"),
        _send(_ACCOUNT, 8, customer=None, state=SendState.PENDING),
    ]
    books, found = _sink(sends)
    assert [(r.customer, r.start_ms, r.minutes) for r in found] == [
        ("cus_ada", at_ms, 4),
        ("cus_bo", at_ms, 1),
    ]
    assert books.expected(found[0]) == Expected(3, 3)
    first, second = found[0].halves()
    assert (first.minutes, second.minutes, first.end_ms) == (2, 2, second.start_ms)


def test_all_sends_of_the_range_count_whatever_batch_they_are_of() -> None:
    mine = _send(_ACCOUNT, 1)
    other = _send(Account("ada", "other", "a", "input"), 2)
    books = SinkBooks([mine, other], _NOW_MS + _MINUTE_MS, 0)
    assert books.expected(ranges([mine])[0]) == Expected(3, 3)


def test_only_sends_of_a_range_belong_to_it() -> None:
    mine = _send(_ACCOUNT, 1)
    within = Within(ranges([mine]))
    assert within.has(replace(mine, batch_id="other"))
    others: list[dict[str, object]] = [
        {"customer": "cus_bo"},
        {"event_name": "other"},
        {"at_ms": mine.at_ms + _MINUTE_MS},
        {"at_ms": mine.at_ms - _MINUTE_MS},
        {"customer": None, "event_name": None},
    ]
    assert not any(within.has(replace(mine, **other)) for other in others)


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        (SendState.CONFIRMED, "", Expected(5, 5)),
        (SendState.SENT, "", Expected(0, 5)),
        (SendState.PENDING, "", Expected(0, 0)),
        (SendState.REJECTED, "invalid_value", Expected(0, 0)),
        (SendState.PARKED, NO_CUSTOMER, Expected(0, 0)),
        (SendState.PARKED, UNCLEAR, Expected(0, 5)),
        (SendState.CANCELLING, "", Expected(0, 5)),
        (SendState.CANCELLED, "", Expected(0, 0)),
        (SendState.WRITTEN_OFF, "", Expected(0, 0)),
    ],
)
def test_where_it_is_not_known_whether_a_send_arrived_both_sums_are_right(
    state: SendState, reason: str, expected: Expected
) -> None:
    books, [range_] = _sink([_send(_ACCOUNT, 5, state=state, reason=reason)])
    assert books.expected(range_) == expected
    assert expected.agrees(expected.least)
    assert not expected.agrees(expected.most + 1)


def test_a_sink_whose_sums_lag_may_lack_what_it_has_just_taken() -> None:
    books, [range_] = _sink([_send(_ACCOUNT, 5)], lag_ms=11 * _MINUTE_MS)
    assert books.expected(range_) == Expected(0, 5)


# -- output files ----------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=9).map(lambda b: b.replace(b"\n", b"")), max_size=6), st.data())
def test_a_stream_is_cut_into_its_lines_however_it_comes(
    lines: list[bytes], data: st.DataObject
) -> None:
    text = b"".join(line + b"\n" for line in lines) + b"cut"
    cutter, found, start = Cutter(), [], 0
    while start < len(text):
        end = data.draw(st.integers(start + 1, len(text)))
        found += list(cutter.feed(text[start:end]))
        start = end
    assert found == lines
    assert cutter.rest() == b"cut"


def test_no_line_is_held_that_is_longer_than_any_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.domain.billing.reconcile.output_file.MAX_LINE_BYTES", 10)
    cutter = Cutter()
    assert list(cutter.feed(b"x" * 11)) == [b"x" * 11]
    assert list(cutter.feed(b"y\n")) == [b"y"]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"{}",
        b'{"id":1}',
        b'{"id":"a","response":{"body":[]}}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_a_line_that_is_not_ours_is_unreadable(text: bytes) -> None:
    with pytest.raises(UnreadableLine):
        usage_of_line(text, "/v1/chat/completions")


def test_capped_figures_are_read_as_they_were_counted() -> None:
    text = b'{"id":"a","response":{"body":{"usage":{"prompt_tokens":1e30,"completion_tokens":-1}}}}'
    assert usage_of_line(text, "/v1/chat/completions")[1] == used(10_000_000)
