"""Whose turn it is."""

from __future__ import annotations

from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from streams.rendering import turns
from streams.rendering.turns import Turns


def everything() -> Turns[str]:
    return Turns(lambda _item: True)


def served(waiting: Turns[str], cost: dict[str, float], times: int) -> list[str]:
    """Takes so many items out, each charged what its key's cost."""
    out = []
    for _ in range(times):
        item = waiting.pop()
        assert item is not None
        out.append(item)
        waiting.charge(item[0], cost[item[0]])
    return out


def test_nothing_waits_at_first() -> None:
    assert everything().pop() is None


def test_lines_of_one_key_keep_their_order() -> None:
    waiting = everything()
    for item in ("a1", "a2", "a3"):
        waiting.add("a", item)
    assert served(waiting, {"a": 1.0}, 3) == ["a1", "a2", "a3"]
    assert waiting.pop() is None


def test_keys_with_lines_that_cost_the_same_take_turns() -> None:
    waiting = everything()
    for number in range(3):
        waiting.add("a", f"a{number}")
    for key in "bc":
        for number in range(2):
            waiting.add(key, f"{key}{number}")
    order = served(waiting, {"a": 1.0, "b": 1.0, "c": 1.0}, 7)
    assert order == ["a0", "b0", "c0", "a1", "b1", "c1", "a2"]


def test_a_key_with_costly_lines_gets_fewer_turns() -> None:
    waiting = everything()
    for number in range(20):
        waiting.add("a", f"a{number}")
        waiting.add("b", f"b{number}")
    order = served(waiting, {"a": 10.0, "b": 1.0}, 12)
    assert [item[0] for item in order].count("a") == 2


def test_a_key_that_comes_late_has_nothing_to_catch_up() -> None:
    waiting = everything()
    for number in range(20):
        waiting.add("a", f"a{number}")
    served(waiting, {"a": 1.0}, 10)
    for number in range(20):
        waiting.add("b", f"b{number}")
    order = served(waiting, {"a": 1.0, "b": 1.0}, 10)
    assert 4 <= [item[0] for item in order].count("b") <= 6


def test_a_key_that_leaves_and_comes_back_still_owes_its_last_line() -> None:
    waiting = everything()
    waiting.add("a", "a0")
    for number in range(9):
        waiting.add("b", f"b{number}")
    assert served(waiting, {"a": 5.0, "b": 1.0}, 1) == ["a0"]
    waiting.add("a", "a1")
    order = served(waiting, {"a": 5.0, "b": 1.0}, 6)
    assert order.index("a1") >= 4


def test_what_was_withdrawn_is_passed_over() -> None:
    withdrawn = {"a0", "a1", "b0"}
    waiting: Turns[str] = Turns(lambda item: item not in withdrawn)
    for item in ("a0", "b0", "a1", "a2"):
        waiting.add(item[0], item)
    assert waiting.pop() == "a2"
    assert waiting.pop() is None


def test_a_key_whose_last_lines_were_withdrawn_can_come_back() -> None:
    withdrawn = {"a0"}
    waiting: Turns[str] = Turns(lambda item: item not in withdrawn)
    waiting.add("a", "a0")
    assert waiting.pop() is None
    waiting.add("a", "a1")
    assert waiting.pop() == "a1"


def test_taking_everything_out_leaves_nothing() -> None:
    waiting = everything()
    waiting.add("a", "a0")
    waiting.add("b", "b0")
    assert sorted(waiting.all()) == ["a0", "b0"]
    assert waiting.pop() is None
    waiting.add("a", "a1")
    assert waiting.pop() == "a1"


def test_keys_that_are_owed_nothing_are_forgotten() -> None:
    waiting = everything()
    for number in range(10 * turns._REMEMBERED):
        key = f"key {number}"
        waiting.add(key, key)
        assert waiting.pop() == key
        waiting.charge(key, 0.001)
        waiting.add("a", "a")
        waiting.pop()
        waiting.charge("a", 0.002)
    assert len(waiting._served) < 2 * turns._REMEMBERED


@given(
    st.lists(st.one_of(st.sampled_from("abcd"), st.none()), max_size=120),
    st.fixed_dictionaries({key: st.floats(0.001, 10.0) for key in "abcd"}),
)
def test_all_come_out_once_and_each_key_in_order(
    steps: list[str | None], cost: dict[str, float]
) -> None:
    waiting = everything()
    numbers = count()
    put: list[str] = []
    out: list[str] = []
    for step in steps:
        if step is not None:
            put.append(f"{step}{next(numbers)}")
            waiting.add(step, put[-1])
        elif len(out) < len(put):
            out += served(waiting, cost, 1)
    out += served(waiting, cost, len(put) - len(out))
    assert waiting.pop() is None
    assert sorted(out) == sorted(put)
    for key in "abcd":
        assert [i for i in out if i[0] == key] == [i for i in put if i[0] == key]


@given(st.integers(1, 5), st.integers(1, 10))
def test_no_key_is_a_turn_ahead_of_another_that_waits(keys: int, each: int) -> None:
    waiting = everything()
    names = "abcde"[:keys]
    for name in names:
        for number in range(each):
            waiting.add(name, f"{name}{number}")
    taken = dict.fromkeys(names, 0)
    for _ in range(keys * each):
        item = waiting.pop()
        assert item is not None
        taken[item[0]] += 1
        waiting.charge(item[0], 1.0)
        assert max(taken.values()) - min(taken.values()) <= 1
