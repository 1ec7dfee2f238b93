"""The simulator's rules: what meets which attempt, what is counted, who waits."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import aclosing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.simulator.__main__ import options_from, parser
from streams.simulator.behaviour import LatencyBehaviour, RefusedError
from streams.simulator.bodies import BodyLog
from streams.simulator.call import BadRequestError, Call, Endpoint, parse_call, usage_of
from streams.simulator.conduct import (
    MAX_COMPLETION_TOKENS,
    ConductError,
    Fault,
    Latency,
    conduct_from,
)
from streams.simulator.fate import GOOD, Fate, fate_of
from streams.simulator.fleet import Fleet
from streams.simulator.ledger import Ledger


def a_call(key: str | None = "k", attempt: int = 1, script: str | None = None) -> Call:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "x" * 100}],
        "metadata": {"sim": script} if script else {},
    }
    if key is not None:
        body["user"] = key
    call = parse_call(Endpoint.CHAT, json.dumps(body).encode())
    call.attempt = attempt
    call.count_tokens(8, 32)
    return call


class TestFate:
    CONDUCT = conduct_from({"errors": {"503": 0.2, "400": 0.1}, "faults": {"cut": 0.2}})

    def test_it_depends_on_seed_key_and_attempt_only(self) -> None:
        def fates(seed: int) -> list[Fate]:
            return [fate_of(a_call(f"k{n}", n % 5 + 1), self.CONDUCT, seed) for n in range(200)]

        assert fates(1) == fates(1)
        assert fates(1) != fates(2)
        attempts = {fate_of(a_call("k", n), self.CONDUCT, 1) for n in range(1, 50)}
        assert len(attempts) == 4, "every attempt draws anew"

    def test_shares_come_out_about_right(self) -> None:
        fates = Counter(fate_of(a_call(f"k{n}"), self.CONDUCT, 7) for n in range(5000))
        assert fates[Fate(status=503)] == pytest.approx(1000, abs=120)
        assert fates[Fate(status=400)] == pytest.approx(500, abs=100)
        assert fates[Fate(fault=Fault.CUT)] == pytest.approx(1000, abs=120)
        assert fates[GOOD] == pytest.approx(2500, abs=150)

    def test_a_key_fails_at_most_max_failures_times(self) -> None:
        conduct = conduct_from({"errors": {"500": 1.0}, "max_failures": 2})
        assert [fate_of(a_call("k", n), conduct, 0).status for n in (1, 2, 3, 4)] == [
            500,
            500,
            None,
            None,
        ]

    def test_a_script_tells_each_attempt_and_its_last_step_stays(self) -> None:
        script = "503*2,429:3, cut ,ok,400"
        told = [fate_of(a_call("k", n, script), self.CONDUCT, 0) for n in range(1, 8)]
        assert told == [
            Fate(status=503),
            Fate(status=503),
            Fate(status=429, retry_after_s=3.0),
            Fate(fault=Fault.CUT),
            GOOD,
            Fate(status=400),
            Fate(status=400),
        ]

    @pytest.mark.parametrize("script", ["", "200", "nope", "503*x", "503**2", ","])
    def test_a_script_that_can_not_be_read_is_refused(self, script: str) -> None:
        call = a_call("k")
        call.script = script
        with pytest.raises(BadRequestError):
            fate_of(call, self.CONDUCT, 0)


class TestConduct:
    @pytest.mark.parametrize(
        "fields",
        [
            {"errors": {"200": 0.1}},
            {"errors": {"503": 1.1}},
            {"errors": {"503": 0.6}, "faults": {"cut": 0.6}},
            {"faults": {"explode": 0.1}},
            {"latency": "slow"},
            {"latency": "uniform:1"},
            {"latency": "-1"},
            {"latency": "nan"},
            {"completion_tokens": "0"},
            {"completion_tokens": "9-8"},
            {"completion_tokens": str(MAX_COMPLETION_TOKENS + 1)},
            {"no_such_option": 1},
            {"slots": -1},
        ],
    )
    def test_wrong_options_are_refused(self, fields: dict[str, object]) -> None:
        with pytest.raises(ConductError):
            conduct_from(fields)

    @pytest.mark.parametrize("text", ["0.2", "uniform:0.1,0.3", "exp:0.2", "lognormal:0.2,0.5"])
    def test_latencies_are_deterministic_and_about_as_said(self, text: str) -> None:
        latency = Latency.parse(text)
        draws = sorted(latency.draw(n) for n in range(1001))
        assert draws == sorted(latency.draw(n) for n in range(1001))
        assert draws[0] >= 0
        middle = 0.2 * 0.693 if text.startswith("exp") else 0.2
        assert draws[500] == pytest.approx(middle, rel=0.15)

    def test_a_models_own_options_lie_over_the_common_ones(self) -> None:
        fleet = Fleet((), {"latency": "0.5", "models": {"m": {"hang": True}}})
        own, other = fleet.engine("m"), fleet.engine("x")
        assert own is not None
        assert other is not None
        assert (own.conduct.hang, own.conduct.latency) == (True, "0.5")
        assert not other.conduct.hang
        fleet.configure({"latency": "0.1"})
        changed = fleet.engine("m")
        assert changed is not None
        assert (changed.conduct.hang, changed.conduct.latency) == (True, "0.1")
        fleet.configure({"models": {"m": None}})
        assert fleet.engine("m") is fleet.engine("x")

    def test_a_refused_change_changes_nothing(self) -> None:
        fleet = Fleet((), {"latency": "0.5"})
        before = fleet.shown()
        for change in (
            {"latency": "x"},
            {"slots": 1, "models": {"m": {"slots": -1}}},
            {"seed": "a"},
        ):
            with pytest.raises(ConductError):
                fleet.configure(change)
        assert fleet.shown() == before

    def test_named_models_are_the_only_ones(self) -> None:
        fleet = Fleet(("a",), {"models": {"b": {"hang": True}}})
        assert fleet.engine("a") is not None
        assert fleet.engine("b") is not None
        assert fleet.engine("c") is None


class TestCall:
    @given(st.integers(0, 10**6), st.integers(1, 10**6), st.integers(1, 50), st.integers(0, 50))
    def test_usage_is_within_its_bounds(self, chars: int, cap: int, low: int, more: int) -> None:
        prompt, completion = usage_of(chars, cap, low, low + more)
        assert prompt >= 1
        assert completion <= cap
        assert completion == cap or low <= completion <= low + more

    @pytest.mark.parametrize(
        ("endpoint", "body", "param"),
        [
            (Endpoint.CHAT, {"messages": [{}]}, "model"),
            (Endpoint.CHAT, {"model": "m"}, "messages"),
            (Endpoint.CHAT, {"model": "m", "messages": ["x"]}, "messages"),
            (Endpoint.CHAT, {"model": "m", "messages": [{}], "n": 0}, "n"),
            (Endpoint.CHAT, {"model": "m", "messages": [{}], "max_tokens": 0}, "max_tokens"),
            (Endpoint.EMBEDDINGS, {"model": "m"}, "input"),
            (Endpoint.EMBEDDINGS, {"model": "m", "input": []}, "input"),
            (Endpoint.EMBEDDINGS, {"model": "m", "input": "a", "dimensions": 0}, "dimensions"),
            (Endpoint.RESPONSES, {"model": "m"}, "input"),
            (Endpoint.COMPLETIONS, {"model": "m", "prompt": {}}, "prompt"),
        ],
    )
    def test_a_wrong_field_is_named(
        self, endpoint: Endpoint, body: dict[str, object], param: str
    ) -> None:
        with pytest.raises(BadRequestError) as caught:
            parse_call(endpoint, json.dumps(body).encode())
        assert caught.value.param == param

    @pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
    def test_what_is_not_an_object_is_refused(self, body: bytes) -> None:
        with pytest.raises(BadRequestError):
            parse_call(Endpoint.CHAT, body)

    def test_the_key_is_user_or_else_metadata_key(self) -> None:
        base = {"model": "m", "input": "x"}
        for body, key in (
            ({"user": "u", "metadata": {"key": "k"}}, "u"),
            ({"metadata": {"key": "k"}}, "k"),
            ({"metadata": "odd"}, None),
            ({"user": 7}, None),
            ({"user": "x" * 1000}, "x" * 256),
        ):
            call = parse_call(Endpoint.RESPONSES, json.dumps({**base, **body}).encode())
            assert call.key == key


class TestLedger:
    def test_counts_by_key_and_in_all(self) -> None:
        ledger = Ledger(max_keys=10)
        for outcome, ok in (("503", False), ("cut", False), ("200", True)):
            call = a_call("k")
            ledger.begin(call)
            ledger.end(call, outcome, ok=ok)
        report = ledger.report(keys=True)
        assert call.attempt == 3
        count = report["keys"]["k"]
        assert (count.attempts, count.ok, count.open) == (3, 1, 0)
        assert count.statuses == {"503": 1, "cut": 1, "200": 1}
        totals = report["totals"]
        assert (totals.attempts, totals.ok) == (3, 1)
        assert totals.prompt_tokens == call.prompt_tokens

    def test_memory_is_bounded_and_the_longest_unseen_go_first(self) -> None:
        ledger = Ledger(max_keys=3)
        for key in ("a", "b", "c", "a", "d"):
            ledger.begin(a_call(key))
        report = ledger.report(keys=True)
        assert set(report["keys"]) == {"c", "a", "d"}
        assert report["forgotten_keys"] == 1
        assert report["totals"].attempts == 5

    def test_a_reset_starts_the_attempts_anew(self) -> None:
        ledger = Ledger(max_keys=3)
        first, second = a_call("a"), a_call("a")
        ledger.begin(first)
        ledger.reset()
        ledger.begin(second)
        ledger.end(first, "200", ok=True)
        assert second.attempt == 1
        assert ledger.report(keys=False)["keys"] == {}

    def test_the_log_has_a_line_for_each_request(self, tmp_path: Path) -> None:
        path = tmp_path / "log.jsonl"
        ledger = Ledger(max_keys=3, log=path)
        call = a_call("a")
        ledger.begin(call)
        ledger.end(call, "200", ok=True)
        ledger.close()
        line = json.loads(path.read_text())
        assert (line["key"], line["attempt"], line["outcome"], line["ok"]) == ("a", 1, "200", True)
        assert line["usage"]["total_tokens"] == call.prompt_tokens + call.completion_tokens
        assert line["id"] == "chatcmpl-sim000000001"


class TestBodyLog:
    def test_it_appends_and_only_its_owner_may_read_it(self, tmp_path: Path) -> None:
        path = tmp_path / "bodies.jsonl"
        for number in range(2):
            log = BodyLog(path)
            log.record("/v1/chat/completions", b'{"n": %d}' % number, None)
            log.close()
        bodies = [json.loads(line)["body"] for line in path.read_text().splitlines()]
        assert bodies == ['{"n": 0}', '{"n": 1}']
        assert path.stat().st_mode & 0o077 == 0

    def test_the_command_line_asks_for_it(self) -> None:
        assert options_from(parser("simulate").parse_args([])).bodies is None
        args = parser("simulate").parse_args(["--bodies", "sent.jsonl"])
        assert options_from(args).bodies == Path("sent.jsonl")
        assert "callers' content" in " ".join(parser("simulate").format_help().split())


class TestSlots:
    async def test_calls_beyond_the_slots_wait_and_go_on_in_order(self) -> None:
        behaviour = LatencyBehaviour(conduct_from({"slots": 1}), 0)
        done: list[str] = []
        first = behaviour.tokens(a_call("first"))
        await anext(first)

        async def run(name: str) -> None:
            async with aclosing(behaviour.tokens(a_call(name))) as tokens:
                assert sum([count async for count in tokens]) > 0
                done.append(name)

        tasks = [asyncio.create_task(run(name)) for name in ("a", "b", "c")]
        await asyncio.sleep(0)
        assert behaviour.gauges() == {"running": 1, "waiting": 3}
        tasks[1].cancel()
        await first.aclose()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert done == ["a", "c"]
        assert behaviour.gauges() == {"running": 0, "waiting": 0}

    async def test_calls_beyond_the_queue_are_refused(self) -> None:
        behaviour = LatencyBehaviour(conduct_from({"slots": 1, "queue": 0}), 0)
        first = behaviour.tokens(a_call())
        await anext(first)
        with pytest.raises(RefusedError):
            await anext(behaviour.tokens(a_call()))
        await first.aclose()

    async def test_the_rate_limit_refuses_what_is_too_fast(self) -> None:
        behaviour = LatencyBehaviour(conduct_from({"rate_limit": 0.001, "burst": 2}), 0)
        assert not behaviour.instant
        for _ in range(2):
            assert [n async for n in behaviour.tokens(a_call())]
        with pytest.raises(RefusedError):
            await anext(behaviour.tokens(a_call()))

    async def test_a_hang_ends_when_it_is_switched_off(self) -> None:
        behaviour = LatencyBehaviour(conduct_from({"hang": True}), 0)
        waiting = asyncio.ensure_future(anext(behaviour.tokens(a_call())))
        await asyncio.sleep(0)
        assert not waiting.done()
        behaviour.retire()
        assert await waiting > 0
