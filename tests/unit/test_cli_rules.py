"""What the CLI works out by itself: pace, words for a batch, when to go on waiting, addresses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api.cli.client import Client
from api.cli.failure import Exit, Failure, Misuse, ServerRefused, ServerUnreachable
from api.cli.follow import follow
from api.cli.http import HTTP, Answer, Json
from api.cli.main import COMMANDS
from api.cli.pace import Pace
from api.cli.place import normal_url, read_endpoint, resolve
from api.cli.view import BatchView, ago, duration, error_lines, size, view_of
from api.cli.watchers import LineWatcher, pace_text


def batch(status: str, done: int = 0, total: int = 100, **fields: Any) -> Json:
    counts = {"total": total, "completed": done, "failed": 0}
    return {"id": "b", "status": status, "request_counts": counts, **fields}


class TestPace:
    def test_it_says_nothing_before_it_can_know(self) -> None:
        pace = Pace()
        assert pace.lines_per_s() is None
        pace.observe(0, 5)
        assert pace.lines_per_s() is None
        pace.observe(0.1, 9)
        assert pace.seconds_left(10) is None

    def test_it_is_that_of_the_last_half_minute(self) -> None:
        pace = Pace()
        for second in range(100):
            pace.observe(second, 1000 * min(second, 50) + 10 * max(0, second - 50))
        assert pace.lines_per_s() == pytest.approx(10)
        assert pace.seconds_left(100) == pytest.approx(10)

    def test_a_standstill_has_no_end(self) -> None:
        pace = Pace()
        pace.observe(0, 5)
        pace.observe(60, 5)
        assert pace.lines_per_s() == 0
        assert pace.seconds_left(1) is None

    def test_its_memory_is_bounded(self) -> None:
        pace = Pace()
        for n in range(100_000):
            pace.observe(n, n)
        assert len(pace._seen) < 40


class TestView:
    def test_any_servers_batch_can_be_viewed(self) -> None:
        nulls = dict.fromkeys(("request_counts", "usage", "errors", "metadata"))
        for odd in ({}, {"id": "b"}, nulls):
            assert view_of(odd).total == 0

    @pytest.mark.parametrize(
        ("status", "completed", "failed", "well"),
        [
            ("completed", 3, 0, True),
            ("completed", 2, 1, True),
            ("completed", 0, 3, False),
            ("failed", 0, 0, False),
            ("expired", 3, 0, False),
            ("cancelled", 3, 0, False),
        ],
    )
    def test_which_ends_are_good(
        self, status: str, completed: int, failed: int, well: bool
    ) -> None:
        counts = {"total": 3, "completed": completed, "failed": failed}
        view = view_of({"status": status, "request_counts": counts})
        assert view.ended
        assert view.ended_well is well

    def test_times_and_sizes_in_words(self) -> None:
        assert [duration(s) for s in (0, 7, 750, 11_100)] == ["0:00", "0:07", "12:30", "3:05:00"]
        assert [ago(s) for s in (-5, 12, 200, 20_000, 200_000)] == [
            "0 s ago",
            "12 s ago",
            "3 min ago",
            "5 h ago",
            "2 d ago",
        ]
        assert [size(n) for n in (0, 999, 1500, 2_000_000, 3 * 10**12)] == [
            "0 B",
            "999 B",
            "1.5 KB",
            "2.0 MB",
            "3000.0 GB",
        ]

    def test_many_errors_are_cut(self) -> None:
        errors = [{"message": f"bad {n}", "line": n} for n in range(1, 51)]
        assert error_lines(errors)[0] == "line 1: bad 1"
        assert error_lines(errors)[-1] == "and 40 more"


class FakeServer(Client):
    """Gives its answers one by one; an exception is raised."""

    def __init__(self, *answers: Json | Exception) -> None:
        super().__init__("http://nowhere/v1", None)
        self._answers = list(answers)

    def get_batch(self, batch_id: str) -> Json:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Recorder:
    """A watcher that keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.troubles = 0

    def show(self, view: BatchView, pace: Pace, batch: Json) -> None:
        self.shown.append(view.status)

    def trouble(self, message: str) -> None:
        self.troubles += 1

    def close(self) -> None:
        pass


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


AWAY = ServerUnreachable("away")


class TestFollow:
    def run(self, *answers: Json | Exception) -> tuple[Recorder, FakeTime, Callable[[], Json]]:
        recorder, fake = Recorder(), FakeTime()

        def start() -> Json:
            return follow(
                FakeServer(*answers),
                "b",
                recorder,
                interval_s=1.0,
                patience_s=60,
                clock=lambda: fake.now,
                sleep=fake.sleep,
            )

        return recorder, fake, start

    def test_it_looks_often_at_first_and_then_at_the_interval(self) -> None:
        recorder, fake, start = self.run(*[batch("in_progress")] * 12, batch("completed"))
        assert start()["status"] == "completed"
        assert recorder.shown == ["in_progress"] * 12 + ["completed"]
        assert fake.sleeps[0] == 0.1
        assert fake.sleeps[-1] == 1.0

    def test_it_bears_a_server_that_is_away_for_a_while(self) -> None:
        busy = ServerRefused("busy", status=503)
        recorder, _, start = self.run(batch("in_progress"), AWAY, busy, AWAY, batch("completed"))
        start()
        assert recorder.troubles == 3

    def test_it_gives_up_on_one_that_stays_away(self) -> None:
        _, fake, start = self.run(batch("in_progress"), AWAY)
        with pytest.raises(ServerUnreachable):
            start()
        assert fake.now >= 60

    @pytest.mark.parametrize("error", [AWAY, ServerRefused("no", status=404)])
    def test_a_first_look_that_fails_ends_it_at_once(self, error: Exception) -> None:
        _, fake, start = self.run(error)
        with pytest.raises(type(error)):
            start()
        assert fake.now == 0

    def test_a_batch_that_is_no_more_ends_it(self) -> None:
        _, _, start = self.run(batch("in_progress"), ServerRefused("gone", status=404))
        with pytest.raises(ServerRefused):
            start()


class TestLines:
    def test_a_line_at_a_change_of_status_and_now_and_then(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fake, pace = FakeTime(), Pace()
        watcher = LineWatcher(clock=lambda: fake.now)
        for second in range(20):
            fake.now = float(second)
            shown = batch("in_progress", done=second)
            pace.observe(fake.now, second)
            watcher.show(view_of(shown), pace, shown)
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 4
        assert "15/100 15%" in told[-1]
        assert "1.0 lines/s, 1:25 left" in told[-1]

    def test_the_pace_is_told_only_while_lines_run(self) -> None:
        pace = Pace()
        pace.observe(0, 0)
        pace.observe(10, 20_000)
        assert pace_text(view_of(batch("finalizing", 100)), pace, 0) == ""
        view = view_of(batch("in_progress", 20_000, 50_000))
        assert pace_text(view, pace, 0) == "2,000 lines/s, 0:15 left"

    def test_the_servers_forecast_goes_before_what_the_pace_says(self) -> None:
        pace = Pace()
        foreseen = {"eta": 1090, "at_risk": True, "queue_position": 2, "queued": False}
        shown = {**batch("in_progress", 0, 50), **foreseen}
        text = "1:30 left, at risk, behind 2 of your batches"
        assert pace_text(view_of(shown), pace, 1000) == text
        pace.observe(0, 0)
        pace.observe(10, 20_000)
        assert pace_text(view_of(shown), pace, 1000) == f"2,000 lines/s, {text}"
        waiting = {**batch("in_progress", 0, 50), "queue_position": 1, "queued": True}
        text = "waits for room: behind 1 of your batches"
        assert pace_text(view_of(waiting), Pace(), 1000) == text


class TestPlace:
    @pytest.mark.parametrize(
        ("given", "meant"),
        [
            ("http://h:1", "http://h:1/v1"),
            ("http://h:1/", "http://h:1/v1"),
            ("https://h/v1/", "https://h/v1"),
            ("http://h/some/prefix", "http://h/some/prefix/v1"),
        ],
    )
    def test_addresses_end_in_v1(self, given: str, meant: str) -> None:
        assert normal_url(given) == meant

    @pytest.mark.parametrize("text", ["", "h:1", "ftp://h", "http://", "http:///v1", "v1"])
    def test_what_is_no_address_is_refused(self, text: str) -> None:
        with pytest.raises(Misuse):
            normal_url(text)

    def test_options_go_before_the_environment_and_that_before_the_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("BACKHAUL_BASE_URL", "BACKHAUL_API_KEY"):
            monkeypatch.delenv(name, raising=False)
        found = {"base_url": "http://f/v1", "api_key": "kf", "settings": {"kafka": "k:1"}}
        (tmp_path / "endpoint.json").write_text(json.dumps(found))
        monkeypatch.setenv("BACKHAUL_DATA_DIR", str(tmp_path))
        place = resolve()
        assert (place.base_url, place.api_key) == ("http://f/v1", "kf")
        assert read_endpoint(None).settings == {"kafka": "k:1"}
        monkeypatch.setenv("BACKHAUL_BASE_URL", "http://e")
        assert resolve().api_key is None, "the folder's key is for the folder's server"
        monkeypatch.setenv("BACKHAUL_API_KEY", "ke")
        assert resolve().api_key == "ke"
        assert resolve("http://o", "ko").base_url == "http://o/v1"

    def test_without_anything_it_is_the_usual_port(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("BACKHAUL_BASE_URL", "BACKHAUL_API_KEY"):
            monkeypatch.delenv(name, raising=False)
        assert resolve(data_dir=tmp_path).base_url == "http://127.0.0.1:8080/v1"


class TestRefusals:
    @pytest.mark.parametrize(
        ("status", "body", "exit_code", "said"),
        [
            (401, b"{}", Exit.NO_ACCESS, "asks for an API key"),
            (404, b'{"error":{"message":"No batch"}}', Exit.FAILURE, "No batch"),
            (404, b"<html>", Exit.NO_ACCESS, "does not look like Backhaul"),
            (502, b"<html>", Exit.FAILURE, "HTTP 502"),
            (500, b'{"error":{"message":null}}', Exit.FAILURE, "HTTP 500"),
            (400, b'{"error":{"message":""}}', Exit.FAILURE, "HTTP 400"),
        ],
    )
    def test_an_error_answer_becomes_words_and_an_exit_code(
        self, status: int, body: bytes, exit_code: Exit, said: str
    ) -> None:
        with pytest.raises(Failure) as caught:
            HTTP("http://h/v1", None).judged(Answer(status, {}, body))
        assert caught.value.exit_code is exit_code
        assert said in caught.value.message


def test_the_help_of_each_command_is_one_short_sentence() -> None:
    for place in COMMANDS.values():
        assert place.help.endswith(".")
        assert len(place.help) <= 60
