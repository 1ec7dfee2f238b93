"""docs/prompts.md says what the code does: its tables, limits, examples and commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import msgspec
import pytest
import typer.main

from api.cli import plain_yaml, rows
from api.cli.main import COMMANDS
from api.cli.prompts import app
from api.prompts.batch_request import MAX_BATCH_BODY_BYTES
from schemas.errors import LineCode
from streams.domain.intake.lines import MAX_CUSTOM_ID_CHARS
from streams.domain.prompts.lines import PromptRef, batch_lines
from streams.domain.prompts.pins import MAX_PINS, MAX_PINS_BYTES
from streams.domain.prompts.prompt import _NOT_IN_CONFIG, compile_prompt
from streams.domain.prompts.request import prompt_use
from streams.domain.prompts.sandbox_check import LOOP_FIELDS, MAX_LOOPS
from streams.domain.prompts.sandbox_filters import FILTERS, TESTS
from streams.domain.prompts.template import (
    MAX_NAME_CHARS,
    MAX_RENDERED_BYTES,
    MAX_SOURCE_BYTES,
    TemplateError,
    parse_template,
)
from streams.rendering.renderer import LINE_CPU_S
from streams.settings import Settings

GUIDE = (Path(__file__).parents[2] / "docs" / "prompts.md").read_text("utf-8")
MIB = 1 << 20


def row(name: str) -> str:
    """The second cell of the table row that begins so."""
    (found,) = re.findall(rf"^\| {re.escape(name)} \| (.*) \|$", GUIDE, re.MULTILINE)
    return str(found)


def words(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def examples() -> list[str]:
    """Lines of the code blocks."""
    return [line[4:] for line in GUIDE.splitlines() if line.startswith("    ")]


def test_the_filters_and_tests_are_those_that_there_are() -> None:
    assert words(row("filters")) == list(FILTERS)
    assert words(row("tests")) == list(TESTS)
    loop = words(row("loops"))
    assert [name.removeprefix("loop.") for name in loop[-len(LOOP_FIELDS) :]] == list(LOOP_FIELDS)
    assert f"up to {MAX_LOOPS} within one another" in row("loops")


@pytest.mark.parametrize(
    "source",
    [
        "{{ user.name }}",
        "{{ rows[0] }}",
        "{% if a %}1{% elif b %}2{% else %}3{% endif %}",
        "{{ a if b else c }}",
        "{% if a and not b or a == 1 or a in b or a is string %}x{% endif %}",
        "{% for row in rows %}{{ loop.index }}{% endfor %}",
        "{% for key, value in object | items if value %}{{ key }}{% endfor %}",
        "{{ a ~ b }}{# comment #}",
        "{% raw %}{{{% endraw %}",
    ],
)
def test_what_is_said_to_be_allowed_is(source: str) -> None:
    parse_template(source)


@pytest.mark.parametrize(
    "source", ["{{ f() }}", "{{ a + 1 }}", "{% set a = 1 %}", "{% include 'x' %}", "{{ loop }}"]
)
def test_what_is_said_not_to_be_there_is_refused(source: str) -> None:
    with pytest.raises(TemplateError):
        parse_template(source)


@pytest.mark.parametrize(
    ("source", "required", "not_null"),
    [
        ("{{ title }}", True, True),
        ('{{ title | default("Untitled") }}', False, True),
        ("{% if title is defined %}x{% endif %}", False, True),
        ("{% if title %}x{% endif %}", True, False),
        ("{% if title is none %}x{% endif %}", True, False),
        ('{{ title | default("…", true) }}', False, False),
    ],
)
def test_what_handles_absence_and_null_does(source: str, required: bool, not_null: bool) -> None:
    template = parse_template(source)
    assert ("title" in template.required) is required
    assert ("title" in template.not_null) is not_null


def test_the_limits_are_the_limits() -> None:
    settings = Settings()
    assert f"{MAX_SOURCE_BYTES >> 10} KiB" in row(
        "messages and `model_config` of a version, together"
    )
    assert f"{MAX_RENDERED_BYTES // MIB} MiB" in row("rendered messages of a line")
    rendering = row("rendering a template of more than placeholders")
    assert f"{LINE_CPU_S * 1000:.0f} ms" in rendering
    assert f"{MAX_PINS}, and {MAX_PINS_BYTES // MIB} MiB" in row("versions used by one batch")
    assert (
        f"{settings.max_prompts} · {settings.max_prompt_versions} · "
        f"{settings.max_prompt_bytes // MIB} MiB"
    ) in row("prompts of a tenant · versions of a prompt · text of a tenant")
    of_rows = row("rows of one `from-prompt` request")
    assert f"{settings.max_batch_lines:,}" in of_rows
    assert f"{MAX_BATCH_BODY_BYTES // MIB} MiB" in of_rows
    assert f"up to {MAX_CUSTOM_ID_CHARS} characters" in GUIDE
    assert f"up to {MAX_NAME_CHARS} characters" in GUIDE
    assert f"up to {rows.MAX_JSON_BYTES // MIB} MiB" in GUIDE
    for code in (
        LineCode.PROMPT_RENDER_FAILED,
        LineCode.PROMPT_RENDER_TIMEOUT,
        LineCode.PROMPT_TOO_LARGE,
    ):
        assert f"`{code.value}`" in GUIDE


def test_the_fields_that_a_version_can_not_preset_are_named() -> None:
    (sentence,) = re.findall(
        r"`model_config` holds any field of a request but (.*?)\. ", " ".join(GUIDE.split())
    )
    assert sorted(words(sentence)) == sorted(_NOT_IN_CONFIG)


def test_the_example_file_is_a_prompt_that_its_lines_fit() -> None:
    (source,) = re.findall(r"<<'END'\n(.*?)    END\n", GUIDE, re.DOTALL)
    prompt = plain_yaml.read("\n".join(line[4:] for line in source.splitlines()).encode())
    compiled = compile_prompt(
        msgspec.json.encode(prompt["messages"]), msgspec.json.encode(prompt["model_config"])
    )
    assert compiled.required == {"text"}
    shown = [msgspec.json.decode(line) for line in examples() if line.startswith('{"custom_id"')]
    assert len(shown) == 2
    for line in shown:
        fields = {name: msgspec.Raw(msgspec.json.encode(v)) for name, v in line["body"].items()}
        use = prompt_use(fields, line["url"])
        assert use is not None
        assert use.slug == prompt["slug"]
        assert compiled.refusal(use.variables) is None


def test_the_commands_of_the_examples_exist() -> None:
    group = typer.main.get_command(app)
    known = group.list_commands(None)  # type: ignore[attr-defined]
    shown = [shlex.split(line, comments=True) for line in examples() if line.startswith("backhaul")]
    assert len(shown) >= 6
    for _, command, *arguments in shown:
        assert command in COMMANDS
        if command == "prompts":
            assert arguments[0] in known
    assert set(words(GUIDE)) >= {*known} - {"create", "add", "show", "diff", "publish", "render"}


def test_made_lines_are_numbered_as_said() -> None:
    (line,) = batch_lines(PromptRef(slug="s"), [{}])
    assert msgspec.json.decode(line)["custom_id"] in words(GUIDE)
