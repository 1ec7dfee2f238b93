"""Lines that begin with the same stored prompt go together, and nothing else changes by it."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

import pytest

from schemas.records import OpenRetry
from streams.domain.dispatch.lane import FIRST_PAGE_ROWS, PAGE_ROWS
from tests.support.workers import NOW, Bench, lines_of, numbers, opened, worker


def mixed(bench: Bench, batch_id: str, total: int, prompts: int = 4) -> list[int]:
    """The batch's lines take their prompts in turn; the prompt of each."""
    pins = bench.pin_of[batch_id] = [n % prompts for n in range(total)]
    return pins


def test_within_a_loaded_page_each_prompt_s_lines_go_together() -> None:
    bench = Bench()
    pins = mixed(bench, "b", FIRST_PAGE_ROWS + 4 * PAGE_ROWS)
    bench.dispatcher.open(opened("b", len(pins)))
    released = numbers(bench.run_to_the_end(worker(16)))
    assert sorted(released) == list(range(len(pins)))
    runs = [pin for pin, _ in groupby(released, key=lambda n: pins[n])]
    assert len(runs) <= 4 + 3 * 4, "each page goes on with the prompt that the last one ended with"


def test_slices_stay_sorted_by_line() -> None:
    bench = Bench()
    mixed(bench, "b", 300)
    bench.dispatcher.open(opened("b", 300))
    for slice_ in bench.run_to_the_end(worker(64)):
        assert lines_of(slice_) == sorted(lines_of(slice_))


def test_lines_without_prompts_keep_their_order() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 2000))
    assert numbers(bench.run_to_the_end(worker())) == list(range(2000))


@pytest.mark.parametrize("prompts", [1, 2, 50])
def test_tenants_get_the_same_shares_as_without_prompts(prompts: int) -> None:
    shares = []
    for pinned in (False, True):
        bench = Bench()
        if pinned:
            mixed(bench, "a", 3000, prompts)
        bench.bytes_of["b"] = 20_000
        bench.dispatcher.open(opened("a", 3000, tenant="a"))
        bench.dispatcher.open(opened("b", 3000, tenant="b"))
        w, lines = worker(32), Counter[str]()
        bench.hear(w)
        for _ in range(40):
            for slice_ in bench.release():
                lines[slice_.batch_id] += slice_.size
            bench.run(w)
        shares.append(lines)
    assert shares[0] == shares[1]
    assert shares[0]["a"] == pytest.approx(3 * shares[0]["b"], rel=0.1)


def test_a_line_that_is_due_again_still_goes_before_fresh_ones() -> None:
    bench = Bench()
    mixed(bench, "b", 200)
    bench.dispatcher.open(opened("b", 200))
    w = worker(4)
    bench.hear(w)
    first = numbers(bench.release())
    retry = OpenRetry(line=first[0], attempt=1, not_before_ms=NOW)
    bench.dispatcher.settle("b", first[1:], [retry], NOW)
    w.read(bench.log)
    for slice_ in list(w.held):
        w.finish(slice_)
    bench.hear(w)
    assert numbers(bench.release())[0] == first[0]
