"""What is foreseen, against what then happens to the same dispatcher."""

from __future__ import annotations

import pytest

from schemas.records import BudgetHold
from streams.domain.forecast.forecast import HORIZON_MS
from tests.support.dispatch_play import Play, Server
from tests.support.workers import HOUR_MS, NOW, opened

#: A forecast may be wrong by this part of the time that was left, and by so many seconds.
ERROR, ERROR_S = 0.12, 3.0


def check(play: Play, *, error: float = ERROR) -> None:
    """Foresees now, plays to the end, and compares."""
    made_at_s, outlooks = play.elapsed_s, play.outlooks()
    play.run_to_the_end()
    for batch_id, outlook in outlooks.items():
        assert outlook.eta_ms is not None, batch_id
        foreseen_s = (outlook.eta_ms - NOW) / 1000
        ended_s = play.ended_at[batch_id] / 1000
        allowed = ERROR_S + error * (ended_s - made_at_s)
        assert foreseen_s == pytest.approx(ended_s, abs=allowed), (batch_id, foreseen_s, ended_s)


def test_one_batch_alone() -> None:
    play = Play([Server("w", "p", 16, 1.0, 0)])
    play.open(opened("b", 3000))
    play.run(20)
    check(play)


def test_tenants_take_turns_and_a_tenant_s_batches_go_one_after_the_other() -> None:
    play = Play([Server("w", "p", 16, 0.5, 0)])
    play.open(opened("a late", 800, tenant="a", deadline_ms=NOW + 9 * HOUR_MS))
    play.open(opened("a soon", 400, tenant="a", deadline_ms=NOW + 5 * HOUR_MS))
    play.open(opened("a first", 300, tenant="a", deadline_ms=NOW + 9 * HOUR_MS, priority=3))
    play.open(opened("b", 1500, tenant="b"))
    play.open(opened("c", 200, tenant="c"))
    play.run(15)
    check(play)


def test_several_pools_some_of_them_shared() -> None:
    play = Play([Server("w0", "p", 8, 0.5, 0), Server("w1", "q", 16, 1.0, 1)])
    play.open(opened("p only", 600, tenant="a", routes=(("p",),)))
    play.open(opened("either", 900, tenant="b", routes=(("p", "q"),)))
    play.open(opened("q only", 500, tenant="a", routes=(("q",),)))
    play.open(opened("later", 400, tenant="a", routes=(("p", "q"),), priority=-1))
    play.run(15)
    check(play)


def test_controllers_that_share_the_workers_each_foresee_their_own() -> None:
    play = Play([Server("w", "p", 16, 0.5, 0)], controllers=2)
    play.open(opened("a", 900, tenant="a"), 0)
    play.open(opened("b", 400, tenant="b"), 0)
    play.open(opened("c", 1200, tenant="c"), 1)
    play.run(15)
    check(play, error=0.2)


def test_a_large_line_takes_its_tenant_s_turn_for_longer() -> None:
    play = Play([Server("w", "p", 16, 0.5, 0)])
    play.benches[0].bytes_of["large"] = 30_000
    play.open(opened("large", 400, tenant="a"))
    play.open(opened("small", 1200, tenant="b"))
    play.run(15)
    check(play)


def test_a_batch_that_is_out_entirely_ends_about_a_call_later() -> None:
    play = Play([Server("w", "p", 16, 4.0, 0)])
    play.open(opened("warm", 40))
    play.run_to_the_end()
    play.open(opened("b", 8))
    play.run(1)
    check(play)


def test_nothing_is_foreseen_where_nothing_is_known() -> None:
    play = Play([Server("w", "p", 0, 1.0, 0)])
    play.open(opened("b", 10))
    play.open(opened("nowhere", 10, routes=((),)))
    play.run(1)
    assert {o.eta_ms for o in play.outlooks().values()} == {None}


def test_a_paused_batch_has_no_end_and_holds_nobody_up() -> None:
    play = Play([Server("w", "p", 16, 0.5, 0)])
    play.open(opened("b", 500))
    play.open(opened("paused", 500, deadline_ms=NOW + 1000 * 3000, paused=True))
    play.run(10)
    assert play.outlooks()["paused"].eta_ms is None
    eta_ms = play.outlooks()["b"].eta_ms
    assert eta_ms is not None
    assert eta_ms < NOW + 25_000


def test_a_batch_that_waits_for_room_ends_after_those_before_it() -> None:
    play = Play([Server("w", "p", 16, 0.5, 0)])
    play.open(opened("first", 500))
    play.open(opened("waits", 500, created_at_ms=NOW + 1, held=True))
    play.run(10)
    outlooks = play.outlooks()
    assert (outlooks["first"].queued, outlooks["waits"].queued) == (False, True)
    first, waits = outlooks["first"].eta_ms, outlooks["waits"].eta_ms
    assert first is not None
    assert waits is not None
    assert waits - first == pytest.approx(500 / 32 * 1000, rel=0.2)


def test_a_batch_without_money_has_no_end_and_holds_nobody_up() -> None:
    hold = BudgetHold(
        reason="", scope="", period="", budget_micros=1, spent_micros=1, currency="usd"
    )
    play = Play([Server("w", "p", 16, 0.5, 0)])
    play.open(opened("first", 500, held=True))
    play.open(opened("second", 500, created_at_ms=NOW + 1))
    play.run(10)
    found = play.forecasters[0].outlooks({}, play.now, {"first": hold})
    first, second = sorted(found, key=lambda outlook: outlook.batch_id)
    assert (first.eta_ms, first.hold, first.queued) == (None, hold, False)
    assert second.eta_ms is not None
    assert second.eta_ms < NOW + 25_000


def test_a_pace_that_dies_moves_the_end_away_but_never_past_the_horizon_or_into_the_past() -> None:
    play = Play([Server("w", "p", 16, 0.5, 0)])
    play.open(opened("b", 5000))
    play.run(10)
    before = play.outlooks()["b"].eta_ms
    play.servers[0].slots = 0
    for _ in range(6):
        play.run(60)
        after = play.outlooks()["b"].eta_ms
        assert before is not None
        assert after is not None
        assert before < after <= play.now + HORIZON_MS
        before = after
