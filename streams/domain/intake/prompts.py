"""The stored prompts that one input file uses: each looked up once, at its first use, and kept.

So a file sees one state of each prompt, whatever is published while it is read. Nothing is
rendered here: a line is held against the list of variables that the version reads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

from msgspec import Raw

from schemas.errors import ValidationCode
from schemas.records import PinnedPrompt
from streams.domain.intake.lines import (
    MAX_MESSAGE_CHARS,
    LineError,
    PromptedBody,
    is_null,
    shown,
)
from streams.domain.prompts.pins import MAX_PINS, MAX_PINS_BYTES, Pin, encode_pins
from streams.domain.prompts.prompt import Prompt, PromptError, compile_prompt
from streams.domain.prompts.registry import Resolved, Unresolved
from streams.domain.prompts.request import PromptUse

#: Looks a prompt up by slug and version number; without one, the published version.
Resolve = Callable[[str, int | None], Resolved | Unresolved]

Variables = Mapping[str, Raw]

_NOTHING: Variables = {}
#: Python reads and writes no longer whole numbers, and neither do the renderers.
_MAX_DIGITS = 4300
#: Without one of these in it, a value has no number that is out of range.
_RISKY = re.compile(rb"[0-9][eE]|[0-9]{300}")
_STRING_OR_NUMBER = re.compile(rb'"(?:[^"\\]++|\\.)*+"|-?([0-9][0-9.eE+-]*)', re.DOTALL)


def knows_none(slug: str, version: int | None) -> Unresolved:
    """For where there are no stored prompts."""
    return Unresolved("no_prompt")


def may_name_one(data: bytes) -> bool:
    """Whether a line with a stored prompt may be, or begin or end, in these bytes.

    In every such line stands the word, or an escaped letter of it.
    """
    return b"prompt" in data or b"\\u00" in data


class Pinned:
    """A version in use. number: of its pin, from 1; size_bytes: of its texts.

    sandboxed: whether only the sandbox can render it.
    """

    __slots__ = (
        "_prompt",
        "_reads",
        "lines",
        "model",
        "number",
        "pin",
        "sandboxed",
        "size_bytes",
        "unused",
    )

    def __init__(self, number: int, pin: Pin, prompt: Prompt) -> None:
        self.number = number
        self.pin = pin
        self.model = prompt.model
        self.size_bytes = prompt.size_bytes
        self.sandboxed = bool(prompt.sandboxed)
        #: Lines with it; and those of them with a variable that it doesn't read.
        self.lines = 0
        self.unused = 0
        self._prompt = prompt
        self._reads = prompt.variables

    def count(self, given: Variables | None) -> None:
        """Counts a line that was found good."""
        self.lines += 1
        if given and not given.keys() <= self._reads:
            self.unused += 1

    def is_filled_by(self, given: Variables, odd: bytes = b"") -> bool:
        """Whether the version can be rendered with those; False for a value beginning with `odd`.

        Texts are fine as they are, and most values are texts.
        """
        if not self._prompt.required <= given.keys():
            return False
        for name, raw in given.items():
            first = bytes(raw)[:1]
            if first != b'"' and (first == odd or not self._fits(name, raw)):
                return False
        return True

    def judge(self, use: PromptUse) -> None:
        """Raises LineError with the first variable, by name, that is missing or can't be used."""
        refusal = self._prompt.refusal(use.variables)
        if refusal is not None:
            kind = "Missing" if refusal.why == "missing" else "Null is not possible for"
            raise self._refused(use, kind, refusal.name)
        for name in sorted(use.variables):
            if not self._fits(name, use.variables[name]):
                raise self._refused(use, "A number is too large in", name)

    def _fits(self, name: str, raw: Raw) -> bool:
        if name not in self._reads:
            return True
        if is_null(raw):
            return name not in self._prompt.not_null
        return _has_ordinary_numbers(raw)

    def _refused(self, use: PromptUse, kind: str, name: str) -> LineError:
        message = (
            f"{kind} variable '{shown(name)}' "
            f"of prompt '{shown(self.pin.slug)}' version {self.pin.version}."
        )
        return _error(message, f"{use.names.variables}.{shown(name)}")


class Pins:
    """All versions in use by a file."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        #: By slug and version as lines give it: none, a number, or its digits.
        self._known: dict[tuple[str | None, int | str | None], Pinned] = {}
        self._pinned: dict[tuple[str, int], Pinned] = {}
        #: What is wrong with versions that can't be used.
        self._bad: dict[tuple[str, int], str] = {}
        self._bytes = 0
        self._compiled = False

    def find(self, body: PromptedBody) -> tuple[Pinned, Variables | None]:
        """The hot path: the version that a usual body names, and the variables for it.

        Raises KeyError for a first use, for what is wrong and for what is rare: pin() tells.
        """
        form = body.form
        if form is None:
            found, given, odd = self._known[body.slug, body.version], body.variables, b""
        else:
            # An object may be OpenAI's typed form of a text.
            found, given, odd = self._known[form.id, form.version], form.variables, b"{"
            if body.slug is not None:
                raise KeyError
        if not found.is_filled_by(given or _NOTHING, odd):
            raise KeyError
        return found, given

    def pin(self, use: PromptUse) -> Pinned:
        """The version that a line names, found good for it. Raises LineError."""
        found = self._known.get((use.slug, use.version))
        if found is None:
            found = self._pin(use)
            self._known[use.slug, use.version] = found
            if use.version is not None:
                self._known[use.slug, str(use.version)] = found
        found.judge(use)
        return found

    def compiled_one(self) -> bool:
        """Whether a version was compiled since the last call: that takes up to half a second."""
        compiled, self._compiled = self._compiled, False
        return compiled

    def pinned(self) -> tuple[PinnedPrompt, ...]:
        """What a batch shows of its pins, in their order."""
        return tuple(
            PinnedPrompt(slug=one.pin.slug, version=one.pin.version, lines=one.lines)
            for one in self._pinned.values()
        )

    def unused_variables(self) -> int:
        """Lines with a variable that their prompt doesn't read."""
        return sum(one.unused for one in self._pinned.values())

    def encoded(self) -> bytes:
        """The end of the plan."""
        return encode_pins([one.pin for one in self._pinned.values()])

    def _pin(self, use: PromptUse) -> Pinned:
        resolved = self._resolve(use.slug, use.version)
        if isinstance(resolved, Unresolved):
            raise _unresolved(use, resolved)
        known = self._pinned.get((use.slug, resolved.number))
        if known is not None:
            return known
        bad = self._bad.get((use.slug, resolved.number))
        if bad is not None:
            raise _error(bad, use.names.slug)
        if len(self._pinned) >= MAX_PINS:
            message = f"A batch may use at most {MAX_PINS} different versions of prompts."
            raise _error(message, use.names.slug)
        text = resolved.text
        self._bytes += len(text.messages) + len(text.model_config)
        if self._bytes > MAX_PINS_BYTES:
            message = f"The prompts of a batch may have at most {MAX_PINS_BYTES} bytes together."
            raise _error(message, use.names.slug)
        prompt = self._compile(use, resolved)
        pin = Pin(use.slug, resolved.number, text.messages, text.model_config)
        made = Pinned(len(self._pinned) + 1, pin, prompt)
        self._pinned[use.slug, resolved.number] = made
        return made

    def _compile(self, use: PromptUse, version: Resolved) -> Prompt:
        self._compiled = True
        try:
            return compile_prompt(version.text.messages, version.text.model_config)
        except PromptError as error:
            reason = shown(error.message, MAX_MESSAGE_CHARS)
            message = f"Prompt '{shown(use.slug)}' version {version.number} is not valid: {reason}"
            self._bad[use.slug, version.number] = message
            raise _error(message, use.names.slug) from error


def _unresolved(use: PromptUse, why: Unresolved) -> LineError:
    slug = shown(use.slug)
    if why.why == "no_prompt":
        return _error(f"No prompt found with slug '{slug}'.", use.names.slug)
    if use.version is not None:
        return _error(f"Prompt '{slug}' has no version {use.version}.", use.names.version)
    message = f"Prompt '{slug}' has no published version: publish one, or name a version."
    return _error(message, use.names.slug)


def _error(message: str, param: str) -> LineError:
    return LineError(ValidationCode.INVALID_REQUEST, message, f"body.{param}")


def _has_ordinary_numbers(raw: Raw) -> bool:
    """Whether no number in the value is infinite for Python, or too long for it."""
    if _RISKY.search(raw) is None:
        return True
    for match in _STRING_OR_NUMBER.finditer(raw):
        digits = match[1]
        if digits is None:
            continue
        if digits.isdigit():
            if len(digits) > _MAX_DIGITS:
                return False
        elif not math.isfinite(float(digits)):
            return False
    return True
