"""What of the forecasts is told: what changed for whoever looks, and no more than that."""

from __future__ import annotations

from dataclasses import replace

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from schemas.records import BudgetHold
from streams.domain.forecast.forecast import Outlook
from streams.domain.forecast.news import QUIET_MS, REPEAT_MS, News
from tests.support.workers import HOUR_MS, NOW

ENDS = NOW + HOUR_MS


def outlook(eta_s: int | None = 600, position: int | None = 0, batch_id: str = "b") -> Outlook:
    return Outlook(batch_id, ENDS, None if eta_s is None else NOW + 1000 * eta_s, position)


def told(news: News, at_s: int, *outlooks: Outlook) -> list[str]:
    return [f.batch_id for f in news.pick(outlooks, NOW + 1000 * at_s)]


def test_a_batch_is_told_of_at_once_and_again_after_a_while() -> None:
    news = News()
    assert told(news, 0, outlook(3000)) == ["b"]
    for second in range(1, REPEAT_MS // 1000, 7):
        assert told(news, second, outlook(3000)) == []
    assert told(news, REPEAT_MS // 1000, outlook(3000)) == ["b"]


def test_an_end_that_moves_a_little_is_no_news() -> None:
    news = News()
    assert told(news, 0, outlook(600)) == ["b"]
    assert told(news, 10, outlook(640)) == []
    assert told(news, 20, outlook(700)) == ["b"]


def test_a_place_a_risk_and_a_first_or_lost_end_are_news() -> None:
    for before, after in (
        (outlook(600, 1), outlook(600, 0)),
        (outlook(3599), outlook(3601)),
        (outlook(None), outlook(600)),
        (outlook(600), outlook(None)),
        (outlook(None, 0), outlook(None, None)),
    ):
        news = News()
        told(news, 0, before)
        assert told(news, 10, after) == ["b"]


def test_the_first_end_that_is_known_is_told_at_once() -> None:
    news = News()
    told(news, 0, outlook(None))
    assert told(news, 2, outlook(600)) == ["b"]
    assert told(news, 4, outlook(3000)) == []


def test_that_a_batch_has_no_money_or_has_it_again_is_told_at_once() -> None:
    hold = BudgetHold(
        reason="", scope="", period="", budget_micros=1, spent_micros=1, currency="usd"
    )
    held = replace(outlook(None), hold=hold)
    news = News()
    told(news, 0, outlook(600))
    assert told(news, 1, held) == ["b"]
    more = replace(held, hold=msgspec.structs.replace(hold, spent_micros=2))
    assert told(news, 2, more) == []
    assert told(news, 3, outlook(600)) == ["b"]


def test_an_end_that_is_about_to_pass_is_replaced_before_it_does() -> None:
    news = News()
    told(news, 0, outlook(20))
    assert told(news, 16, outlook(22)) == ["b"]


def test_a_batch_that_has_left_is_forgotten() -> None:
    news = News()
    told(news, 0, outlook(), outlook(batch_id="c"))
    assert told(news, 10, outlook()) == []
    assert told(news, 20, outlook(), outlook(batch_id="c")) == ["c"]


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 2000)), min_size=1, max_size=60))
def test_of_one_batch_little_is_told_however_wild_its_forecast(
    looks: list[tuple[int, int]],
) -> None:
    news, now_ms, last_ms = News(), NOW, None
    for step_ms, eta_s in looks:
        now_ms += step_ms
        if news.pick([outlook(eta_s)], now_ms):
            assert last_ms is None or now_ms - last_ms >= QUIET_MS
            last_ms = now_ms
