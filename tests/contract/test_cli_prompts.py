"""`backhaul prompts` against the real gateway on fakes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner, Result

from api.cli import prompts as prompts_module
from api.cli.main import app
from api.cli.prompt_client import PromptClient
from tests.support.gateway import GatewayUnderTest

PROMPT = """\
slug: summarize
description: Short summaries.
messages:
- role: system
  content: |
    Be brief.
    Write for {{reader}}.
- role: user
  content: 'Summarize: {{text}}'
model_config:
  model: m1
  temperature: 0.5
"""


@pytest.fixture(autouse=True)
def _quiet_gateway() -> Iterator[None]:
    """What the gateway logs in this process must not look like the command's output."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture(autouse=True)
def environment(gateway: GatewayUnderTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BACKHAUL_BASE_URL", gateway.url)
    monkeypatch.setenv("BACKHAUL_API_KEY", gateway.keys["acme"])
    monkeypatch.setenv("BACKHAUL_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompt.yaml").write_text(PROMPT)


async def prompts(*args: str, stdin: str | None = None) -> Result:
    """The command in a thread, since the gateway runs in this one."""
    return await asyncio.to_thread(
        CliRunner().invoke, app, ["prompts", *args], prog_name="backhaul", input=stdin
    )


async def good(*args: str, stdin: str | None = None) -> str:
    """What the command prints."""
    result = await prompts(*args, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


async def made(*args: str) -> None:
    await good("create", "--file", "prompt.yaml", *args)


async def changed(tmp_path: Path, old: str, new: str) -> None:
    """Adds a version that differs so."""
    (tmp_path / "next.yaml").write_text(PROMPT.replace(old, new))
    await good("add", "summarize", "-f", "next.yaml")


async def shown(*args: str) -> Any:
    return json.loads(await good(*args, "--json"))


async def test_what_show_prints_makes_the_same_prompt_again(tmp_path: Path) -> None:
    await made()
    printed = await good("show", "summarize")
    assert printed.startswith("# version 1 of 1; 1 is published\n# variables: reader, text\n")
    assert printed.endswith(PROMPT)
    (tmp_path / "again.yaml").write_text(printed)
    await good("create", "copy", "--file", "again.yaml")
    first, copy = [await shown("show", slug) for slug in ("summarize", "copy")]
    for field in ("messages", "model_config", "variables", "required_variables"):
        assert copy["shown"][field] == first["shown"][field]
    assert copy["description"] == first["description"]
    added = await good("add", "summarize", "--file", "-", stdin=printed)
    assert added == "summarize version 2 is added\n"
    assert (await prompts("diff", "summarize")).exit_code == 0


async def test_create_and_add_say_what_can_be_done_next() -> None:
    result = await prompts("create", "--file", "prompt.yaml")
    assert result.stdout == "summarize version 1 is published\n"
    assert "variables: reader, text" in result.stderr
    assert "backhaul submit --prompt summarize" in result.stderr
    result = await prompts("add", "summarize", "--file", "prompt.yaml")
    assert "backhaul prompts publish summarize 2" in result.stderr


async def test_text_files_and_options_make_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("Be {{tone}}.\n")
    (tmp_path / "config.json").write_text('{"max_tokens": 9, "model": "x"}')
    await good(
        *("create", "short", "--system", "system.txt", "--user", "-", "--model", "m1"),
        *("--temperature", "0", "--config", "config.json", "--description", "What for"),
        stdin="{{text}}",
    )
    found = await shown("show", "short")
    assert found["description"] == "What for"
    assert found["shown"]["messages"] == [
        {"role": "system", "content": "Be {{tone}}."},
        {"role": "user", "content": "{{text}}"},
    ]
    assert found["shown"]["model_config"] == {"max_tokens": 9, "model": "m1", "temperature": 0}


async def test_list_shows_all_newest_first_within_80_columns() -> None:
    assert "No prompts." in (await prompts("list")).stderr
    for number in range(105):
        await good("create", f"p{number}", "--file", "prompt.yaml")
    rows = (await good("list")).splitlines()
    assert len(rows) == 106
    assert rows[1].split()[:3] == ["p104", "1", "1"]
    assert max(map(len, rows)) <= 80
    slugs = [json.loads(line)["slug"] for line in (await good("list", "--json")).splitlines()]
    assert slugs == [f"p{number}" for number in range(104, -1, -1)]


async def test_versions_are_listed_and_any_can_be_published(tmp_path: Path) -> None:
    await made()
    await changed(tmp_path, "brief", "long")
    published = await prompts("publish", "summarize", "2")
    assert published.stdout == "summarize version 2 is published\n"
    assert "backhaul prompts publish summarize 1" in published.stderr, "the way back"
    rows = [row.split() for row in (await good("versions", "summarize")).splitlines()]
    assert [(row[0], "published" in row) for row in rows[1:]] == [("2", True), ("1", False)]
    withdrawn = await prompts("withdraw", "summarize")
    assert "backhaul prompts publish summarize 2" in withdrawn.stderr
    assert (await shown("show", "summarize"))["published_version"] is None
    assert (await shown("publish", "summarize", "1"))["published_version"] == 1


async def test_add_can_publish_at_once() -> None:
    await made()
    found = await shown("add", "summarize", "--file", "prompt.yaml", "--publish")
    assert (found["version"], found["published"]) == (2, True)
    told = await good("add", "summarize", "--file", "prompt.yaml", "--publish")
    assert told == "summarize version 3 is published\n"


async def test_diff_ends_as_diff_does(tmp_path: Path) -> None:
    await made()
    same = await prompts("diff", "summarize")
    assert (same.exit_code, same.stdout) == (0, "")
    await changed(tmp_path, "Be brief.", "Be quick.")
    result = await prompts("diff", "summarize")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[:2] == [
        "--- summarize version 1",
        "+++ summarize version 2",
    ]
    assert "-    Be brief.\n+    Be quick.\n" in result.stdout
    assert "Error" not in result.stderr
    back = await prompts("diff", "summarize", "2", "1", "--json")
    assert back.exit_code == 1
    assert json.loads(back.stdout)["new"]["version"] == 1
    for args in (("nowhere",), ("summarize", "7"), ("summarize", "1", "7")):
        assert (await prompts("diff", *args)).exit_code == 2
    await good("withdraw", "summarize")
    nothing = await prompts("diff", "summarize")
    assert nothing.exit_code == 2
    assert "no published version" in nothing.stderr


async def test_render_shows_what_a_line_would_send(tmp_path: Path) -> None:
    await made()
    (tmp_path / "v.json").write_text('{"reader": 7, "text": "from the file"}')
    printed = await good("render", "summarize", "--variables", "v.json", "--var", "text=a=b")
    assert printed == ("[system]\nBe brief.\nWrite for 7.\n\n\n[user]\nSummarize: a=b\n")
    pair = ("--var", "reader=x", "--var", "text=\x1b[2J")
    assert "\\x1b[2J" in await good("render", "summarize", *pair)
    raw = await good("render", "summarize", *pair, "--raw")
    assert raw == "Be brief.\nWrite for x.\n\nSummarize: \x1b[2J\n"
    whole = await shown("render", "summarize", *pair, "--endpoint", "/v1/responses")
    assert whole["body"]["model"] == "m1"
    assert whole["input"] == whole["body"]["input"]


async def test_render_names_a_missing_variable() -> None:
    await made()
    result = await prompts("render", "summarize", "--var", "text=x")
    assert result.exit_code == 1
    assert "'reader'" in result.stderr


async def test_delete_asks_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    await made()
    unasked = await prompts("delete", "summarize")
    assert unasked.exit_code == 2
    assert "--yes" in unasked.stderr
    monkeypatch.setattr(prompts_module, "_somebody_answers", lambda: True)
    no = await prompts("delete", "summarize", stdin="n\n")
    assert no.exit_code == 1
    assert "its one version" in no.stderr
    assert "Nothing was deleted." in no.stderr
    await good("show", "summarize")
    yes = await prompts("delete", "summarize", stdin="y\n")
    assert yes.stdout.endswith("summarize is deleted\n")
    assert (await prompts("show", "summarize")).exit_code == 1


async def test_what_changed_while_the_question_stood_is_not_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await made()
    loop = asyncio.get_running_loop()

    def confirm(*_: object, **__: object) -> bool:
        waiting = prompts("describe", "summarize", "Still needed!")
        return asyncio.run_coroutine_threadsafe(waiting, loop).result(30).exit_code == 0

    monkeypatch.setattr(prompts_module, "_somebody_answers", lambda: True)
    monkeypatch.setattr("typer.confirm", confirm)
    result = await prompts("delete", "summarize")
    assert result.exit_code == 1
    assert "backhaul prompts show summarize" in result.stderr
    assert (await shown("show", "summarize"))["description"] == "Still needed!"


async def test_delete_with_yes_deletes_at_once() -> None:
    await made()
    assert (await shown("delete", "summarize", "--yes"))["deleted"] is True
    await made()
    assert (await shown("show", "summarize"))["published_version"] == 2, "numbers go on"


async def test_a_change_can_be_bound_to_what_was_seen() -> None:
    await made()
    etag = next(
        line.removeprefix("# etag: ")
        for line in (await good("show", "summarize")).splitlines()
        if line.startswith("# etag: ")
    )
    await good("describe", "summarize", "Changed.", "--if-match", etag)
    for command in (
        ("describe", "summarize", "Again."),
        ("add", "summarize", "--file", "prompt.yaml"),
        ("publish", "summarize", "1"),
        ("withdraw", "summarize"),
        ("delete", "summarize", "--yes"),
    ):
        result = await prompts(*command, "--if-match", etag)
        assert result.exit_code == 1
        assert "backhaul prompts show summarize" in result.stderr
    assert (await shown("show", "summarize"))["description"] == "Changed."


async def test_two_who_publish_at_once_do_not_undo_each_other_unseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await made()
    await changed(tmp_path, "brief", "long")
    await changed(tmp_path, "brief", "loud")
    plain = PromptClient.publish
    others: list[int] = []

    def publish(self: PromptClient, slug: str, number: int | None, etag: str | None = None) -> Any:
        if others:
            plain(self, slug, others.pop())
        return plain(self, slug, number, etag)

    monkeypatch.setattr(PromptClient, "publish", publish)
    others.append(3)
    result = await prompts("publish", "summarize", "2")
    assert result.exit_code == 1
    assert "backhaul prompts show summarize" in result.stderr
    assert (await shown("show", "summarize"))["published_version"] == 3
    # The same version, as when the first answer got lost: that is success.
    others.append(2)
    assert await good("publish", "summarize", "2") == "summarize version 2 is published\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("show", "nowhere"), "backhaul prompts list"),
        (("publish", "summarize", "9"), "backhaul prompts versions summarize"),
        (("show", "summarize", "--version", "9"), "backhaul prompts versions summarize"),
        (("create", "--file", "prompt.yaml"), "backhaul prompts add summarize"),
        (("delete", "nowhere", "--yes"), "backhaul prompts list"),
    ],
)
async def test_a_refusal_says_what_can_be_done(args: tuple[str, ...], said: str) -> None:
    await made()
    result = await prompts(*args)
    assert result.exit_code == 1
    assert said in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("create",),
        ("create", "--file", "nowhere.yaml"),
        ("create", "no slug", "--file", "prompt.yaml"),
        ("create", "--system", "prompt.yaml"),
        ("show", "../files"),
        ("show", "x", "--version", "0"),
        ("publish", "x", "-1"),
        ("render", "x", "--var", "novalue"),
        ("delete", "x", "--if-match", "no etag"),
    ],
)
async def test_wrong_usage_exits_2(args: tuple[str, ...]) -> None:
    assert (await prompts(*args)).exit_code == 2


@pytest.mark.parametrize(
    "command",
    [
        command.name or str(command.callback.__name__)
        for command in prompts_module.app.registered_commands
        if command.callback
    ],
)
async def test_every_command_has_help_in_80_columns(command: str) -> None:
    told = await good(command, "--help")
    assert max(map(len, told.splitlines())) <= 80


async def test_a_servers_error_can_not_move_the_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    from api.cli.failure import ServerRefused

    def refuse(*_: object) -> None:
        raise ServerRefused("\x1b[2J", "\x1b[H", status=400)

    monkeypatch.setattr(PromptClient, "get", refuse)
    result = await prompts("show", "summarize")
    assert "\x1b" not in result.output
    assert "\\x1b[2J" in result.stderr
