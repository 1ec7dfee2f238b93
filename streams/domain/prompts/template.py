"""The template language of stored prompts, and its fast half: text with `{{name}}` in it.

    parse_template(source)  ->  Template
        parts: text, Variable, text, …     a plain template, spliced by its user
        parts: None                        anything else that is allowed: the sandbox renders it

    RenderError
     ├─ RenderFailed      the variables don't fit the template
     ├─ RenderTooLarge    the rendered text is larger than MAX_RENDERED_BYTES
     └─ RenderTimeout     rendering took too much time or memory

Both halves agree where both apply: the same names, the same text for each value. Jinja2 is
imported only for templates that are not plain.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

#: The largest source of one template, in UTF-8.
MAX_SOURCE_BYTES = 64 * 1024
#: The largest rendered text, in UTF-8.
MAX_RENDERED_BYTES = 4 << 20
#: The longest name of a variable.
MAX_NAME_CHARS = 128

#: Words that are no variables: operators of the template language, and what Jinja2 itself puts
#: into a template's scope. Constants (true, none, …) are the sandbox's.
RESERVED = frozenset(
    {"and", "or", "not", "in", "is", "if", "else"}
    | {"self", "super", "caller", "varargs", "kwargs", "loop"}
)
_CONSTANTS = frozenset({"true", "false", "none", "True", "False", "None"})
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_NEWLINE = re.compile(r"\r\n?")
_TAG = re.compile(r"\{\{[ \t\n]*([A-Za-z_][A-Za-z0-9_]*)[ \t\n]*\}\}|\{[{%#]", re.ASCII)


class TemplateError(ValueError):
    """The template can't be used. `message` is for its owner; str() holds no text of theirs."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__("the template is refused" if line is None else f"refused at line {line}")
        self.message = message if line is None else f"Line {line}: {message}"
        self.line = line


class RenderError(Exception):
    """The template was not rendered. Never carries text of a caller."""


class RenderFailed(RenderError):  # noqa: N818 (says what became of the text)
    """The variables don't fit: one is missing, null, or of a type that the template can't use."""


class RenderTooLarge(RenderError):  # noqa: N818 (says what became of the text)
    """The rendered text is larger than allowed."""


class RenderTimeout(RenderError):  # noqa: N818 (says what became of the text)
    """Rendering took more time or memory than allowed."""


@dataclass(frozen=True, slots=True)
class Variable:
    """The place of a variable's text."""

    name: str


@dataclass(frozen=True, slots=True)
class Template:
    """A template that may be used.

    source: with `\\n` for every line break. parts: None if only the sandbox can render it.
    variables: all that it reads; required: those that must be given; not_null: those that, if
    given, must not be null.
    """

    source: str
    parts: tuple[str | Variable, ...] | None
    variables: frozenset[str]
    required: frozenset[str]
    not_null: frozenset[str]


def parse_template(source: str) -> Template:
    """What a template's source means. Raises TemplateError."""
    source = normalised(source)
    parts = _plain_parts(source)
    if parts is None:
        # Here, because most templates are plain and their users then never load Jinja2.
        from streams.domain.prompts.sandbox import analyse  # noqa: PLC0415

        found = analyse(source)
        return Template(source, None, found.variables, found.required, found.not_null)
    names = frozenset(part.name for part in parts if isinstance(part, Variable))
    return Template(source, parts, names, names, names)


def text_of(value: Any) -> str:
    """The text of a JSON value: a string as it is, anything else as JSON.

    Raises ValueError for null and for what JSON can't say (NaN, infinities, endless nesting).
    """
    if isinstance(value, str):
        return value
    if value is None:
        raise ValueError("null has no text")
    return json_of(value)


def json_of(value: Any) -> str:
    """The value as JSON. Raises ValueError."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise ValueError("not a JSON value") from None


def check_name(name: str, line: int | None) -> None:
    """Raise TemplateError if no variable may be called that."""
    shown = name if len(name) <= MAX_NAME_CHARS else f"{name[:20]}…"
    if not _NAME.fullmatch(name):
        message = f"'{shown}' is not a name: use letters a to z, digits and underscores."
    elif len(name) > MAX_NAME_CHARS:
        message = f"the name '{shown}' is longer than {MAX_NAME_CHARS} characters."
    elif name.startswith("_"):
        message = f"names must not begin with an underscore, as '{shown}' does."
    elif name in RESERVED:
        message = f"'{shown}' is a word of the template language; call the variable otherwise."
    else:
        return
    raise TemplateError(message, line)


def normalised(source: str) -> str:
    """The source with `\\n` for every line break. Raises TemplateError at its size."""
    try:
        size = len(source.encode())
    except UnicodeEncodeError:
        raise TemplateError("The template is not valid Unicode (half a surrogate pair).") from None
    if size > MAX_SOURCE_BYTES:
        message = f"The template has {size} bytes; at most {MAX_SOURCE_BYTES} are allowed."
        raise TemplateError(message)
    return _NEWLINE.sub("\n", source)


def _plain_parts(source: str) -> tuple[str | Variable, ...] | None:
    """The parts of a plain template; None if it isn't one."""
    parts: list[str | Variable] = []
    position, line, counted = 0, 1, 0
    for tag in _TAG.finditer(source):
        name = tag[1]
        if name is None or name in _CONSTANTS:
            return None
        line += source.count("\n", counted, tag.start(1))
        counted = tag.start(1)
        check_name(name, line)
        if tag.start() > position:
            parts.append(source[position : tag.start()])
        parts.append(Variable(name))
        position = tag.end()
    if position < len(source):
        parts.append(source[position:])
    return tuple(parts)
