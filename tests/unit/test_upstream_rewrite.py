"""What stands in a request's body for an upstream, whatever its caller wrote there."""

from __future__ import annotations

import json

import pytest

from streams.domain.upstreams import (
    Lane,
    Priorities,
    Rewrite,
    Upstream,
    UpstreamTableError,
    parse_upstreams,
)
from tests.support.worker_bench import Bench, lines, until
from tests.support.worker_prompts import PLAIN, ask, planned


def an_upstream(**options: object) -> Upstream:
    entry = {"name": "gpu", "base_url": "http://gpu/v1", "models": ["m"], **options}
    return parse_upstreams({"upstreams": [entry]}).upstreams["gpu"]


@pytest.mark.parametrize(("lane", "priority"), [(Lane.BATCH, 10), (Lane.REALTIME, 0)])
@pytest.mark.parametrize("written", [{}, {"priority": -5}, {"priority": "high"}])
def test_a_call_has_the_priority_of_its_lane_whatever_its_caller_wrote(
    lane: Lane, priority: int, written: dict[str, object]
) -> None:
    rewrite = Rewrite(an_upstream(priorities={}), lane)
    body = json.dumps({"model": "m", "n": 1, **written}).encode()
    assert json.loads(rewrite.body(body, "m")) == {"model": "m", "n": 1, "priority": priority}


def test_priorities_and_names_go_together() -> None:
    upstream = an_upstream(
        models={"m": {"upstream_name": "inside"}}, priorities={"batch": 3, "realtime": -3}
    )
    body = b'{"model": "m"}'
    batch = json.loads(Rewrite(upstream, Lane.BATCH).body(body, "m"))
    assert batch == {"model": "inside", "priority": 3}
    assert json.loads(Rewrite(upstream, Lane.REALTIME).body(body, "other"))["priority"] == -3


@pytest.mark.parametrize("said", [b"null", b'-5,"priority":-6', b'1,"\\u0070riority":-6', b"[[]]"])
def test_no_way_of_writing_it_jumps_the_queue(said: bytes) -> None:
    rewrite = Rewrite(an_upstream(priorities={}), Lane.BATCH)
    sent = rewrite.body(b'{"model":"m","priority":%b}' % said, "m")
    assert sent == b'{"model":"m","priority":10}'


def test_real_time_callers_choose_where_the_operator_lets_them_and_lines_never_do() -> None:
    models = {"alias": {"upstream_name": "real"}}
    upstream = an_upstream(models=models, priorities={"realtime_callers_choose": True})
    own, none = b'{"model":"alias","priority":4}', b'{"model":"m"}'
    realtime, batch = Rewrite(upstream, Lane.REALTIME), Rewrite(upstream, Lane.BATCH)
    assert json.loads(realtime.body(own, "alias")) == {"model": "real", "priority": 4}
    assert json.loads(realtime.body(none, "m")) == {"model": "m", "priority": 0}
    assert json.loads(batch.body(own, "alias")) == {"model": "real", "priority": 10}


def test_an_upstream_without_either_gets_the_very_bytes() -> None:
    body = b'{ "model":"m", "priority": 4 }'
    assert Rewrite(an_upstream(), Lane.BATCH).body(body, "m") is body


def test_priorities_are_whole_numbers_by_lane() -> None:
    with pytest.raises(UpstreamTableError, match="priorities"):
        an_upstream(priorities={"batch": "low"})
    with pytest.raises(UpstreamTableError, match="priorities"):
        an_upstream(priorities={"bulk": 1})


async def test_lines_carry_the_priority_of_batch_with_a_prompt_and_without() -> None:
    bench = Bench(priorities=Priorities(batch=7))
    pins = await planned(bench, PLAIN)
    bench.take(*lines(0), ask(1, priority=-1, variables={"text": "x"}), pins=pins)
    await until(lambda: len(bench.outcomes) == 2)
    assert [body["priority"] for body in bench.bodies()] == [7, 7]
