"""What is read from an engine's Prometheus page, and what is made of pages that lie."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.domain.gate.page import EngineReading, NotAnEngineError, engine_load, read_page
from streams.domain.gate.signals import is_possible
from tests.support.engine_pages import OLD_VLLM, READING, SGLANG, VLLM

NOW = 1000.0


@pytest.mark.parametrize("page", [VLLM, OLD_VLLM, SGLANG])
def test_every_engines_names_are_known(page: str) -> None:
    assert read_page(page) == READING


def test_engines_behind_one_page_are_added_up_and_the_fullest_cache_counts() -> None:
    other = VLLM.replace('engine="0"', 'engine="1"').replace(" 0.25", " 0.75")
    assert read_page(VLLM + other) == EngineReading(34.0, 6.0, 0.75, 200.0, 5.0)


@pytest.mark.parametrize(
    "page",
    ["", "<html>no</html>", "up 1\n", "vllm:num_requests_running 3\n", '{"a": 1}', "\0\n" * 9],
)
def test_other_pages_are_no_engines(page: str) -> None:
    with pytest.raises(NotAnEngineError):
        read_page(page)


@pytest.mark.parametrize("lie", ["NaN", "-1", "+Inf", "-Inf", "1e300"])
@pytest.mark.parametrize("name", ["num_requests_running", "num_requests_waiting", "kv_cache"])
def test_numbers_that_can_not_be_true_reach_the_gate_as_such(name: str, lie: str) -> None:
    lines = VLLM.splitlines()
    lines = [
        line.rsplit(" ", 1)[0] + " " + lie if name in line and not line.startswith("#") else line
        for line in lines
    ]
    assert not is_possible(engine_load(read_page("\n".join(lines)), None, NOW), NOW)


def test_gaps_are_those_since_the_reading_before() -> None:
    load = engine_load(EngineReading(1, 0, 0, 150.0, 3.5), READING, NOW)
    assert (load.gaps, load.gaps_s) == (50, 1.0)
    assert engine_load(READING, None, NOW).gaps == 0


def test_an_engine_that_was_started_again_has_no_gaps_to_tell_at_first() -> None:
    load = engine_load(EngineReading(1, 0, 0, 4.0, 0.1), READING, NOW)
    assert (load.gaps, load.gaps_s) == (0, 0.0)


@given(
    st.lists(
        st.one_of(
            st.sampled_from(VLLM.splitlines()),
            st.text(max_size=80),
            st.builds(
                "vllm:num_requests_running{}{}{}".format,
                st.text(max_size=20),
                st.sampled_from(
                    [" ", "} ", '{a="'],
                ),
                st.text(max_size=20),
            ),
        ),
        max_size=12,
    )
)
def test_whatever_the_page_holds_it_is_read_or_refused(lines: list[str]) -> None:
    try:
        reading = read_page("\n".join(lines))
    except NotAnEngineError:
        return
    load = engine_load(reading, READING, NOW)
    assert isinstance(is_possible(load, NOW), bool)
    assert not math.isnan(load.running)
