"""What `usage.recorded` says of each line of a batch, and where the output file says otherwise."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from schemas.records import Usage, UsageRecorded
from streams.domain.billing.reconcile.output_file import UnreadableLine, numbers_of, usage_of_line

_NO_USAGE = Usage()


class RecordedLines:
    """Folds usage, repeated or not: of several copies of a line the first one counts.

    Memory: four bytes a line, and with usage some hundred.
    """

    def __init__(self, total: int, *, with_usage: bool) -> None:
        self._names: list[str] = []
        self._models = array("i", [-1]) * total
        self._usage: dict[int, Usage] | None = {} if with_usage else None

    def fold(self, record: UsageRecorded) -> None:
        """One record of this batch."""
        places: dict[int, int] = {}
        for line in record.lines:
            if not 0 <= line.line < len(self._models):
                continue
            if self._models[line.line] < 0 and 0 <= line.model < len(record.models):
                if line.model not in places:
                    places[line.model] = self._place(record.models[line.model])
                self._models[line.line] = places[line.model]
            if self._usage is not None and line.usage != _NO_USAGE:
                self._usage.setdefault(line.line, line.usage)

    def model(self, line: int) -> str | None:
        """The line's model, if that is known."""
        place = self._models[line]
        return None if place < 0 else self._names[place]

    @property
    def usage(self) -> Mapping[int, Usage]:
        """The usage of lines that used anything, by number."""
        return self._usage or {}

    def _place(self, name: str) -> int:
        if name not in self._names:
            self._names.append(name)
        return self._names.index(name)


class LineFault(StrEnum):
    """What is wrong with a line."""

    UNREADABLE = "unreadable"
    UNKNOWN = "of_no_such_request"
    TWICE = "twice_in_the_file"
    OTHER_USAGE = "usage_differs"
    NOT_RECORDED = "not_recorded"
    MISSING = "not_in_the_file"


@dataclass(frozen=True, slots=True)
class LineDifference:
    """One line. number: in the input file, from 0. place: in the output file, from 1."""

    fault: LineFault
    number: int | None
    place: int | None
    request_id: str | None
    output: Usage = _NO_USAGE
    recorded: Usage = _NO_USAGE


class LineCheck:
    """Holds an output file's lines, one after the other, against what was recorded of them."""

    def __init__(self, batch_id: str, endpoint: str, total: int, recorded: RecordedLines) -> None:
        self._endpoint = endpoint
        self._numbers = numbers_of(batch_id, total)
        self._unseen = {number: request for request, number in self._numbers.items()}
        self._recorded = recorded.usage

    def feed(self, place: int, text: bytes) -> LineDifference | None:
        """The next line of the file; None if it is as it was recorded."""
        try:
            request_id, used = usage_of_line(text, self._endpoint)
        except UnreadableLine:
            return LineDifference(LineFault.UNREADABLE, None, place, None)
        number = self._numbers.get(request_id)
        if number is None:
            # Whatever stands there as an id may be anything.
            return LineDifference(LineFault.UNKNOWN, None, place, None, used)
        recorded = self._recorded.get(number, _NO_USAGE)
        if self._unseen.pop(number, None) is None:
            fault = LineFault.TWICE
        elif used == recorded:
            return None
        else:
            fault = LineFault.OTHER_USAGE if number in self._recorded else LineFault.NOT_RECORDED
        return LineDifference(fault, number, place, request_id, used, recorded)

    def missing(self) -> Iterator[LineDifference]:
        """After the last line: what was recorded and is not in the file."""
        for number in sorted(self._recorded):
            request_id = self._unseen.get(number)
            if request_id is not None:
                recorded = self._recorded[number]
                yield LineDifference(LineFault.MISSING, number, None, request_id, recorded=recorded)
