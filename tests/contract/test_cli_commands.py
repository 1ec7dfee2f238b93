"""Every command against a gateway on a real port: what it prints, what it sends, how it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from api.cli import submit as submit_module
from api.cli import watch as watch_module
from api.cli.main import COMMANDS, app, load
from tests.support.fake_gateway import API_KEY, FakeGateway, a_batch, running_gateway, script

LINE = b'{"custom_id":"1","method":"POST","url":"/v1/chat/completions","body":{"model":"m"}}\n'
LONG_ID = "batch_0193f5a7c1d27e4f8a9b0c1d2e3f4a5b"
WIDTH = 80


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeGateway]:
    with running_gateway() as fake:
        monkeypatch.setenv("BACKHAUL_BASE_URL", fake.base_url)
        monkeypatch.setenv("BACKHAUL_API_KEY", API_KEY)
        monkeypatch.setenv("BACKHAUL_DATA_DIR", str(tmp_path / "data"))
        monkeypatch.setenv("COLUMNS", str(WIDTH))
        yield fake


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(LINE * 3)
    return path


def backhaul(*args: str) -> Result:
    return CliRunner().invoke(app, list(args), prog_name="backhaul")


class TestSubmit:
    def test_it_uploads_the_file_and_creates_a_batch_on_it(
        self, gateway: FakeGateway, lines: Path
    ) -> None:
        result = backhaul("submit", str(lines), "--metadata", "team=red", "--metadata", "a=b=c")
        assert result.exit_code == 0
        assert result.stdout == "batch_1\n"
        assert "backhaul watch batch_1" in result.stderr
        assert gateway.uploads == [("batch", "requests.jsonl")]
        assert gateway.files["file-1"] == LINE * 3
        body, key = gateway.created[0]
        assert body == {
            "input_file_id": "file-1",
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {"team": "red", "a": "b=c"},
        }
        assert key, "every create carries a key, so that its retry is safe"

    def test_json_prints_the_batch_object_and_nothing_else(
        self, gateway: FakeGateway, lines: Path
    ) -> None:
        result = backhaul("submit", str(lines), "--json", "--endpoint", "/v1/embeddings")
        assert json.loads(result.stdout)["endpoint"] == "/v1/embeddings"

    def test_an_odd_file_name_arrives_unharmed(self, gateway: FakeGateway, tmp_path: Path) -> None:
        path = tmp_path / 'a "quoted" ☃.jsonl'
        path.write_bytes(LINE)
        assert backhaul("submit", str(path)).exit_code == 0
        assert gateway.files["file-1"] == LINE

    def test_wait_watches_to_the_end(self, gateway: FakeGateway, lines: Path) -> None:
        steps = script("next", ("in_progress", (3, 1, 0)), ("completed", (3, 3, 0)))
        gateway.add_batch(*steps)
        result = backhaul("submit", str(lines), "--wait", "--interval", "0.05")
        assert result.exit_code == 0
        assert "batch_1 completed\n3 of 3 lines" in result.stdout

    def test_wait_exits_4_when_the_batch_fails(self, gateway: FakeGateway, lines: Path) -> None:
        error = {"code": "invalid_json_line", "message": "This line is not …", "line": 2}
        gateway.add_batch(a_batch("next", "failed", errors={"data": [error]}))
        result = backhaul("submit", str(lines), "--wait", "--interval", "0.05")
        assert result.exit_code == 4
        assert "line 2: This line is not …" in result.stdout

    def test_a_file_uploaded_before_can_be_used_again(self, gateway: FakeGateway) -> None:
        gateway.files["file-9"] = LINE
        args = ("submit", "--input-file-id", "file-9", "--endpoint", "/v1/completions")
        assert backhaul(*args).exit_code == 0
        assert gateway.created[0][0]["input_file_id"] == "file-9"

    def test_a_reused_idempotency_key_says_what_to_do(
        self, gateway: FakeGateway, lines: Path
    ) -> None:
        assert backhaul("submit", str(lines), "--idempotency-key", "k").exit_code == 0
        result = backhaul("submit", str(lines), "--idempotency-key", "k")
        assert result.exit_code == 1
        assert "Idempotency conflict" in result.stderr
        assert "--input-file-id" in result.stderr

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "is empty"),
            (b"\nx", "is empty, or its first line is"),
            (b"not json\n", "not a JSON object of a request"),
            (b"\xff\xfe\n", "not a JSON object of a request"),
            (b'{"custom_id":"1"}\n', "give --endpoint"),
        ],
    )
    def test_a_file_that_can_not_be_one_is_refused_before_it_is_sent(
        self, gateway: FakeGateway, tmp_path: Path, content: bytes, said: str
    ) -> None:
        path = tmp_path / "bad.jsonl"
        path.write_bytes(content)
        result = backhaul("submit", str(path))
        assert result.exit_code == 2
        assert said in result.stderr
        assert gateway.requests == []

    @pytest.mark.parametrize(
        "args",
        [
            (),
            ("nowhere.jsonl",),
            ("--input-file-id", "file-1"),
            ("x.jsonl", "--input-file-id", "file-1"),
            ("x.jsonl", "--metadata", "novalue"),
            ("x.jsonl", "--interval", "0"),
            ("x.jsonl", "--no-such-option"),
        ],
    )
    def test_wrong_usage_exits_2(self, gateway: FakeGateway, args: tuple[str, ...]) -> None:
        assert backhaul("submit", *args).exit_code == 2


class TestWatch:
    def test_it_tells_each_status_and_the_summary(self, gateway: FakeGateway) -> None:
        steps = script(
            LONG_ID,
            ("validating", (0, 0, 0)),
            ("in_progress", (50_000, 1234, 5)),
            ("finalizing", (50_000, 49_900, 100)),
            ("completed", (50_000, 49_900, 100)),
        )
        gateway.add_batch(*steps[:-1], {**steps[-1], "output_file_id": "file-o"})
        result = backhaul("watch", LONG_ID, "--interval", "0.05")
        assert result.exit_code == 0
        told = [line.split()[1] for line in result.stderr.splitlines()]
        assert told == ["validating", "in_progress", "finalizing", "completed"]
        assert "1,239/50,000 2%  5 failed" in result.stderr
        assert f"backhaul download {LONG_ID}" in result.stdout
        assert max(map(len, result.output.splitlines())) <= WIDTH

    @pytest.mark.parametrize("status", ["failed", "expired", "cancelled"])
    def test_a_batch_that_ended_badly_exits_4(self, gateway: FakeGateway, status: str) -> None:
        gateway.add_batch(a_batch("b", status))
        assert backhaul("watch", "b").exit_code == 4

    def test_completed_without_one_good_line_exits_4(self, gateway: FakeGateway) -> None:
        gateway.add_batch(a_batch("b", "completed", counts=(3, 0, 3)))
        assert backhaul("watch", "b").exit_code == 4

    def test_json_prints_each_change_as_a_line(self, gateway: FakeGateway) -> None:
        same = a_batch("b", "in_progress", counts=(2, 1, 0))
        gateway.add_batch(same, same, a_batch("b", "completed", counts=(2, 2, 0)))
        result = backhaul("watch", "b", "--json", "--interval", "0.05")
        told = [json.loads(line)["status"] for line in result.stdout.splitlines()]
        assert told == ["in_progress", "completed"]

    def test_it_goes_on_through_a_restart_of_the_server(self, gateway: FakeGateway) -> None:
        first = a_batch("b", "in_progress", counts=(2, 1, 0))
        away = [{"id": "b", "fails_with": 503}] * 6
        gateway.add_batch(first, *away, a_batch("b", "completed", counts=(2, 2, 0)))
        result = backhaul("watch", "b", "--interval", "0.05")
        assert result.exit_code == 0
        assert result.stderr.count("Trying again") == 1

    def test_ctrl_c_leaves_the_batch_running_and_says_how_to_go_on(
        self, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gateway.add_batch(a_batch("b", "in_progress", counts=(2, 1, 0)))

        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(watch_module, "follow", interrupted)
        result = backhaul("watch", "b")
        assert result.exit_code == 130
        assert "the batch goes on" in result.stderr
        assert "backhaul watch b" in result.stderr
        assert "backhaul cancel b" in result.stderr
        assert not any("cancel" in path for _, path in gateway.requests)

    def test_an_unknown_batch_is_the_servers_own_words(self, gateway: FakeGateway) -> None:
        result = backhaul("watch", "batch_no")
        assert result.exit_code == 1
        assert "No batch found with id 'batch_no'." in result.stderr


class TestListGetCancel:
    def test_list_pages_until_it_has_enough(self, gateway: FakeGateway) -> None:
        for number in range(250):
            gateway.add_batch(a_batch(f"batch_{number}"))
        result = backhaul("list", "--json", "-n", "230")
        ids = [json.loads(line)["id"] for line in result.stdout.splitlines()]
        assert ids == [f"batch_{number}" for number in range(249, 19, -1)]
        assert len(gateway.requests) == 3
        everything = backhaul("list", "--all", "--json").stdout.splitlines()
        assert len(everything) == 250

    def test_list_can_choose_by_status(self, gateway: FakeGateway) -> None:
        gateway.add_batch(a_batch("b1", "failed"))
        gateway.add_batch(a_batch("b2", "completed"))
        result = backhaul("list", "--status", "failed")
        assert "b1" in result.stdout
        assert "b2" not in result.stdout

    def test_the_list_fits_80_columns(self, gateway: FakeGateway) -> None:
        gateway.add_batch(a_batch(LONG_ID, counts=(50_000, 40_000, 123)))
        result = backhaul("list")
        assert LONG_ID in result.stdout
        assert "40123/50000" in result.stdout
        assert max(map(len, result.stdout.splitlines())) <= WIDTH

    def test_an_empty_list_says_so(self, gateway: FakeGateway) -> None:
        result = backhaul("list")
        assert (result.exit_code, result.stdout) == (0, "")
        assert "No batches." in result.stderr

    def test_get_shows_the_batch(self, gateway: FakeGateway) -> None:
        batch = a_batch(
            LONG_ID,
            "completed",
            counts=(5000, 4990, 10),
            output_file_id="file-o",
            metadata={"team": "red"},
            usage={"input_tokens": 1000, "output_tokens": 2000},
        )
        gateway.add_batch(batch)
        result = backhaul("get", LONG_ID)
        assert result.exit_code == 0
        for text in ("completed", "5,000 of 5,000 lines, 10 failed", "1,000 in, 2,000 out"):
            assert text in result.stdout
        assert "team=red" in result.stdout
        assert max(map(len, result.stdout.splitlines())) <= WIDTH
        assert json.loads(backhaul("get", LONG_ID, "--json").stdout) == batch

    def test_an_id_can_not_reach_another_route(self, gateway: FakeGateway) -> None:
        assert backhaul("get", "../files/x?y").exit_code == 1
        assert gateway.requests == [("GET", "/v1/batches/..%2Ffiles%2Fx%3Fy")]

    def test_cancel_and_wait(self, gateway: FakeGateway) -> None:
        gateway.add_batch(a_batch("b", counts=(10, 4, 0)))
        result = backhaul("cancel", "b")
        assert (result.exit_code, result.stdout) == (0, "b cancelling\n")
        waited = backhaul("cancel", "b", "--wait", "--interval", "0.05")
        assert waited.exit_code == 4
        assert "b cancelled" in waited.stdout

    def test_cancel_of_a_completed_batch_fails(self, gateway: FakeGateway) -> None:
        gateway.add_batch(a_batch("b", "completed"))
        result = backhaul("cancel", "b")
        assert result.exit_code == 1
        assert "Cannot cancel a batch with status 'completed'." in result.stderr


class TestDownload:
    @pytest.fixture
    def batch(self, gateway: FakeGateway) -> str:
        gateway.files = {"file-o": bytes(range(256)) * 4000, "file-e": b"{}\n"}
        return gateway.add_batch(
            a_batch("b", "completed", output_file_id="file-o", error_file_id="file-e")
        )

    def test_both_files_come_whole(self, gateway: FakeGateway, batch: str, tmp_path: Path) -> None:
        folder = tmp_path / "new" / "folder"
        result = backhaul("download", batch, "--dir", str(folder))
        assert result.exit_code == 0
        assert (folder / "b_output.jsonl").read_bytes() == gateway.files["file-o"]
        assert (folder / "b_error.jsonl").read_bytes() == b"{}\n"
        assert len(list(folder.iterdir())) == 2, "nothing else is left"
        paths = json.loads(backhaul("download", batch, "-d", str(folder), "--json").stdout)
        assert set(paths) == {"output", "error"}

    @pytest.mark.parametrize("there", [b"", b"ab\nc", b"ab\ncd\nef\n", b"longer than it can be\n"])
    def test_followed_output_grows_and_an_interrupted_one_goes_on(
        self, gateway: FakeGateway, tmp_path: Path, there: bytes
    ) -> None:
        runs = [a_batch("b", counts=(3, n, 0), partial_output_file_id="file-o") for n in range(5)]
        gateway.add_batch(a_batch("b"), *runs, a_batch("b", "completed", output_file_id="file-o"))
        gateway.files = {"file-o": b"ab\ncd\nef\n"}
        gateway.grows = [3, 3, 6, 6]
        gateway.cut_content_after = [2]
        target = tmp_path / "b_output.jsonl"
        if there:
            target.write_bytes(there)
        args = ("download", "b", "--dir", str(tmp_path), "--follow", "--interval", "0.05")
        result = backhaul(*args)
        assert (result.exit_code, result.stdout) == (0, f"{target}\n")
        assert target.read_bytes() == gateway.files["file-o"]
        assert [file.name for file in tmp_path.iterdir()] == ["b_output.jsonl"]

    @pytest.mark.parametrize("ignore_range", [False, True])
    def test_a_connection_that_breaks_is_resumed(
        self, gateway: FakeGateway, batch: str, tmp_path: Path, ignore_range: bool
    ) -> None:
        gateway.ignore_range = ignore_range
        gateway.cut_content_after = [300_000, 400_000]
        assert backhaul("download", batch, "--dir", str(tmp_path)).exit_code == 0
        assert (tmp_path / "b_output.jsonl").read_bytes() == gateway.files["file-o"]

    def test_a_later_run_goes_on_where_an_earlier_one_stopped(
        self, gateway: FakeGateway, batch: str, tmp_path: Path
    ) -> None:
        content = gateway.files["file-o"]
        (tmp_path / "b_output.jsonl.file-o.part").write_bytes(content[:1000])
        gateway.cut_content_after = [0]
        result = backhaul("download", batch, "--dir", str(tmp_path))
        assert result.exit_code == 0
        assert "1.0 KB of it from an earlier run" in result.stderr
        assert (tmp_path / "b_output.jsonl").read_bytes() == content

    def test_it_gives_up_when_no_byte_comes_and_keeps_what_it_has(
        self,
        gateway: FakeGateway,
        batch: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("time.sleep", lambda _: None)
        gateway.cut_content_after = [300_000] + [0] * 20
        result = backhaul("download", batch, "--dir", str(tmp_path))
        assert result.exit_code == 1
        assert "broke off" in result.stderr
        assert "Run the same command again" in result.stderr
        assert not (tmp_path / "b_output.jsonl").exists()
        assert (tmp_path / "b_output.jsonl.file-o.part").exists()

    def test_what_is_there_already_is_not_fetched_again_unless_forced(
        self, gateway: FakeGateway, batch: str, tmp_path: Path
    ) -> None:
        args = ("download", batch, "--dir", str(tmp_path))
        backhaul(*args)
        gateway.requests.clear()
        assert "already there" in backhaul(*args).stderr
        assert not any("content" in path for _, path in gateway.requests)
        backhaul(*args, "--force")
        assert sum("content" in path for _, path in gateway.requests) == 2

    def test_a_running_batch_has_nothing_yet(self, gateway: FakeGateway) -> None:
        gateway.add_batch(a_batch("b"))
        result = backhaul("download", "b")
        assert result.exit_code == 1
        assert "backhaul watch b" in result.stderr

    def test_a_failed_batch_says_why_and_exits_4(self, gateway: FakeGateway) -> None:
        errors = {"data": [{"message": "The file is empty.", "line": None}]}
        gateway.add_batch(a_batch("b", "failed", errors=errors))
        result = backhaul("download", "b")
        assert result.exit_code == 4
        assert "The file is empty." in result.stderr

    def test_a_folder_that_can_not_be_written_is_said(
        self, gateway: FakeGateway, batch: str, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("x")
        result = backhaul("download", batch, "--dir", str(tmp_path / "file"))
        assert result.exit_code == 1
        assert "can't be written" in result.stderr


class TestServerTroubles:
    def test_nobody_listens(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("BACKHAUL_DATA_DIR", str(tmp_path))
        result = backhaul("list", "--base-url", "http://127.0.0.1:1")
        assert result.exit_code == 3
        assert "backhaul up" in result.stderr

    def test_a_wrong_key(self, gateway: FakeGateway) -> None:
        result = backhaul("list", "--api-key", "bh_wrong")
        assert result.exit_code == 3
        assert "backhaul keys create" in result.stderr
        assert "bh_wrong" not in result.output

    def test_something_else_answers(self, gateway: FakeGateway) -> None:
        gateway.html = True
        result = backhaul("list")
        assert result.exit_code == 3
        assert "does not look like Backhaul" in result.stderr

    @pytest.mark.parametrize("url", ["localhost:8080", "ftp://x", "http://", ""])
    def test_an_address_that_is_none(
        self, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("BACKHAUL_DATA_DIR", str(tmp_path))
        assert backhaul("list", "--base-url", url or " ").exit_code == 2

    def test_a_busy_server_is_asked_again(self, gateway: FakeGateway) -> None:
        gateway.failures = [(429, {"Retry-After": "0"}), (503, {"Retry-After": "0"})]
        assert backhaul("list").exit_code == 0
        assert len(gateway.requests) == 3

    def test_a_server_that_forbids_a_retry_is_not_asked_again(self, gateway: FakeGateway) -> None:
        gateway.failures = [(500, {"x-should-retry": "false"})] * 2
        assert backhaul("list").exit_code == 1
        assert len(gateway.requests) == 1

    def test_an_upload_is_never_sent_twice(self, gateway: FakeGateway, lines: Path) -> None:
        gateway.failures = [(503, {"Retry-After": "0"})]
        result = backhaul("submit", str(lines))
        assert result.exit_code == 1
        assert len(gateway.requests) == 1

    def test_a_refused_upload_tells_the_servers_reason(
        self, gateway: FakeGateway, tmp_path: Path
    ) -> None:
        path = tmp_path / "large.jsonl"
        path.write_bytes(LINE * 50_000)
        gateway.failures = [(413, {})]
        result = backhaul("submit", str(path))
        assert result.exit_code in (1, 3), "the server may have cut the connection"
        assert result.stderr


class TestPlace:
    def test_the_data_folder_of_up_is_the_last_resort(
        self, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.delenv("BACKHAUL_BASE_URL")
        monkeypatch.delenv("BACKHAUL_API_KEY")
        endpoint = {"base_url": gateway.base_url, "api_key": API_KEY}
        (tmp_path / "endpoint.json").write_text(json.dumps(endpoint))
        assert backhaul("list", "--data", str(tmp_path)).exit_code == 0

    def test_its_key_goes_to_its_own_server_only(
        self, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.delenv("BACKHAUL_API_KEY")
        endpoint = {"base_url": "http://127.0.0.1:1/v1", "api_key": API_KEY}
        (tmp_path / "endpoint.json").write_text(json.dumps(endpoint))
        result = backhaul("list", "--data", str(tmp_path), "--base-url", gateway.base_url)
        assert result.exit_code == 3
        assert "asks for an API key" in result.stderr

    def test_a_damaged_file_is_said(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("BACKHAUL_BASE_URL", raising=False)
        (tmp_path / "endpoint.json").write_text("{")
        result = backhaul("list", "--data", str(tmp_path))
        assert result.exit_code == 2
        assert "endpoint.json" in result.stderr


class TestTheCommandItself:
    def test_the_version(self) -> None:
        assert backhaul("--version").stdout.startswith("backhaul ")

    def test_help_names_every_command_and_the_exit_codes(self) -> None:
        told = backhaul("--help").stdout
        for name in COMMANDS:
            assert f" {name} " in told
        assert "130" in told

    @pytest.mark.parametrize("name", list(COMMANDS))
    def test_every_command_has_help_in_80_columns(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", str(WIDTH))
        result = backhaul(name, "--help")
        assert result.exit_code == 0
        assert max(map(len, result.stdout.splitlines())) <= WIDTH
        assert load(name).name == name

    def test_an_unknown_command_exits_2(self) -> None:
        assert backhaul("sumbit").exit_code == 2

    def test_ctrl_c_in_any_command_exits_130(
        self, gateway: FakeGateway, lines: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(submit_module, "_upload", interrupted)
        assert backhaul("submit", str(lines)).exit_code == 130
