"""How the live yield bench reads a gate's reaction from what workers publish."""

from __future__ import annotations

import math

from tests.bench.live_watch import Watched, reaction


def test_a_burst_is_over_when_the_limit_is_where_it_was() -> None:
    falling = [(0.0, 100, 90), (10.2, 60, 80), (10.4, 20, 30), (12.0, 18, 18), (15.0, 18, 18)]
    rising = [(20.5, 30, 20), (21.0, 96, 60), (22.0, 100, 99)]
    down_s, up_s = reaction(Watched([*falling, *rising]), 10.0, 20.0)
    assert math.isclose(down_s, 0.4)
    assert math.isclose(up_s, 1.0)


def test_a_limit_that_does_not_come_back_has_no_time() -> None:
    _, up_s = reaction(Watched([(0.0, 100, 90), (10.5, 20, 20), (21.0, 40, 40)]), 10.0, 20.0)
    assert math.isnan(up_s)
