"""`backhaul pause`, `resume` and `change`, and how paused batches and priorities are shown."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from api.cli.control import moment, seconds_in
from api.cli.failure import Misuse
from api.cli.main import app
from api.cli.pace import Pace
from api.cli.view import view_of
from api.cli.watchers import pace_text
from tests.support.fake_gateway import API_KEY, FakeGateway, a_batch, running_gateway


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeGateway]:
    with running_gateway() as fake:
        monkeypatch.setenv("BACKHAUL_BASE_URL", fake.base_url)
        monkeypatch.setenv("BACKHAUL_API_KEY", API_KEY)
        monkeypatch.setenv("BACKHAUL_DATA_DIR", str(tmp_path / "data"))
        monkeypatch.setenv("COLUMNS", "80")
        yield fake


def backhaul(*args: str) -> Result:
    return CliRunner().invoke(app, list(args), prog_name="backhaul")


def test_pause_and_resume_say_what_the_batch_does_now(gateway: FakeGateway) -> None:
    gateway.add_batch(a_batch("b", counts=(10, 4, 0)))
    paused = backhaul("pause", "b")
    assert (paused.exit_code, paused.stdout) == (0, "b paused\n")
    assert "4 of 10 lines" in paused.stderr
    resumed = backhaul("resume", "b")
    assert (resumed.exit_code, resumed.stdout) == (0, "b in_progress\n")
    assert json.loads(backhaul("pause", "b", "--json").stdout)["paused_at"]


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_a_batch_that_has_ended_is_refused_in_the_servers_words(
    gateway: FakeGateway, verb: str
) -> None:
    gateway.add_batch(a_batch("b", "completed"))
    result = backhaul(verb, "b")
    assert result.exit_code == 1
    assert f"Cannot {verb} a batch with status 'completed'." in result.stderr


def test_change_sends_what_was_given_and_nothing_else(gateway: FakeGateway) -> None:
    gateway.add_batch(a_batch("b", counts=(10, 4, 0)))
    result = backhaul("change", "b", "--priority", "-5")
    assert (result.exit_code, result.stdout) == (0, "b in_progress\n")
    assert "priority -5" in result.stderr
    backhaul("change", "b", "--expires-at", "1777651200")
    before = int(time.time())
    backhaul("change", "b", "--priority", "0", "--expires-in", "1d12h")
    priority, at, both = gateway.changes
    assert (priority, at) == ({"priority": -5}, {"expires_at": 1_777_651_200})
    assert both["priority"] == 0
    assert before + 129_600 <= both["expires_at"] <= int(time.time()) + 129_600


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "Give --priority, --expires-in or --expires-at."),
        (["--expires-in", "1h", "--expires-at", "1777651200"], "one of"),
        (["--expires-in", "soon"], "'soon'"),
        (["--expires-in", ""], "no time"),
        (["--expires-in", "0m"], "'0m'"),
        (["--expires-at", "tomorrow"], "'tomorrow'"),
        (["--priority", "101"], "equal to 100"),
    ],
)
def test_a_wrong_change_is_wrong_usage_and_sends_nothing(
    gateway: FakeGateway, args: list[str], says: str
) -> None:
    result = backhaul("change", "b", *args)
    assert result.exit_code == 2
    assert says in result.stderr
    assert gateway.requests == []


def test_times_are_read_as_they_are_said() -> None:
    assert [seconds_in(s) for s in ("45s", "90m", "12h", "2d", "1d2h3m4s")] == [
        *(45, 5400, 43_200, 172_800, 93_784)
    ]
    assert moment("2026-05-01T16:00:00+00:00") == moment("2026-05-01T18:00+02:00") == 1_777_651_200
    assert moment("2026-05-01T16:00Z") == 1_777_651_200
    for wrong in ("12", "1.5h", "h", "-1h", "12h1d"):
        with pytest.raises(Misuse):
            seconds_in(wrong)


def test_get_and_list_show_a_pause_and_a_priority(gateway: FakeGateway) -> None:
    now = int(time.time())
    gateway.add_batch(a_batch("b", counts=(10, 4, 0), paused_at=now - 180, priority=7))
    gateway.add_batch(a_batch("plain", counts=(10, 4, 0)))
    shown = backhaul("get", "b").stdout
    assert "(3 min ago)" in shown
    assert "in_progress" in shown
    assert "priority:    7" in shown
    plain, paused = backhaul("list").stdout.splitlines()[1:]
    assert (plain.split()[1], paused.split()[1]) == ("in_progress", "paused")
    assert paused.endswith("priority 7")
    assert "priority" not in plain
    plain_shown = backhaul("get", "plain").stdout
    assert "paused" not in plain_shown
    assert "priority" not in plain_shown


def test_get_and_list_show_what_is_foreseen(gateway: FakeGateway) -> None:
    eta = int(time.time()) + 7200
    gateway.add_batch(
        a_batch("b", counts=(10, 4, 0), eta=eta, at_risk=True, queue_position=3, queued=False)
    )
    gateway.add_batch(a_batch("plain", counts=(10, 4, 0)))
    shown = backhaul("get", "b").stdout
    assert "at risk: later than it expires" in shown
    assert "queue:       behind 3 of your batches" in shown
    plain, foreseen = backhaul("list").stdout.splitlines()[1:]
    assert "left, at risk, behind 3 of your batches" in foreseen
    assert "left" not in plain
    assert "eta" not in backhaul("get", "plain").stdout


def test_watch_tells_when_it_is_paused_resumed_and_changed(gateway: FakeGateway) -> None:
    counts = (10, 4, 0)
    gateway.add_batch(
        a_batch("b", counts=counts),
        a_batch("b", counts=counts, paused_at=5),
        a_batch("b", counts=counts, paused_at=5, priority=3),
        a_batch("b", counts=counts, priority=3),
        a_batch("b", "completed", counts=(10, 10, 0), priority=3),
    )
    told = backhaul("watch", "b", "--interval", "0.05").stderr.splitlines()
    words = [line.split()[1] for line in told]
    assert words == ["in_progress", "paused", "paused", "in_progress", "completed"]
    assert ["priority 3" in line for line in told] == [False, False, True, True, True]


def test_submit_sends_a_priority(gateway: FakeGateway, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(b'{"custom_id":"1","method":"POST","url":"/v1/embeddings","body":{}}\n')
    assert backhaul("submit", str(path), "--priority", "9").exit_code == 0
    assert gateway.created[0][0]["priority"] == 9


def test_retry_prints_the_new_batch_and_sends_only_what_was_given(gateway: FakeGateway) -> None:
    gateway.add_batch(a_batch("b", "completed", error_file_id="file-e"))
    result = backhaul("retry", "b")
    assert (result.exit_code, result.stdout) == (0, "b-again\n")
    waited = backhaul("retry", "b", "--wait", "--priority", "5", "--metadata", "try=2")
    assert waited.exit_code == 0
    assert "2 of 2 lines" in waited.stdout
    assert gateway.changes == [{}, {"priority": 5, "metadata": {"try": "2"}}]
    assert json.loads(backhaul("retry", "b", "--json").stdout)["origin_batch_id"] == "b"


def test_retry_where_nothing_failed_is_refused_in_the_servers_words(gateway: FakeGateway) -> None:
    gateway.add_batch(a_batch("b", "completed"))
    result = backhaul("retry", "b")
    assert result.exit_code == 1
    assert "it has no failed lines" in result.stderr


_HOLD: dict[str, Any] = {
    "reason": "budget_reached",
    "scope": "key",
    "period": "day",
    "until": 1_796_083_200,
    "budget": "100.000000",
    "spent": "100.020000",
    "currency": "usd",
    "message": "The budget is used up; resuming does not lift this.",
}


def test_a_batch_without_money_says_so_wherever_it_is_shown(gateway: FakeGateway) -> None:
    gateway.add_batch(a_batch("b", counts=(10, 4, 0), hold=_HOLD))
    short = "held: budget of the key used up, 100.020000 of 100.000000 usd"
    assert short in backhaul("list").stdout
    assert f"held:        {_HOLD['message']}\n" in backhaul("get", "b").stdout
    resumed = backhaul("resume", "b")
    assert resumed.exit_code == 0
    assert _HOLD["message"] in resumed.stderr
    shown = view_of(a_batch("b", counts=(10, 4, 0), hold=_HOLD))
    assert pace_text(shown, Pace(), 0.0) == short
