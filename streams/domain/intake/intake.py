"""Checks an input file as its bytes come in, and makes the plan of its lines.

    Intake(rules).feed(chunk) ... feed(chunk).finish()  ->  Accepted | Refused

The verdict depends on the bytes alone, never on how they were cut into chunks. Memory: one block
of lines, 16 bytes of plan and about 130 bytes of custom-id hash a line, and the stored prompts
that lines use, whatever the file holds.

- Lines end in LF or CRLF; a byte order mark at the start is skipped.
- Blank lines at the end are ignored (up to MAX_BLANK_LINES), others are errors.
- Every line's first error is collected, up to MAX_ERRORS; then they are only counted.
- Reading ends early (`stopped`) where the rest can't change that the file is refused: above the
  number of lines or bytes of a batch, or within a line several times too long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from schemas.errors import ValidationCode
from schemas.records import BatchError, PinnedPrompt
from streams.domain.billing.tokens import CHARACTERS_PER_TOKEN
from streams.domain.intake import lines
from streams.domain.intake.prompts import Pinned, Pins, Resolve, Variables, knows_none
from streams.domain.plan import PlanBuilder

#: Entries of errors.data[]; one more says how many were left out.
MAX_ERRORS = 1000
#: Different models in one file. Their names travel in one record.
MAX_MODELS = 1000
#: Blank lines at the end that are ignored; a longer run is taken for lines.
MAX_BLANK_LINES = 1000
#: Embedding inputs in one batch.
MAX_EMBEDDING_INPUTS = 50_000
#: A line this many times too long ends the reading instead of being skipped.
_HOPELESS = 4
_BOM = b"\xef\xbb\xbf"
#: What msgspec raises for a line that is not as it should be.
_REFUSALS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_UNUSUAL = (*_REFUSALS, KeyError)
_NULL = msgspec.Raw(b"null")


def _always(_model: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Rules:
    """What an input file is held against. Sizes are bytes; prompts: those of the tenant.

    priced: whether the model may be used as far as prices go.
    """

    endpoint: str
    serves: Callable[[str], bool]
    prompts: Resolve = knows_none
    max_lines: int = 50_000
    max_line_bytes: int = 4 << 20
    max_file_bytes: int = 200 << 20
    priced: Callable[[str], bool] = _always


@dataclass(frozen=True, slots=True)
class Accepted:
    """The file is good. plan: the plan object's bytes; models, prompts: in the order of its
    numbers."""

    plan: bytes
    total: int
    models: tuple[str, ...]
    estimated_input_tokens: int
    prompts: tuple[PinnedPrompt, ...] = ()
    #: Lines with a variable that their prompt doesn't read.
    unused_variables: int = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """The file is bad, for these reasons."""

    errors: tuple[BatchError, ...]


class Intake:
    """One file being checked."""

    def __init__(self, rules: Rules) -> None:
        """Raises KeyError for an endpoint that isn't in intake_lines.ENDPOINTS."""
        self._rules = rules
        self._decode = lines.decoder(rules.endpoint)
        self._decode_prompted = lines.prompted_decoder(rules.endpoint)
        self._counts_inputs = rules.endpoint == "/v1/embeddings"
        self._plan = PlanBuilder()
        self._models: dict[str | None, int] = {}
        self._pins = Pins(rules.prompts)
        #: 64-bit hash of each custom_id -> row; a false alarm in 50,000 ids is one in 10^10.
        self._seen: dict[int, int] = {}
        self._errors: list[BatchError] = []
        self._more_errors = 0
        #: What is wrong with the file as a whole.
        self._whole: list[BatchError] = []
        #: The cut line at the end of what was fed; its bytes, or only their number if too many.
        self._tail: list[bytes] = []
        self._tail_bytes = 0
        self._fed = 0
        self._offset = 0
        self._row = 0
        self._blank = 0
        #: Embedding inputs so far.
        self.inputs = 0
        #: Whether all of the present block is UTF-8, so that no line needs a look.
        self._is_utf8 = True
        #: Of the lines so far, with the texts of their prompts; taken for characters.
        self._input_bytes = 0
        #: Reading on can't change the verdict.
        self.stopped = False

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes of the file."""
        for _ in self.steps(chunk):
            pass

    def steps(self, chunk: bytes) -> Iterator[None]:
        """The same in steps, because new prompts may take a second each; to be run to its end."""
        if self.stopped:
            return
        room = self._rules.max_file_bytes - self._fed
        self._fed += len(chunk)
        yield from self._feed(chunk[:room])
        if len(chunk) > room and not self.stopped:
            self._errors, self._more_errors = [], 0
            self._stop(ValidationCode.FILE_TOO_LARGE, too_large(self._rules.max_file_bytes))

    def finish(self) -> Accepted | Refused:
        """The verdict, when all bytes were fed or `stopped` is set."""
        if self._tail_bytes and not self.stopped:
            for _ in self._feed(b"\n"):
                pass
        if not self._row and not self._whole:
            self._stop(ValidationCode.EMPTY_FILE, "The input file has no lines.")
        if self.inputs > MAX_EMBEDDING_INPUTS:
            message = f"A batch may have at most {MAX_EMBEDDING_INPUTS} inputs to embed."
            self._stop(ValidationCode.TOO_MANY_REQUESTS, message)
        if self._errors or self._whole:
            return Refused((*self._errors, *self._not_shown(), *self._whole))
        return Accepted(
            self._plan.build(self._pins.encoded()),
            self._row,
            tuple(name for name in self._models if name is not None),
            -(-self._input_bytes // CHARACTERS_PER_TOKEN),
            self._pins.pinned(),
            self._pins.unused_variables(),
        )

    def _feed(self, chunk: bytes) -> Iterator[None]:
        if self._tail_bytes and not self._tail:
            chunk = self._skip_line(chunk)
        cut = 0 if self.stopped else chunk.rfind(b"\n") + 1
        if cut:
            self._tail.append(chunk[:cut])
            block = b"".join(self._tail)
            self._tail, self._tail_bytes = [], 0
            yield from self._take_block(block)
        rest = chunk[cut:]
        if rest and not self.stopped:
            self._tail.append(rest)
            self._tail_bytes += len(rest)
            # Four bytes of grace: a byte order mark and a carriage return don't count.
            if self._tail_bytes > self._rules.max_line_bytes + 4:
                self._tail = []
                self._stop_if_hopeless(self._tail_bytes)

    def _skip_line(self, chunk: bytes) -> bytes:
        """Throws away more of a line that is too long; what follows it in the chunk."""
        end = chunk.find(b"\n")
        self._tail_bytes += len(chunk) if end < 0 else end
        if self._stop_if_hopeless(self._tail_bytes) or end < 0:
            return b""
        self._add_line_too_long()
        self._offset += self._tail_bytes + 1
        self._tail_bytes = 0
        return chunk[end + 1 :]

    def _take_block(self, block: bytes) -> Iterator[None]:
        """Takes whole lines, each with its line feed."""
        if not self._offset and block.startswith(_BOM):
            self._offset = len(_BOM)
            block = block[len(_BOM) :]
        found = block.split(b"\n")
        found.pop()
        self._is_utf8 = _is_utf8(block)
        yield from self._take_lines(found, has_cr=b"\r" in block)

    def _take_lines(self, found: list[bytes], *, has_cr: bool) -> Iterator[None]:
        """The hot loop: usual lines with messages are taken here, everything else elsewhere."""
        decode, models, seen, plan = self._decode, self._models, self._seen, self._plan.add
        longest, most = self._rules.max_line_bytes, self._rules.max_lines
        counts_inputs, is_utf8 = self._counts_inputs, self._is_utf8
        #: Lines with a prompt are seldom alone: after one, the next is tried as one first.
        prompted = False
        for line in found:
            length = len(line) - (has_cr and line.endswith(b"\r"))
            if prompted and (prompted := self._take_prompted(line, length)):
                self._offset += len(line) + 1
                continue
            row = self._row
            try:
                if not is_utf8:
                    line.decode()
                parsed = decode(line)
                body = parsed.body
                number = models[body.model]
            except _UNUSUAL:
                prompted = self._take_prompted(line, length)
                if not prompted:
                    self._take_unusual(line, length)
                    if self._pins.compiled_one():
                        yield
            else:
                if (
                    body.stream
                    or body.needed == _NULL
                    or length > longest
                    or row >= most
                    or self._blank
                ):
                    self._take_unusual(line, length)
                elif seen.setdefault(hash(parsed.custom_id), row) != row:
                    self._add_duplicate(parsed.custom_id)
                else:
                    if counts_inputs:
                        self.inputs += lines.count_inputs(body.needed)
                    plan(self._offset, length, number)
                    self._input_bytes += length
                    self._row = row + 1
            if self.stopped:
                return
            self._offset += len(line) + 1

    def _take_prompted(self, line: bytes, length: int) -> bool:
        """Takes a usual line with a stored prompt; False if it isn't one."""
        try:
            if not self._is_utf8:
                line.decode()
            parsed = self._decode_prompted(line)
            body = parsed.body
            pinned, given = self._pins.find(body)
            number = self._models[body.model or pinned.model]
        except _UNUSUAL:
            return False
        row, rules = self._row, self._rules
        too_much = length > rules.max_line_bytes or row >= rules.max_lines
        if body.stream or too_much or self._blank:
            return False
        if self._seen.setdefault(hash(parsed.custom_id), row) != row:
            self._add_duplicate(parsed.custom_id)
        else:
            self._add_prompted(length, number, pinned, given)
        return True

    def _take_unusual(self, line: bytes, length: int) -> None:
        """A line that is bad, blank, too long, too many, or the first with its model."""
        if self._stop_if_hopeless(len(line)):
            return
        if length > self._rules.max_line_bytes:
            self._add_line_too_long()
        elif not line.strip(lines.BLANK):
            self._blank += 1
            if self._blank > MAX_BLANK_LINES:
                self._begin_line()
        elif self._begin_line():
            try:
                self._accept(line, length)
            except lines.LineError as error:
                self._add_error(error.code, error.message, error.param)

    def _accept(self, line: bytes, length: int) -> None:
        """Plans the line. Raises LineError with what is wrong with it."""
        judged = lines.judge(line, self._rules.endpoint)
        use = judged.use
        pinned = None if use is None else self._pins.pin(use)
        number = self._number(judged.model or (pinned.model if pinned else None))
        if self._seen.setdefault(hash(judged.custom_id), self._row) != self._row:
            self._add_duplicate(judged.custom_id)
        elif use is not None and pinned is not None:
            self._add_prompted(length, number, pinned, use.variables)
        else:
            if self._counts_inputs:
                self.inputs += lines.count_inputs(judged.needed)
            self._plan.add(self._offset, length, number)
            self._input_bytes += length
            self._row += 1

    def _add_prompted(
        self, length: int, number: int, pinned: Pinned, given: Variables | None
    ) -> None:
        pinned.count(given)
        self._plan.add(self._offset, length, number, pinned.number, sandboxed=pinned.sandboxed)
        self._input_bytes += length + pinned.size_bytes
        self._row += 1

    def _number(self, model: str | None) -> int:
        if model is None:
            raise lines.model_required()
        if model not in self._models:
            if not self._rules.serves(model):
                raise lines.model_not_found(model)
            if not self._rules.priced(model):
                raise lines.model_without_price(model)
            if len(self._models) >= MAX_MODELS:
                message = f"A batch may name at most {MAX_MODELS} different models."
                raise lines.LineError(ValidationCode.INVALID_REQUEST, message, "body.model")
            self._models[model] = len(self._models)
        return self._models[model]

    def _begin_line(self) -> bool:
        """Before a line that isn't blank: so the blank ones before it were not at the end.

        False when that makes too many lines.
        """
        blank, self._blank = self._blank, 0
        for _ in range(blank):
            if self._has_room():
                error = lines.unparseable()
                self._add_error(error.code, error.message)
        return self._has_room()

    def _has_room(self) -> bool:
        if self._row >= self._rules.max_lines and not self.stopped:
            message = f"A batch may have at most {self._rules.max_lines} requests."
            self._stop(ValidationCode.TOO_MANY_REQUESTS, message)
        return not self.stopped

    def _add_line_too_long(self) -> None:
        if self._begin_line():
            message = f"A line may have at most {self._rules.max_line_bytes} bytes."
            self._add_error(ValidationCode.LINE_TOO_LARGE, message)

    def _stop_if_hopeless(self, line_bytes: int) -> bool:
        if line_bytes > self._rules.max_line_bytes * _HOPELESS:
            self._add_line_too_long()
            self.stopped = True
        return self.stopped

    def _add_duplicate(self, custom_id: str) -> None:
        first = self._seen[hash(custom_id)] + 1
        message = (
            f"Duplicate custom_id '{lines.shown(custom_id)}': "
            f"lines {first} and {self._row + 1} have the same one."
        )
        self._add_error(ValidationCode.DUPLICATE_CUSTOM_ID, message, "custom_id")

    def _add_error(self, code: ValidationCode, message: str, param: str | None = None) -> None:
        """Adds the one error of the present line, and goes on to the next."""
        self._row += 1
        if len(self._errors) < MAX_ERRORS:
            self._errors.append(BatchError(code=code, message=message, param=param, line=self._row))
        else:
            self._more_errors += 1

    def _stop(self, code: ValidationCode, message: str) -> None:
        self.stopped = True
        self._whole.append(BatchError(code=code, message=message))

    def _not_shown(self) -> list[BatchError]:
        if not self._more_errors:
            return []
        message = f"{self._more_errors} more lines have errors that are not shown."
        return [BatchError(code=ValidationCode.INVALID_REQUEST, message=message)]


def too_large(limit: int) -> str:
    """The message for a file above this many bytes."""
    return f"The input file of a batch may have at most {limit} bytes."


def _is_utf8(block: bytes) -> bool:
    if block.isascii():
        return True
    try:
        block.decode()
    except UnicodeDecodeError:
        return False
    return True
