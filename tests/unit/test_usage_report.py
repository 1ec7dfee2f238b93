"""Reports add up: every row is the sum of what its batches show."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from schemas.records import BatchSnapshot, ModelUsage, Usage
from streams.domain.batch.row import snapshot_of
from streams.domain.billing.prices.batch_cost import batch_cost
from streams.domain.billing.prices.book import parse_prices
from streams.domain.billing.reports.by_batch import Rows
from streams.domain.billing.tokens import add
from tests.support.batch_log import Controller, create, entries, validated

_BOOK = parse_prices(
    {
        "currency": "usd",
        "models": {
            "a": {"input": "1.3", "cached_input": "0.7", "output": "3.7"},
            "b": {"input": "0.111111", "output": "0.5"},
        },
    }
)


def _started() -> BatchSnapshot:
    batch = Controller().feed(entries([create(), validated(9)])).batch
    assert batch is not None
    return snapshot_of(batch)


_STARTED = _started()


@st.composite
def _usages(draw: st.DrawFn) -> Usage:
    read = draw(st.integers(0, 10**7))
    cached, wrote = draw(st.integers(0, read)), draw(st.integers(0, 10**7))
    return Usage(input_tokens=read, cached_tokens=cached, output_tokens=wrote)


@st.composite
def _batches(draw: st.DrawFn) -> BatchSnapshot:
    a, b = draw(_usages()), draw(_usages())
    completed = draw(st.integers(0, 9))
    if draw(st.booleans()):
        return replace(_STARTED, model="a", usage=a, completed=completed, failed=9 - completed)
    parts = (ModelUsage(model="a", usage=a), ModelUsage(model="b", usage=b))
    return replace(_STARTED, model=None, usage=add(a, b), usage_by_model=parts, completed=completed)


@given(st.lists(_batches(), max_size=8))
def test_rows_are_the_sums_of_their_batches_to_the_token_and_the_micro_unit(
    batches: list[BatchSnapshot],
) -> None:
    whole, parts = Rows(_BOOK, by_model=False), Rows(_BOOK, by_model=True)
    tokens, listed, billed = Usage(), 0, 0
    for batch in batches:
        whole.add(batch, running=False)
        parts.add(batch, running=False)
        cost = batch_cost(_BOOK, batch)
        assert cost is not None
        tokens = add(tokens, batch.usage)
        listed, billed = listed + cost.list_micros, billed + cost.billed_micros
    for rows in (whole, parts):
        used = Usage()
        for row in rows:
            used = add(used, row.usage)
            assert row.priced
        assert used == tokens
        assert sum(row.list_micros for row in rows) == listed
        assert sum(row.billed_micros for row in rows) == billed
    assert sum(row.completed for row in whole) == sum(batch.completed for batch in batches)


def test_one_batch_without_a_price_leaves_its_row_without_one() -> None:
    rows = Rows(_BOOK, by_model=True)
    rows.add(replace(_STARTED, model="a", usage=Usage(input_tokens=1)), running=True)
    rows.add(replace(_STARTED, model="c", usage=Usage(input_tokens=1)), running=False)
    found = {row.model: (row.priced, row.running) for row in rows}
    assert found == {"a": (True, True), "c": (False, False)}
