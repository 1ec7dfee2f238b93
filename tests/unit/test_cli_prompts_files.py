"""Prompts in files: YAML that comes back as it was, and what is said of a file that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.cli import plain_yaml
from api.cli.failure import Misuse
from api.cli.plain_yaml import NotPlain
from api.cli.prompt_files import Definition, read_definition, read_object, read_text
from api.cli.prompt_options import definition_from, etag_of, variables_from
from api.cli.prompt_view import difference, rendered_lines, rendered_texts, shown
from api.cli.terminal import printable

ESCAPE = "\x1b[2J"
#: Characters that YAML's styles and a terminal treat in special ways, and words of YAML 1.1.
odd = st.text(st.sampled_from(" \n\t\r-:#'\"{}[]|>%@`!&*?,0159eE.+~\x85\u2028\u202e\x1b\x9b\ufeff"))
words = st.sampled_from(["yes", "No", "1:30", "2024-01-01", "0x1f", "1e5", "null", "~", "=", "<<"])
texts = st.text() | odd | words
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=6,
)


class TestYAML:
    @settings(max_examples=100, deadline=None)
    @given(values)
    def test_every_json_value_comes_back_as_it_was(self, value: Any) -> None:
        written = plain_yaml.write(value)
        assert plain_yaml.read(written.encode()) == value
        assert printable(written, lines=True) == written, "nothing in it moves the cursor"

    def test_lines_of_text_are_a_block_that_people_can_read(self) -> None:
        assert plain_yaml.write({"content": "One.\nTwo {{x}}.\n"}) == (
            "content: |\n  One.\n  Two {{x}}.\n"
        )

    def test_words_mean_what_they_mean_in_yaml_1_2(self) -> None:
        text = b"[yes, 1:30, 2024-01-01, 010, 0x1f, ~, 1e3, .5, true, 'true', <<]"
        assert plain_yaml.read(text) == [
            *("yes", "1:30", "2024-01-01", 10, "0x1f", None, 1000.0, 0.5, True, "true", "<<")
        ]

    def test_json_is_read_too_with_tabs_and_all(self) -> None:
        assert plain_yaml.read(b'{\n\t"a": [1, "\\u0041"]\n}') == {"a": [1, "A"]}

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (b"a: &x 1\nb: *x", "line 2: aliases"),
            (b"a: 1\nb: 2\na: 3", "line 3: the name 'a' is there twice"),
            (b"true: 1", "the name True is not a text"),
            (b"a: 1e999", "the number is too large"),
            (b"a: " + b"9" * 5000, "the number is too long"),
            (b"a: !!python/object:os.system x", "could not determine a constructor"),
            (b"a: !!timestamp 2024-01-01", "timestamp is not read"),
            (b"a: [1,", "line 1"),
            (b"a: 1\n---\nb: 2", "line 2"),
            (b"a: \x07", "characters that YAML does not allow"),
            (b"a: \xff", "not UTF-8"),
            (b"[" * 1500, "nested too deeply"),
        ],
    )
    def test_what_json_does_not_hold_is_refused_with_its_line(self, text: bytes, said: str) -> None:
        with pytest.raises(NotPlain, match=said):
            plain_yaml.read(text)


class TestDefinition:
    def test_a_file_that_was_shown_can_be_read_again(self, tmp_path: Path) -> None:
        definition = Definition(
            slug="s",
            description="What\nfor",
            messages=[{"role": "system", "content": "Be brief.\n{{text}} \n"}],
            model_config={"model": "m", "temperature": 0.1, "stop": ["\n"]},
        )
        (tmp_path / "p.yaml").write_text(definition.yaml(), "utf-8")
        assert read_definition(str(tmp_path / "p.yaml")) == definition

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("messages: []\nmodel: m\n", "no 'model' in a prompt"),
            ("messages: text\n", "`messages` must be a list"),
            ("slug: 7\nmessages: []\n", "`slug` must be a text"),
            ("messages: []\nmodel_config: [1]\n", "`model_config` must be an object"),
            ("- 1\n", "holds no object"),
            ("", "holds no object"),
            ("a: [", "neither JSON nor YAML: line 1"),
        ],
    )
    def test_a_file_that_can_not_be_one_is_refused(
        self, tmp_path: Path, content: str, said: str
    ) -> None:
        path = tmp_path / "p.yaml"
        path.write_text(content)
        with pytest.raises(Misuse, match=said):
            read_definition(str(path))

    def test_a_file_without_end_is_not_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(plain_yaml, "MAX_BYTES", 1 << 20)
        path = tmp_path / "p.yaml"
        path.write_bytes(b"x" * ((1 << 20) + 1))
        with pytest.raises(Misuse, match="more than 1 MiB"):
            read_object(str(path), "a prompt")

    def test_a_file_that_is_not_there_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(Misuse, match="can't be read"):
            read_text(str(tmp_path / "none"))


class TestOptions:
    @pytest.fixture
    def text(self, tmp_path: Path) -> str:
        path = tmp_path / "text.txt"
        path.write_bytes("\ufeffHello {{name}}.\n\n".encode())
        return str(path)

    def test_text_files_become_messages(self, text: str) -> None:
        found = definition_from(None, text, text, "m", 0.0, None)
        content = "Hello {{name}}.\n"
        assert found.messages == [
            {"role": "system", "content": content},
            {"role": "user", "content": content},
        ]
        assert found.model_config == {"model": "m", "temperature": 0.0}

    def test_options_win_over_the_config_file_and_that_over_the_file(self, tmp_path: Path) -> None:
        file, config = tmp_path / "p.yaml", tmp_path / "c.json"
        file.write_text("messages: []\nmodel_config: {model: a, temperature: 1, top_p: 0.5}\n")
        config.write_text('{"model": "b", "temperature": 2}')
        found = definition_from(str(file), None, None, "c", None, str(config))
        assert found.model_config == {"model": "c", "temperature": 2, "top_p": 0.5}

    @pytest.mark.parametrize(
        "files",
        [
            {"file": None},
            {"file": "p.yaml", "system": "s.txt"},
            {"file": None, "system": "-", "user": "-"},
            {"file": "-", "config": "-"},
        ],
    )
    def test_files_that_do_not_go_together_are_refused(self, files: dict[str, str | None]) -> None:
        given = {name: files.get(name) for name in ("file", "system", "user", "config")}
        with pytest.raises(Misuse):
            definition_from(model=None, temperature=None, **given)

    def test_pairs_win_over_the_file_of_variables(self, tmp_path: Path) -> None:
        path = tmp_path / "v.json"
        path.write_text('{"a": 1, "b": [true]}')
        assert variables_from(str(path), ["a=x=y", "c="]) == {"a": "x=y", "b": [True], "c": ""}
        for pair in ("novalue", "=x"):
            with pytest.raises(Misuse, match="NAME=TEXT"):
                variables_from(None, [pair])

    @pytest.mark.parametrize(
        ("text", "etag"), [("3", '"3"'), ('"3"', '"3"'), ("*", "*"), (None, None)]
    )
    def test_an_etag_can_be_given_without_its_quotes(
        self, text: str | None, etag: str | None
    ) -> None:
        assert etag_of(text) == etag

    @pytest.mark.parametrize("text", ["", "x", '"a\r\nX-Evil: 1"', '"'])
    def test_what_is_no_etag_is_refused(self, text: str) -> None:
        with pytest.raises(Misuse):
            etag_of(text)


class TestView:
    def test_a_servers_texts_do_not_reach_the_terminal_as_they_are(self) -> None:
        prompt = {"slug": f"s{ESCAPE}", "description": ESCAPE, "latest_version": 2}
        version = {
            "version": 2,
            "variables": [ESCAPE],
            "required_variables": [],
            "messages": [{"role": "user", "content": f"a\n{ESCAPE}"}],
        }
        rendering = {"messages": [{"role": ESCAPE, "content": f"{ESCAPE}\ttext\nmore"}]}
        lines = [
            shown(prompt, version, f'"{ESCAPE}"'),
            *difference("s", version, {**version, "version": 3, "messages": []}),
            *rendered_lines(rendering),
        ]
        assert all("\x1b" not in line for line in lines)
        assert "\\x1b[2J\ttext\nmore" in lines
        assert list(rendered_texts(rendering)) == [f"{ESCAPE}\ttext\nmore"]

    def test_parts_that_are_no_texts_are_shown_as_json(self) -> None:
        parts = [
            {"type": "text", "text": "Look:"},
            {"type": "image_url", "image_url": {"url": "u"}},
        ]
        rendering = {"input": [{"role": "user", "content": parts}, {"role": "tool"}]}
        assert list(rendered_lines(rendering)) == [
            "[user]",
            "Look:",
            '{"type":"image_url","image_url":{"url":"u"}}',
            "",
            "[tool]",
        ]

    def test_versions_that_say_the_same_have_no_difference(self) -> None:
        version = {"version": 1, "messages": [{"role": "user", "content": "a\r\x85b"}]}
        assert difference("s", version, {**version, "version": 2}) == []


@pytest.mark.parametrize(
    ("text", "lines", "said"),
    [
        ("plain é ☃", False, "plain é ☃"),
        ("a\nb\tc\r", True, "a\nb\tc\\x0d"),
        ("a\nb", False, "a\\x0ab"),
        ("\x1b]0;t\x07\x9b\x7f", True, "\\x1b]0;t\\x07\\x9b\\x7f"),
        ("\u202eabc\u2066", True, "\\u202eabc\\u2066"),
    ],
)
def test_control_characters_are_written_out(text: str, lines: bool, said: str) -> None:
    assert printable(text, lines=lines) == said
