"""`backhaul submit --prompt` against the real gateway on fakes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner, Result

from api.cli import submit_prompt
from api.cli.main import app
from schemas.records import BatchCreate, PinnedPrompt
from schemas.topics import FILE
from tests.support.gateway import GatewayUnderTest

CSV = 'id,text,note\ndoc-1,"First ""one""\nof two lines",\ndoc-2,Second,7\n'


@pytest.fixture(autouse=True)
def _quiet_gateway() -> Iterator[None]:
    """What the gateway logs in this process must not look like the command's output."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture(autouse=True)
async def environment(
    gateway: GatewayUnderTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BACKHAUL_BASE_URL", gateway.url)
    monkeypatch.setenv("BACKHAUL_API_KEY", gateway.keys["acme"])
    monkeypatch.setenv("BACKHAUL_DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_bytes(CSV.encode())
    await made(gateway)


async def made(gateway: GatewayUnderTest, slug: str = "summarize", **config: Any) -> None:
    """A prompt that needs `text`."""
    body = {
        "slug": slug,
        "messages": [{"role": "user", "content": "Summarize {{text}}"}],
        "model_config": config or {"model": "m1"},
    }
    async with gateway.http().post("/v1/prompts", json=body) as answer:
        assert answer.status == 200, await answer.text()


async def submit(*args: str, stdin: str | None = None) -> Result:
    """The command in a thread, since the gateway runs in this one."""
    command = ["submit", "--prompt", "summarize", *args]
    return await asyncio.to_thread(
        CliRunner().invoke, app, command, prog_name="backhaul", input=stdin
    )


async def lines_of(gateway: GatewayUnderTest, result: Result) -> list[dict[str, Any]]:
    """The lines of the batch that the command made."""
    assert result.exit_code == 0, result.output
    batch = await gateway.client().batches.retrieve(result.stdout.strip())
    content = await gateway.client().files.content(batch.input_file_id)
    return [json.loads(line) for line in content.content.splitlines()]


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def nothing_was_sent(gateway: GatewayUnderTest) -> bool:
    return not gateway.log.of(FILE) and not gateway.commands(BatchCreate)


async def test_rows_of_a_csv_file_become_a_batch(gateway: GatewayUnderTest, tmp_path: Path) -> None:
    result = await submit("--variables", "rows.csv", "--id-column", "id")
    assert "made 2 lines" in result.stderr
    lines = await lines_of(gateway, result)
    assert [line["custom_id"] for line in lines] == ["doc-1", "doc-2"]
    assert lines[0]["url"] == "/v1/chat/completions"
    assert lines[0]["body"] == {
        "prompt_slug": "summarize",
        "variables": {"text": 'First "one"\nof two lines', "note": ""},
    }
    assert lines[1]["body"]["variables"] == {"text": "Second", "note": "7"}
    (file,) = (await gateway.client().files.list()).data
    assert file.filename == "summarize.jsonl"
    assert names_in(tmp_path) == {"rows.csv"}, "nothing is left here"


async def test_every_option_of_submit_works_with_a_prompt(
    gateway: GatewayUnderTest, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": {"a": 1.50}}\n{"text": "t"}\n')
    args = ("--prompt-version", "1", "--model", "a/b", "--endpoint", "/v1/responses")
    more = ("--metadata", "team=red", "--idempotency-key", "k1", "--json")
    result = await submit("--variables", "rows.jsonl", *args, *more, "--save", "made.jsonl")
    assert result.exit_code == 0, result.output
    batch = json.loads(result.stdout)
    assert (batch["endpoint"], batch["metadata"]) == ("/v1/responses", {"team": "red"})
    saved = (tmp_path / "made.jsonl").read_bytes()
    content = await gateway.client().files.content(batch["input_file_id"])
    assert saved == content.content
    assert saved.splitlines()[0] == (
        b'{"custom_id":"row-000001","method":"POST","url":"/v1/responses","body":{"model":"a/b",'
        b'"prompt_slug":"summarize","prompt_version":1,"variables":{"text":{"a": 1.50}}}}'
    )
    again = await submit("--variables", "rows.jsonl", *args, *more)
    assert again.exit_code == 1
    assert "--input-file-id" in again.stderr, "the key was used with another file"


async def test_wait_watches_the_batch(
    gateway: GatewayUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched: list[str] = []
    monkeypatch.setattr(
        "api.cli.submit.watch_to_end", lambda client, batch_id, **_: watched.append(batch_id)
    )
    result = await submit("--variables", "rows.csv", "--wait")
    assert result.exit_code == 0, result.output
    (command,) = gateway.commands(BatchCreate)
    assert isinstance(command, BatchCreate)
    assert watched == [command.batch_id]


@pytest.mark.parametrize(
    ("kind", "stdin"),
    [
        ("csv", "text\nfrom stdin\n"),
        ("json", '[{"text":\n "from stdin"}]'),
        ("jsonl", '{"text": "from stdin"}'),
    ],
)
async def test_rows_can_come_from_stdin(gateway: GatewayUnderTest, kind: str, stdin: str) -> None:
    result = await submit("--variables", "-", "--format", kind, stdin=stdin)
    (line,) = await lines_of(gateway, result)
    assert line["body"]["variables"] == {"text": "from stdin"}


async def test_the_id_can_be_a_variable_too(gateway: GatewayUnderTest) -> None:
    args = ("--variables", "rows.csv", "--id-column", "text")
    refused = await submit(*args)
    assert refused.exit_code == 2
    assert "--keep-id" in refused.stderr
    lines = await lines_of(gateway, await submit(*args, "--keep-id"))
    assert lines[1]["custom_id"] == lines[1]["body"]["variables"]["text"] == "Second"


class TestRefusedBeforeAnythingIsSent:
    @pytest.mark.parametrize(
        ("rows", "args", "said"),
        [
            ("id,txt\n1,x\n", (), "The prompt needs 'text', which rows.csv does not have."),
            (CSV, ("--id-column", "nr"), "rows.csv has no 'nr'."),
            ("id,text\n1,x\n1,y\n", ("--id-column", "id"), "rows.csv, line 3: the row has the"),
            ("id,text\n1,x\n,y\n", ("--id-column", "id"), "rows.csv, line 3: the row has no 'id'"),
            ("text\nx\ny,z\n", (), "rows.csv, line 3: it has 2 fields"),
            ("text\n", (), "rows.csv has no rows."),
            (CSV, ("--endpoint", "/v1/embeddings"), "Prompts are not for /v1/embeddings."),
            (CSV, ("--save", "rows.csv"), "--save would overwrite the rows."),
            (CSV, ("--save", "."), "not a regular file"),
            (CSV, ("--keep-id",), "--keep-id needs --id-column."),
            (CSV, ("--format", "xml"), "'xml' is none of"),
        ],
    )
    async def test_rows_that_do_not_fit(
        self,
        gateway: GatewayUnderTest,
        tmp_path: Path,
        rows: str,
        args: tuple[str, ...],
        said: str,
    ) -> None:
        (tmp_path / "rows.csv").write_text(rows)
        result = await submit("--variables", "rows.csv", *args)
        assert result.exit_code == 2
        assert said in result.stderr
        assert nothing_was_sent(gateway)
        assert (tmp_path / "rows.csv").read_text() == rows

    async def test_the_first_row_shows_what_is_missing(
        self, gateway: GatewayUnderTest, tmp_path: Path
    ) -> None:
        (tmp_path / "rows.jsonl").write_text('{"txt": 1}\n')
        result = await submit("--variables", "rows.jsonl")
        assert result.exit_code == 2
        assert "It has 'txt'." in result.stderr
        assert nothing_was_sent(gateway)

    @pytest.mark.parametrize(
        ("args", "said"),
        [
            (("--prompt", "nowhere"), "backhaul prompts list"),
            (("--prompt-version", "2"), "backhaul prompts versions summarize"),
        ],
    )
    async def test_a_prompt_that_is_not_there(
        self, gateway: GatewayUnderTest, args: tuple[str, ...], said: str
    ) -> None:
        result = await submit("--variables", "rows.csv", *args)
        assert result.exit_code == 1
        assert said in result.stderr
        assert nothing_was_sent(gateway)

    async def test_a_prompt_without_published_version(self, gateway: GatewayUnderTest) -> None:
        async with gateway.http().post(
            "/v1/prompts/summarize/publish", json={"version": None}
        ) as answer:
            assert answer.status == 200
        result = await submit("--variables", "rows.csv")
        assert result.exit_code == 1
        assert "backhaul prompts publish summarize" in result.stderr
        assert nothing_was_sent(gateway)
        named = await submit("--variables", "rows.csv", "--prompt-version", "1")
        assert named.exit_code == 0

    async def test_a_prompt_without_model(self, gateway: GatewayUnderTest) -> None:
        await made(gateway, "bare", temperature=1)
        result = await submit("--variables", "rows.csv", "--prompt", "bare")
        assert result.exit_code == 2
        assert "Give --model." in result.stderr
        assert nothing_was_sent(gateway)

    @pytest.mark.parametrize(
        "args",
        [
            ("rows.csv", "--prompt", "summarize", "--variables", "rows.csv"),
            ("--input-file-id", "f", "--prompt", "summarize", "--variables", "rows.csv"),
            ("--prompt", "summarize"),
            ("--prompt", "no slug", "--variables", "rows.csv"),
            ("--prompt", "summarize", "--variables", "nowhere.csv"),
            ("--prompt", "summarize", "--variables", "-"),
            ("rows.csv", "--variables", "rows.csv"),
            ("rows.csv", "--model", "m1"),
            ("rows.csv", "--save", "x"),
            ("rows.csv", "--keep-id"),
        ],
    )
    async def test_options_that_do_not_go_together(
        self, gateway: GatewayUnderTest, args: tuple[str, ...]
    ) -> None:
        result = await asyncio.to_thread(CliRunner().invoke, app, ["submit", *args])
        assert result.exit_code == 2
        assert nothing_was_sent(gateway)


async def test_a_failed_submit_leaves_what_was_saved_before(tmp_path: Path) -> None:
    (tmp_path / "made.jsonl").write_text("before")
    (tmp_path / "rows.jsonl").write_text('{"text": "t"}\nnot json\n')
    result = await submit("--variables", "rows.jsonl", "--save", "made.jsonl")
    assert result.exit_code == 2
    assert "rows.jsonl, line 2" in result.stderr
    assert (tmp_path / "made.jsonl").read_text() == "before"
    assert names_in(tmp_path) == {"rows.csv", "rows.jsonl", "made.jsonl"}


async def test_a_folder_that_can_not_be_written_is_said() -> None:
    result = await submit("--variables", "rows.csv", "--save", "nowhere/made.jsonl")
    assert result.exit_code == 1
    assert "nowhere can't be written" in result.stderr


async def test_progress_is_shown_to_somebody_who_watches(
    gateway: GatewayUnderTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "t"}\n' * 5000)
    monkeypatch.setattr(submit_prompt, "is_live", lambda: True)
    result = await submit("--variables", "rows.jsonl")
    assert "made 5,000 lines" in result.stderr
    assert len(await lines_of(gateway, result)) == 5000


async def test_the_pins_and_warnings_of_a_batch_are_shown(gateway: GatewayUnderTest) -> None:
    batch_id = (await submit("--variables", "rows.csv")).stdout.strip()
    await gateway.show(
        batch_id,
        prompts=(PinnedPrompt(slug="summarize", version=1, lines=2000),),
        unused_variables=2,
        metadata={"note": "\x1b[2J"},
    )
    shown = await asyncio.to_thread(CliRunner().invoke, app, ["get", batch_id])
    assert "summarize version 1 (2,000 lines)" in shown.stdout
    assert "2 lines give variables that the prompt does not use" in shown.stdout
    assert "note=\\x1b[2J" in shown.stdout
