"""Rows of variables from a file or from stdin, one at a time: JSONL, a JSON array, or CSV.

    jsonl   one object a line; blank lines are skipped
    json    one array of objects, up to MAX_JSON_BYTES
    csv     UTF-8, a header with a name for each column; every value is a text

Values of JSON stay as they are written (msgspec.Raw). What is wrong is told with file and line.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from msgspec import Raw

from api.cli.failure import Misuse

FORMATS = ("jsonl", "json", "csv")
#: Longest line of a file, and longest field of a CSV file.
MAX_ROW_BYTES = 16 << 20
#: Largest JSON array; it is held in memory.
MAX_JSON_BYTES = 256 << 20
_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv"}
_BOM = b"\xef\xbb\xbf"
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_BYTE = re.compile(r"\(byte (\d+)\)")
_MAX_SHOWN = 64

Row = Mapping[str, Any]


class Rows:
    """The rows of one file. Iterate once; `place` is then where the row in hand comes from.

    columns: the header of a CSV file, else None. size_bytes: None where it is not known.
    """

    def __init__(self, file: BinaryIO, name: str, kind: str, size_bytes: int | None) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self.bytes_read = 0
        self.columns: tuple[str, ...] | None = None
        self._file = file
        self._line = 0
        self._item = 0
        self._row_line = 0
        readers = {"jsonl": self._jsonl, "json": self._json, "csv": self._csv}
        self._rows = readers[kind]()

    @property
    def place(self) -> str:
        """`rows.csv, line 18`."""
        if self._item:
            return f"{self.name}, item {self._item}"
        return f"{self.name}, line {self._row_line}"

    def first(self) -> Row:
        """The first row, which will still come. Raises Misuse if there is none."""
        row = next(self._rows, None)
        if row is None:
            raise Misuse(f"{self.name} has no rows.")
        self._rows = chain([row], self._rows)
        return row

    def __iter__(self) -> Iterator[Row]:
        """The rows. Raises Misuse."""
        return self._rows

    def _lines(self) -> Iterator[bytes]:
        """The lines with their ends, without a byte order mark."""
        while line := self._read_line():
            self._line += 1
            if len(line) > MAX_ROW_BYTES:
                self._row_line = self._line
                raise self._wrong(f"the line has more than {MAX_ROW_BYTES >> 20} MiB")
            self.bytes_read += len(line)
            yield line.removeprefix(_BOM) if self._line == 1 else line

    def _read_line(self) -> bytes:
        try:
            return self._file.readline(MAX_ROW_BYTES + 1)
        except OSError as error:
            raise Misuse(f"{self.name} can't be read: {error.strerror}.") from error

    def _jsonl(self) -> Iterator[Row]:
        for line in self._lines():
            if line.strip():
                self._row_line = self._line
                yield self._object(line)

    def _json(self) -> Iterator[Row]:
        self._row_line = 1
        try:
            data = self._file.read(MAX_JSON_BYTES + 1)
        except OSError as error:
            raise Misuse(f"{self.name} can't be read: {error.strerror}.") from error
        if len(data) > MAX_JSON_BYTES:
            raise Misuse(
                f"{self.name} has more than {MAX_JSON_BYTES >> 20} MiB, too much for one array.",
                "Write one object a line instead, as .jsonl: such a file is read as it comes.",
            )
        try:
            items = msgspec.json.decode(data.removeprefix(_BOM), type=list[Raw])
        except msgspec.ValidationError as error:
            raise self._wrong("a JSON array of objects is needed") from error
        except _NOT_JSON as error:
            if found := _BYTE.search(str(error)):
                self._row_line = data.count(b"\n", 0, int(found[1])) + 1
            raise self._wrong(_why(error)) from error
        share = len(data) / len(items) if items else 0.0
        for number, item in enumerate(items, 1):
            self._item = number
            self.bytes_read = round(share * number)
            yield self._object(bytes(item))

    def _object(self, data: bytes) -> Row:
        try:
            data.decode()
            return msgspec.json.decode(data, type=dict[str, Raw])
        except msgspec.ValidationError as error:
            raise self._wrong("it is not a JSON object of variables") from error
        except _NOT_JSON as error:
            raise self._wrong(_why(error)) from error

    def _csv(self) -> Iterator[Row]:
        csv.field_size_limit(MAX_ROW_BYTES)
        records = csv.reader(self._texts(), strict=True)
        header = self._record(records)
        if header is None:
            return
        self.columns = names = self._checked_header(header)
        while (record := self._record(records)) is not None:
            if len(record) != len(names):
                what = f"it has {_fields(len(record))}, the header has {len(names)}"
                raise self._wrong(what)
            yield dict(zip(names, record, strict=True))

    def _texts(self) -> Iterator[str]:
        for line in self._lines():
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                self._row_line = self._line
                raise self._wrong(_why(error)) from error

    def _record(self, records: Iterator[list[str]]) -> list[str] | None:
        """The next record that is not a blank line; None at the end."""
        try:
            while True:
                self._row_line = self._line + 1
                record = next(records, None)
                if record is None or record:
                    return record
        except csv.Error as error:
            raise self._wrong(_why_no_csv(error)) from error

    def _checked_header(self, header: list[str]) -> tuple[str, ...]:
        for number, name in enumerate(header, 1):
            if not name.strip():
                raise self._wrong(f"column {number} of the header has no name")
            if name in header[: number - 1]:
                raise self._wrong(f"the header has {_shown(name)} twice")
        return tuple(header)

    def _wrong(self, what: str) -> Misuse:
        return Misuse(f"{self.place}: {what}.")


@contextmanager
def open_rows(where: str, kind: str | None = None) -> Iterator[Rows]:
    """The rows of a file, or of stdin if `where` is `-`. Raises Misuse.

    kind: one of FORMATS; by the file's ending if None.
    """
    if kind is not None and kind not in FORMATS:
        raise Misuse(f"--format {kind!r} is none of {', '.join(FORMATS)}.")
    if where == "-":
        if kind is None:
            raise Misuse("Rows from stdin need --format jsonl, json or csv.")
        yield _begun(Rows(sys.stdin.buffer, "stdin", kind, None))
        return
    path = Path(where)
    kind = kind or _SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise Misuse(f"{where} ends in none of {', '.join(_SUFFIXES)}.", "Say --format.")
    try:
        size = path.stat().st_size if path.is_file() else None
        file = path.open("rb")
    except OSError as error:
        raise Misuse(f"{where} can't be read: {error.strerror}.") from error
    with file:
        yield _begun(Rows(file, path.name, kind, size))


def _begun(rows: Rows) -> Rows:
    """The rows, of which there is at least one; a header was read."""
    rows.first()
    return rows


def _why(error: Exception) -> str:
    match error:
        case UnicodeDecodeError():
            return "it is not UTF-8"
        case RecursionError():
            return "it is nested too deeply"
    return "it is not valid JSON"


def _why_no_csv(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end" in text:
        return "it is not valid CSV: a quote that opens here is never closed"
    if "field limit" in text:
        limit = f"{MAX_ROW_BYTES >> 20} MiB"
        return f"a field has more than {limit}; perhaps a quote is never closed"
    if "new-line" in text:
        return "it is not valid CSV: lines must end in LF or CRLF"
    return f"it is not valid CSV: {text}"


def _fields(count: int) -> str:
    return f"{count} field" if count == 1 else f"{count} fields"


def _shown(name: str) -> str:
    return repr(name if len(name) <= _MAX_SHOWN else f"{name[: _MAX_SHOWN - 1]}…")
