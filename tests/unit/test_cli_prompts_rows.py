"""Rows of variables from files: what is read, and what is said of a file that is wrong."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from api.cli import rows as rows_module
from api.cli.failure import Misuse
from api.cli.rows import open_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def read(path: Path, content: str | bytes, kind: str | None = None) -> list[dict[str, Any]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with open_rows(str(path), kind) as rows:
        return [plain(row) for row in rows]


def plain(row: Any) -> dict[str, Any]:
    return {n: v if isinstance(v, str) else json.loads(bytes(v)) for n, v in row.items()}


def refused(path: Path, content: str | bytes, kind: str | None = None) -> str:
    with pytest.raises(Misuse) as caught:
        read(path, content, kind)
    return caught.value.message


class TestJSON:
    def test_lines_are_rows_and_values_keep_their_types(self, folder: Path) -> None:
        content = '\ufeff{"a": "x", "n": 1.50}\r\n\n{"a": [1, {"b": null}], "t": true}'
        assert read(folder / "r.jsonl", content) == [
            {"a": "x", "n": 1.5},
            {"a": [1, {"b": None}], "t": True},
        ]

    def test_an_array_is_rows_too(self, folder: Path) -> None:
        content = '\ufeff[\n {"a": "x"},\n {"a": "é"}\n]\n'
        assert read(folder / "r.json", content) == [{"a": "x"}, {"a": "é"}]

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ('{"a":1}\nnot json\n', "r.jsonl, line 2: it is not valid JSON."),
            ('{"a":1}\n\n[1]\n', "r.jsonl, line 3: it is not a JSON object of variables."),
            ('{"a":NaN}', "r.jsonl, line 1: it is not valid JSON."),
            (b'{"a":"\xff"}', "r.jsonl, line 1: it is not UTF-8."),
            ('{"a":' + "[" * 5000, "r.jsonl, line 1: it is nested too deeply."),
            ("", "r.jsonl has no rows."),
            ("\n\n", "r.jsonl has no rows."),
        ],
    )
    def test_a_wrong_line_is_named(self, folder: Path, content: str | bytes, said: str) -> None:
        assert refused(folder / "r.jsonl", content) == said

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ('{"a": 1}', "r.json, line 1: a JSON array of objects is needed."),
            ('[{"a": 1},\n{"a": 2},\n]', "r.json, line 3: it is not valid JSON."),
            ('[{"a": 1},\n3]', "r.json, item 2: it is not a JSON object of variables."),
            (b'[{"a": "\xff"}]', "r.json, item 1: it is not UTF-8."),
            ("[]", "r.json has no rows."),
        ],
    )
    def test_a_wrong_array_is_told(self, folder: Path, content: str | bytes, said: str) -> None:
        assert refused(folder / "r.json", content) == said

    def test_an_array_that_is_too_large_says_what_to_use(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rows_module, "MAX_JSON_BYTES", 10)
        path = folder / "r.json"
        path.write_text('[{"a": "long"}]')
        with pytest.raises(Misuse) as caught, open_rows(str(path)):
            pass
        assert ".jsonl" in caught.value.remedy

    def test_a_line_without_end_is_not_read_into_memory(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rows_module, "MAX_ROW_BYTES", 100)
        assert "line 2: the line has more" in refused(
            folder / "r.jsonl", '{"a": 1}\n{"a": "' + "x" * 200
        )


class TestCSV:
    def test_the_header_names_the_texts(self, folder: Path) -> None:
        content = '\ufeffid,text\r\n1,"a ""quoted"" one"\r\n\r\n2,"two\nlines"\r\n3,\r\n'
        assert read(folder / "r.csv", content) == [
            {"id": "1", "text": 'a "quoted" one'},
            {"id": "2", "text": "two\nlines"},
            {"id": "3", "text": ""},
        ]

    def test_the_columns_are_known_before_the_rows(self, folder: Path) -> None:
        path = folder / "r.csv"
        path.write_text("a,b\n1,2\n")
        with open_rows(str(path)) as rows:
            assert rows.columns == ("a", "b")
            assert rows.first() == {"a": "1", "b": "2"}
            assert list(rows) == [{"a": "1", "b": "2"}]

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("a,b\n1,2\n3\n", "r.csv, line 3: it has 1 field, the header has 2."),
            ('a,b\n"x\ny",2\n1,2,3\n', "r.csv, line 4: it has 3 fields, the header has 2."),
            ("a,,b\n1,2,3\n", "r.csv, line 1: column 2 of the header has no name."),
            ("a,b,a\n1,2,3\n", "r.csv, line 1: the header has 'a' twice."),
            ('a\nx\n"never\nclosed\n', "r.csv, line 3: it is not valid CSV: a quote"),
            ('a\n"x"y\n', "r.csv, line 2: it is not valid CSV:"),
            (b"a\nx\n\xe9\n", "r.csv, line 3: it is not UTF-8."),
            ("a,b\r1,2\r", "r.csv, line 1: it is not valid CSV: lines must end"),
            ("a,b\n", "r.csv has no rows."),
            ("", "r.csv has no rows."),
        ],
    )
    def test_a_wrong_line_is_named(self, folder: Path, content: str | bytes, said: str) -> None:
        assert refused(folder / "r.csv", content).startswith(said)

    def test_a_field_without_end_is_not_read_into_memory(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rows_module, "MAX_ROW_BYTES", 100)
        said = refused(folder / "r.csv", 'a\n"' + "x\n" * 200)
        assert said.startswith("r.csv, line 2: a field has more")
        assert "never closed" in said


class TestWhere:
    def test_the_format_can_be_said(self, folder: Path) -> None:
        assert read(folder / "rows.txt", "a\n1\n", "csv") == [{"a": "1"}]

    def test_another_ending_needs_it(self, folder: Path) -> None:
        assert ".jsonl" in refused(folder / "rows.txt", "a\n1\n")

    def test_a_format_that_is_none_is_refused(self, folder: Path) -> None:
        assert "--format 'xml'" in refused(folder / "rows.csv", "a\n1\n", "xml")

    def test_stdin_needs_a_format(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"a": 1}\n')))
        with pytest.raises(Misuse), open_rows("-"):
            pass
        with open_rows("-", "jsonl") as rows:
            assert [plain(row) for row in rows] == [{"a": 1}]
            assert rows.place == "stdin, line 1"

    @pytest.mark.parametrize("name", ["none.csv", "folder.csv"])
    def test_what_can_not_be_read_is_said(self, folder: Path, name: str) -> None:
        (folder / "folder.csv").mkdir()
        with pytest.raises(Misuse, match="can't be read"), open_rows(str(folder / name)):
            pass

    def test_the_row_in_hand_has_a_place(self, folder: Path) -> None:
        path = folder / "r.csv"
        path.write_text('a\n"1\n1"\n\n2\n')
        with open_rows(str(path)) as rows:
            places = [rows.place for _ in rows]
        assert places == ["r.csv, line 2", "r.csv, line 5"]
        assert rows.bytes_read == rows.size_bytes
