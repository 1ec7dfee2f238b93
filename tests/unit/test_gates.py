"""Gates in a batch-worker: what comes through `capacity` decides how many calls it may make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from schemas.metrics import Metrics
from schemas.records import ControllerLoad, DueLines, PoolBacklog
from streams.batch_worker.gate_meter import GateMeter
from streams.batch_worker.pool import MIN_PREFETCH
from streams.domain.upstreams import UpstreamTableError, parse_upstreams
from tests.support.gates import MOST, POOL, Site

YEAR_MS = 365 * 86_400_000


def test_without_a_realtime_lane_batch_runs_at_full_speed_once_it_has_listened() -> None:
    site = Site()
    site.run(1.0)
    assert (site.worker.part, site.worker.reason) == (2, "stale")
    site.run(1.0)
    assert (site.worker.part, site.worker.reason) == (MOST, "silence")


def test_beside_an_idle_lane_batch_runs_at_full_speed_if_it_can_leave_in_time() -> None:
    site = Site(most=64, abort=True)
    site.run(0.5, lane=0)
    assert (site.worker.part, site.worker.reason) == (64, "silence")
    site = Site(most=64)
    site.run(0.5, lane=0)
    assert (site.worker.part, site.worker.reason) == (32, "silence")
    site.worker.pool.calls.call_s = 0.2
    site.run(0.5, lane=0)
    assert (site.worker.part, site.worker.reason) == (64, "silence")


def test_an_upstream_that_is_off_has_no_gate() -> None:
    upstream = {"name": POOL, "base_url": "http://h/v1", "models": ["*"], "yield": False}
    table = parse_upstreams({"upstreams": [upstream]})
    assert table.pools[POOL].yields is None


def test_a_burst_takes_the_credits_away_within_a_second_and_its_end_gives_them_back() -> None:
    site = Site(abort=True)
    site.run(3.0, lane=0)
    assert site.worker.pool.credits() == MOST + MIN_PREFETCH
    changes = site.worker.changes
    site.run(1.0, lane=40)
    assert site.worker.part <= 4
    assert site.worker.pool.credits() <= 4 + MIN_PREFETCH
    assert site.worker.changes > changes, "it is published"
    site.run(5.0, lane=0)
    assert site.worker.part == MOST


def test_lines_that_wait_for_the_sandbox_have_no_other_gate() -> None:
    site = Site()
    site.run(2.0, lane=0)
    site.run(1.0, lane=40)
    renders = site.worker.pools[f"{POOL}#templates"]
    assert (renders.part, renders.reason) == (site.worker.part, site.worker.reason)


def test_a_gate_that_leaves_nothing_takes_all_credits() -> None:
    site = Site(workers=3, floor=1)
    site.run(3.0, lane=0)
    site.run(6.0)
    assert site.total == 1
    credits_ = sorted(worker.pool.credits() for worker in site.workers)
    assert credits_ == [0, 0, 1 + MIN_PREFETCH]


def test_workers_that_get_nothing_take_turns() -> None:
    site = Site(workers=3, floor=1)
    site.run(3.0, lane=0)
    had = set()
    for _ in range(12):
        site.run(5.0)
        had |= {worker.name for worker in site.workers if worker.part}
        assert site.total <= 1
    assert had == {"b0", "b1", "b2"}


def test_a_lane_that_falls_silent_means_the_floor_until_it_speaks_again() -> None:
    site = Site()
    site.run(3.0, lane=0)
    site.run(4.0)
    assert (site.worker.part, site.worker.reason) == (2, "stale")
    site.run(60.0)
    assert (site.worker.part, site.worker.reason) == (2, "stale")
    site.run(1.0, lane=0)
    assert (site.worker.part, site.worker.reason) == (MOST, "silence")


def test_a_worker_that_starts_while_every_lane_is_dead_stays_at_its_floor_until_one_speaks() -> (
    None
):
    site = Site(workers=2)
    site.run(3.0, lane=0)
    dead = site.load(7, worker="dead")
    for away_s in (5.0, 86_400.0):
        site.run(5.0)
        site.clock.advance(away_s)
        site.restart(past=(dead,))
        site.run(60.0)
        assert (site.total, site.worker.reason) == (2, "stale")
        site.clock.advance(-7200)
        site.run(60.0)
        assert (site.total, site.worker.reason) == (2, "stale"), "also with a clock set back"
    # Another one than that which died, whose goodbye is then enough.
    site.run(20.0, lane=0)
    assert (site.total, site.worker.reason) == (2 * MOST, "silence")
    site.say(0, stopping=True)
    site.run(20.0)
    assert site.total == 2 * MOST


def test_a_worker_that_starts_after_a_lanes_goodbye_or_beside_another_pools_is_at_full_speed() -> (
    None
):
    site = Site()
    gone = site.load(0, stopping=True)
    elsewhere = site.load(3, worker="r1", pool={"pool": "elsewhere"})
    site.restart(past=(gone, elsewhere))
    site.run(2.0)
    assert (site.worker.part, site.worker.reason) == (MOST, "silence")


def test_until_the_past_is_known_a_worker_stays_at_its_floor() -> None:
    site = Site()
    site.restart(past=None)
    site.run(30.0)
    assert (site.worker.part, site.worker.reason) == (2, "stale")
    site.worker.gates.remember(())
    site.run(0.2)
    assert (site.worker.part, site.worker.reason) == (MOST, "silence")


def test_a_lane_that_is_gone_for_good_can_be_written_off_in_the_table() -> None:
    site = Site(signals=[])
    site.restart(past=(site.load(7),))
    site.run(2.0)
    assert (site.worker.part, site.worker.reason) == (MOST, "silence")


def test_a_lane_that_said_goodbye_is_not_missed() -> None:
    site = Site(abort=True)
    site.run(3.0, lane=0)
    site.say(0, stopping=True)
    for _ in range(50):
        site.run(0.1)
        assert site.worker.part == MOST


def test_calls_that_a_lane_leaves_with_are_not_counted_for_ever() -> None:
    site = Site(abort=True)
    site.run(3.0, lane=5)
    site.say(5, stopping=True)
    assert site.worker.part <= 4
    site.run(8.0)
    assert site.worker.part == MOST


@pytest.mark.parametrize(
    "lie",
    [
        {"at_ms": -YEAR_MS},
        {"at_ms": YEAR_MS},
        {"pool": {"in_flight": -1}},
        {"pool": {"in_flight": 1 << 40}},
        {"pool": {"gaps": 3, "gaps_us": 0}},
        {"pool": {"gaps": 3, "gaps_us": -5}},
        {"pool": {"ttft_us": (0,)}},
        {"pool": {"ttft_us": (-7,)}},
    ],
)
def test_a_load_that_can_not_be_true_means_the_floor_until_a_true_one_comes(
    lie: dict[str, Any],
) -> None:
    site = Site()
    site.run(3.0, lane=0)
    if "at_ms" in lie:
        lie = {"at_ms": site.clock.ms + lie["at_ms"]}
    else:
        lie = {"pool": {"ttft_sent_ms": (site.clock.ms,), **lie["pool"]}}
    site.say(1, **lie)
    assert (site.worker.part, site.worker.reason) == (2, "invalid")
    site.run(2.0)
    assert site.worker.part == 2
    site.run(1.0, lane=0)
    assert site.worker.reason != "invalid"


def test_a_clock_that_is_set_back_is_survived() -> None:
    site = Site()
    site.run(3.0, lane=5)
    site.clock.advance(-3600)
    site.run(3.0, lane=0)
    assert (site.worker.part, site.worker.reason) == (MOST, "silence")


def test_twenty_workers_share_one_limit_and_do_not_oscillate() -> None:
    site = Site(workers=20, highest=100, abort=True)
    site.run(3.0, lane=0)
    assert site.total == 100
    site.run(1.0, lane=40)
    assert site.total <= 4
    totals = []
    for _ in range(30):
        site.run(0.1, lane=40)
        totals.append(site.total)
    assert max(totals) <= 4
    site.run(5.0, lane=0)
    totals = []
    for _ in range(50):
        site.run(0.1, lane=0)
        totals.append(site.total)
    assert set(totals) == {100}


def test_work_that_is_due_gets_its_calls_where_the_window_goes_first() -> None:
    parts = {}
    for protect in ("realtime", "window"):
        site = Site(most=64, protect=protect)
        site.worker.pool.calls.call_s = 5.0
        site.run(2.0, lane=0)
        for _ in range(3):
            due = DueLines(deadline_ms=site.clock.ms + 600_000, lines=1200)
            backlog = PoolBacklog(pool=POOL, lines=1200, due=(due,))
            load = ControllerLoad(controller="c", at_ms=site.clock.ms, pools=(backlog,))
            site.worker.gates.hear(load)
            site.run(1.0, lane=40)
        parts[protect] = site.worker.part
    assert parts["realtime"] <= 4
    assert 12 <= parts["window"] <= 16


def test_a_model_of_its_own_limit_yields_in_its_own_way() -> None:
    upstream = {
        "name": "u",
        "base_url": "http://h/v1",
        "models": {
            "a": {"max_in_flight": 4, "yield": {"target": 0.25}},
            "b": {"max_in_flight": 4},
            "c": {"max_in_flight": 4, "yield": "off"},
        },
        "yield": {"floor": 3, "abort": True, "protect": "window", "signals": ["engine"]},
    }
    pools = parse_upstreams({"upstreams": [upstream]}).pools
    own, same = pools["u/a"].yields, pools["u/b"].yields
    assert own is not None
    assert (own.target, own.floor, own.abort, own.protect) == (0.25, 3, True, "window")
    assert same == pools["u"].yields
    assert pools["u/c"].yields is None


@pytest.mark.parametrize(
    ("yields", "place"),
    [
        ({"target": 0}, "target"),
        ({"floor": 0}, "floor"),
        ({"protect": "nobody"}, "protect"),
        ({"signals": ["stars"]}, "signals"),
        ({"metrics_url": "ftp://h"}, "metrics_url"),
        ({"taget": 1}, "taget"),
    ],
)
def test_a_wrong_table_is_refused_by_name(yields: dict[str, Any], place: str) -> None:
    upstream = {"name": "u", "base_url": "http://h/v1", "models": ["*"], "yield": yields}
    with pytest.raises(UpstreamTableError, match=rf"upstreams\[0\].*{place}"):
        parse_upstreams({"upstreams": [upstream]})


def test_a_model_without_a_limit_of_its_own_can_not_yield_in_its_own_way() -> None:
    models = {"a": {"yield": {"target": 0.25}}}
    upstream = {"name": "u", "base_url": "http://h/v1", "models": models}
    with pytest.raises(UpstreamTableError, match="max_in_flight"):
        parse_upstreams({"upstreams": [upstream]})


def test_each_loss_of_a_signal_and_its_return_are_one_log_line() -> None:
    site = Site()
    site.run(3.0, lane=0)
    with capture_logs() as logs:
        site.run(10.0)
        site.run(5.0, lane=0)
        site.say(1, pool={"in_flight": -1})
        site.run(2.0)
        site.run(5.0, lane=0)
    told = [(line["action"], line.get("reason"), line.get("signal")) for line in logs]
    assert told == [
        ("gate_blind", "stale", "realtime"),
        ("gate_sees", "silence", None),
        ("gate_blind", "invalid", "realtime"),
        ("gate_sees", "silence", None),
    ]
    assert logs[0]["age_s"] > 3


def test_a_signal_that_never_came_is_told_and_listening_is_not() -> None:
    with capture_logs() as logs:
        Site().run(3.0)
    assert logs == []
    with capture_logs() as logs:
        Site(metrics_url="http://h/metrics").run(3.0, lane=0)
    assert [(line["action"], line["signal"], line["age_s"]) for line in logs] == [
        ("gate_blind", "engine", None)
    ]


def test_the_metrics_tell_what_the_gate_decides_and_knows() -> None:
    site = Site(most=64, abort=True)
    metrics = Metrics()
    meter = GateMeter(metrics)
    (gate,) = site.worker.gates.by_pool.values()
    meter.show(gate)
    site.run(3.0, lane=0)
    meter.show(gate)
    value = _values(metrics.registry)
    assert value("limit_calls") == value("part_calls") == 64
    assert value("reason", reason="silence") == 1
    assert 0 <= value("signal_age_seconds", signal="realtime") <= 1
    site.run(30.0, lane=5)
    gate.aborted = 7
    meter.show(gate)
    site.run(4.0)
    meter.show(gate)
    assert (value("limit_calls"), value("reason", reason="stale")) == (2, 1)
    assert value("reason", reason="silence") == 0
    assert value("aborted_calls_total") == 7
    baseline, line = (value("first_token_seconds", kind=kind) for kind in ("baseline", "line"))
    assert 0 < baseline < line
    assert value("first_token_seconds", kind="measured") == pytest.approx(0.08)


def _values(registry: CollectorRegistry) -> Callable[..., float]:
    def value(name: str, **labels: str) -> float:
        found = registry.get_sample_value(f"backhaul_gate_{name}", {"pool": POOL, **labels})
        assert found is not None
        return found

    return value
