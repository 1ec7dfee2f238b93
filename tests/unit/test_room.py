"""Room for requests: one tenant alone has most of it, and always leaves some."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from api.room import Room


def _greedy(room: Room, *tenants: str) -> list[int]:
    """What each has once all of them, in turns, have taken what they may."""
    held = dict.fromkeys(tenants, 0)
    while wanting := [tenant for tenant in tenants if not room.enough(tenant)]:
        for tenant in wanting:
            if not room.enough(tenant):
                room.take(tenant)
                held[tenant] += 1
    return list(held.values())


def test_a_tenant_alone_has_three_quarters() -> None:
    assert _greedy(Room(1000), "acme") == [750]
    few = [_greedy(Room(places), "acme")[0] for places in (1, 2, 3, 4, 5, 8)]
    assert few == [1, 1, 2, 3, 4, 6]


def test_those_who_want_all_have_the_same_and_leave_room_for_one_more() -> None:
    room = Room(700)
    assert _greedy(room, "acme", "rival") == [300, 300]
    assert _greedy(room, "third")[0] == 75
    assert not room.full


def test_a_newcomer_finds_room_and_what_is_freed_is_shared_out_again() -> None:
    room = Room(80)
    assert _greedy(room, "acme") == [60]
    assert _greedy(room, "rival") == [15]
    for _ in range(40):
        room.free("acme")
    assert room.enough("rival") is False


def test_the_last_place_is_for_a_tenant_that_has_none() -> None:
    room = Room(2)
    room.take("acme")
    assert (room.enough("acme"), room.enough("rival"), room.full) == (True, False, False)
    room.take("rival")
    assert (room.enough("third"), room.full) == (True, True)
    room.free("acme")
    assert (room.enough("acme"), room.enough("rival")) == (False, True)


@given(st.integers(1, 30), st.lists(st.tuples(st.sampled_from("abc"), st.booleans())))
def test_whatever_comes_and_goes_a_newcomer_is_let_in_unless_all_is_full(
    places: int, steps: list[tuple[str, bool]]
) -> None:
    room = Room(places)
    held = dict.fromkeys("abc", 0)
    for tenant, comes in steps:
        if comes and not room.enough(tenant):
            room.take(tenant)
            held[tenant] += 1
        elif not comes and held[tenant]:
            room.free(tenant)
            held[tenant] -= 1
        left = places - sum(held.values())
        assert left >= 0
        assert room.full is room.enough("newcomer") is (left == 0)
        # A tenant has all only where there is just one.
        assert max(held.values()) < max(places, 2)


def test_only_tenants_with_a_request_are_remembered() -> None:
    room = Room(8)
    for n in range(100):
        room.take(f"t{n}")
        room.free(f"t{n}")
    assert not room._held
