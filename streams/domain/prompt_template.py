"""Templates of stored prompts: plain ones are taken apart here, others go to the sandbox.

A plain template is text and `{{name}}`. It is kept as parts, which the hot path joins; whatever
else begins with `{{`, `{%` or `{#` is Jinja2 and is judged by domain.prompt_sandbox. Both mean
the same where both apply: line ends become "\\n", and a value's text is text_of() of it.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass

#: Bytes of one template, and of all texts of one version together.
MAX_SOURCE_BYTES = 64 * 1024
#: Bytes of one rendered prompt.
MAX_RENDERED_BYTES = 4 << 20
#: Longest name of a variable, in characters.
MAX_NAME_CHARS = 128

_PLACEHOLDER = re.compile(r"\{\{[ \t\n]*([A-Za-z_][A-Za-z0-9_]*)[ \t\n]*\}\}", re.ASCII)
_OPENING = re.compile(r"\{[{%#]")
_NEWLINE = re.compile(r"\r\n|\r")
#: Names that mean something else in Jinja2: templates with them are left to it, or refused.
_NOT_NAMES = frozenset(
    "true false none True False None not and or if else elif in is for endfor endif block "
    "extends print macro include from import set with autoescape call filter recursive "
    "self super caller varargs kwargs loop".split()
)


class TemplateError(ValueError):
    """The template can't be used. `message` is for its author and is never logged."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__("bad template")
        self.message = message
        self.line = line


class RenderError(Exception):
    """The template could not be rendered with these variables. Carries nothing of either."""


class RenderFailed(RenderError):  # noqa: N818 - it is what happened
    """An operation of the template does not work with the values given."""


class RenderTooLarge(RenderError):  # noqa: N818 - it is what happened
    """The rendered text is above MAX_RENDERED_BYTES."""


class RenderTimeout(RenderError):  # noqa: N818 - it is what happened
    """Rendering took too much time or memory."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A placeholder."""

    name: str


@dataclass(frozen=True, slots=True)
class Template:
    """A template found good.

    source: with normalised line ends. parts: texts and variables in order; None where only the
    sandbox can render it. variables: all names it reads; required: those that must be given;
    not_null: those that must not be null.
    """

    source: str
    parts: tuple[str | Variable, ...] | None
    variables: frozenset[str]
    required: frozenset[str]
    not_null: frozenset[str]


def parse_template(source: str) -> Template:
    """Judges a template and takes a plain one apart. Raises TemplateError."""
    if len(source.encode("utf-8", "surrogatepass")) > MAX_SOURCE_BYTES:
        raise TemplateError(f"A template may have at most {MAX_SOURCE_BYTES} bytes.")
    source = _NEWLINE.sub("\n", source)
    parts = _plain_parts(source)
    if parts is not None:
        names = frozenset(part.name for part in parts if isinstance(part, Variable))
        return Template(source, parts, names, names, names)
    # Jinja2 is imported only where a template needs it.
    from streams.domain.prompt_sandbox import analyse  # noqa: PLC0415

    found = analyse(source)
    return Template(source, None, found.variables, found.required, found.not_null)


def text_of(value: object) -> str:
    """A value's text: a string as it is, others as JSON. Raises ValueError where it has none."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError("no text")
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _plain_parts(source: str) -> tuple[str | Variable, ...] | None:
    """The parts of a plain template; None if it is more than that."""
    parts: list[str | Variable] = []
    at = 0
    while (opening := _OPENING.search(source, at)) is not None:
        found = _PLACEHOLDER.match(source, opening.start())
        if found is None or not _is_plain_name(found[1]):
            return None
        if found.start() > at:
            parts.append(source[at : found.start()])
        parts.append(Variable(found[1]))
        at = found.end()
    if at < len(source):
        parts.append(source[at:])
    return tuple(parts)


def _is_plain_name(name: str) -> bool:
    return name not in _NOT_NAMES and not name.startswith("_") and len(name) <= MAX_NAME_CHARS
