"""What a batch costs, from the sums by model that its ledgers keep."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from schemas.records import (
    BatchSnapshot,
    CollectedLine,
    LineUsage,
    OutcomeKind,
    SegmentWritten,
    Usage,
)
from streams.domain.batch.row import snapshot_of
from streams.domain.billing.prices.batch_cost import batch_cost, used_by_model
from streams.domain.billing.prices.book import parse_prices
from streams.domain.billing.prices.cost import cost
from streams.domain.billing.tokens import add
from tests.support.batch_log import (
    CREATED_MS,
    Controller,
    assembled,
    create,
    entries,
    outcome,
    segment,
    validated,
)

_MODELS = ("a", "b", "c")
_TOTAL = 1100
_BOOK = parse_prices(
    {
        "currency": "usd",
        "models": {
            "a": [
                {"input": "1.5", "output": "3.3"},
                {"valid_from": "2100-01-01", "input": "7", "output": "7"},
            ],
            "b": {"input": "0.07", "output": "0.11"},
            "c": {"input": "0.333333333333", "output": "2"},
        },
    }
)


def _model_of(line: int) -> str:
    return _MODELS[line % 3]


def _segment(lines: Iterable[int], order: tuple[str, ...] = _MODELS) -> SegmentWritten:
    """These lines' outcomes; their models are numbered anew in every segment."""
    told = [_outcome(n, order.index(_model_of(n))) for n in lines]
    return segment(told, models=order)


def _outcome(line: int, model: int = 0) -> CollectedLine:
    kind = OutcomeKind.COMPLETED if line % 7 else OutcomeKind.FAILED
    return outcome(line, kind, model=model)


def _sums(lines: Iterable[tuple[str, Usage]]) -> dict[str, Usage]:
    sums: dict[str, Usage] = {}
    for model, usage in lines:
        sums[model] = add(sums.get(model, Usage()), usage)
    return sums


def _snapshot(controller: Controller) -> BatchSnapshot:
    assert controller.batch is not None
    return snapshot_of(controller.batch)


def _billed(controller: Controller) -> list[tuple[str, LineUsage]]:
    return [(r.models[line.model], line) for r in controller.usage for line in r.lines]


@given(
    st.lists(
        st.tuples(
            st.sets(st.integers(0, _TOTAL - 1), min_size=1, max_size=60),
            st.permutations(_MODELS).map(tuple),
        ),
        max_size=6,
    ),
    st.data(),
)
def test_the_sums_by_model_are_those_of_what_is_billed_whatever_is_repeated(
    segments: list[tuple[set[int], tuple[str, ...]]], data: st.DataObject
) -> None:
    events = [_segment(sorted(lines), order) for lines, order in segments]
    events += data.draw(st.lists(st.sampled_from(events), max_size=3)) if events else []
    log = entries([create(), validated(_TOTAL, models=_MODELS), *events])
    controller = Controller().feed(log)
    snapshot = _snapshot(controller)
    wanted = _sums((_model_of(n), outcome(n).usage) for n in set().union(*(s for s, _ in segments)))
    assert used_by_model(snapshot) == wanted
    assert _sums((model, line.usage) for model, line in _billed(controller)) == wanted
    found = batch_cost(_BOOK, snapshot)
    assert found is not None
    asked = cost(_BOOK, wanted, endpoint=snapshot.endpoint, window="1h", created_at_ms=CREATED_MS)
    assert set(found.lines) == set(asked.lines)


def test_the_sums_by_model_outlive_a_restart_and_the_end() -> None:
    log = entries(
        [
            create(),
            validated(6, models=_MODELS),
            _segment(range(4)),
            _segment((4, 5), ("b", "c", "a")),
            assembled(5, 1),
        ]
    )
    wanted = _sums((_model_of(n), outcome(n).usage) for n in range(6))
    for cut in range(2, len(log)):
        controller = Controller().feed(log[:cut]).restart().feed(log[cut:])
        assert used_by_model(_snapshot(controller)) == wanted


def test_lines_of_a_batch_with_one_model_are_not_looked_at_for_it() -> None:
    controller = Controller().feed(entries([create(), validated(9), segment([outcome(1)])]))
    snapshot = _snapshot(controller)
    assert snapshot.usage_by_model == ()
    assert used_by_model(snapshot) == {"m": outcome(1).usage}


def test_a_batch_whose_first_lines_were_not_counted_by_model_has_no_cost() -> None:
    controller = Controller().feed(
        entries([create(), validated(9, models=_MODELS), _segment([0, 1])])
    )
    # As a controller before this version left it.
    old = controller.chunk_rows[0]
    controller.chunk_rows[0] = replace(old, by_model=())
    after = controller.restart().feed(entries([_segment([2])], first=900))
    snapshot = _snapshot(after)
    assert snapshot.usage == add(add(outcome(0).usage, outcome(1).usage), outcome(2).usage)
    assert used_by_model(snapshot) is None
    assert batch_cost(_BOOK, snapshot) is None


def test_a_model_that_the_book_no_longer_prices_leaves_no_cost() -> None:
    controller = Controller().feed(entries([create(), validated(9), segment([outcome(1)])]))
    assert batch_cost(_BOOK, _snapshot(controller)) is None


def test_rates_that_came_into_force_after_its_creation_do_not_touch_a_batch() -> None:
    log = entries([create(), validated(9, models=("a",)), segment([outcome(8)], models=("a",))])
    snapshot = _snapshot(Controller().feed(log))
    later = replace(snapshot, created_at_ms=4_102_444_800_000)
    first, second = batch_cost(_BOOK, snapshot), batch_cost(_BOOK, later)
    assert first is not None
    assert second is not None
    # Nine input tokens and two of output.
    assert (first.list_micros, second.list_micros) == (14 + 7, 63 + 14)
