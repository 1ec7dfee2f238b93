"""The filters and tests that templates may use: small, bounded, and over JSON values only.

Each is a function of the value and of constants that were checked when the template was read.
None reads a Python attribute by name, formats, calls back, or makes a text much longer than
what it was given; a text beyond MAX_RENDERED_BYTES characters ends the rendering. Names and
arguments are Jinja2's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from jinja2 import StrictUndefined, Undefined
from jinja2.filters import do_title

from streams.domain.prompts.template import MAX_RENDERED_BYTES, RenderTooLarge, json_of, text_of

#: Names that no template can write: what we put into the parsed template ourselves.
CONCATENATED = "~"

_MAX_COUNT = 1_000_000
_MAX_PLACES = 15
_WORD = re.compile(r"\w+")


class Parameter(NamedTuple):
    """An argument that a filter or test takes; `takes` says whether a constant will do."""

    name: str
    takes: Callable[[Any], bool]
    wanted: str


class Function(NamedTuple):
    """A filter or test: run(value, *arguments); the first `needed` parameters must be given."""

    run: Callable[..., Any]
    parameters: tuple[Parameter, ...] = ()
    needed: int = 0


def concatenated(values: Iterable[Any], separator: str = "") -> str:
    """The texts of the values, one after another."""
    pieces: list[str] = []
    size = 0
    for value in values:
        text = text_of(value)
        size += len(text) + len(separator)
        if size > MAX_RENDERED_BYTES:
            raise RenderTooLarge
        pieces.append(text)
    return separator.join(pieces)


def _bounded(run: Callable[..., Any]) -> Callable[..., Any]:
    def bounded(*arguments: Any, **named: Any) -> Any:
        result = run(*arguments, **named)
        if isinstance(result, str) and len(result) > MAX_RENDERED_BYTES:
            raise RenderTooLarge
        return result

    return bounded


def _on_text(run: Callable[..., Any]) -> Callable[..., Any]:
    return lambda value: run(text_of(value))


def _items(value: Any) -> list[Any]:
    """What `for` would go through."""
    if isinstance(value, str | list | tuple | dict):
        return list(value)
    raise TypeError("neither text nor a list nor an object")


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("not a number")
    return value


def _folded(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _default(value: Any, default_value: Any = "", boolean: bool = False) -> Any:
    if isinstance(value, Undefined) or (boolean and not value):
        return default_value
    return value


def _length(value: Any) -> int:
    return len(_items(value))


def _join(value: Any, d: str = "") -> str:
    return concatenated(_items(value), d)


def _first(value: Any) -> Any:
    return next(iter(_items(value)), StrictUndefined("nothing is first"))


def _last(value: Any) -> Any:
    return next(reversed(_items(value)), StrictUndefined("nothing is last"))


def _round(value: Any, precision: int = 0, method: str = "common") -> int | float:
    number = _number(value)
    if method == "common":
        return round(number, precision)
    whole = (math.ceil if method == "ceil" else math.floor)(number * 10**precision)
    return float(whole / 10**precision)


def _int(value: Any, default: Any = 0) -> Any:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    try:
        return int(float(value))  # "12.5"
    except (TypeError, ValueError, OverflowError):
        return default


def _float(value: Any, default: Any = 0.0) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        return default


def _truncate(
    value: Any, length: int = 255, killwords: bool = False, end: str = "...", leeway: int = 5
) -> str:
    text = text_of(value)
    if len(text) <= length + leeway:
        return text
    kept = text[: max(length - len(end), 0)]
    return (kept if killwords else kept.rsplit(" ", 1)[0]) + end


def _wordcount(value: Any) -> int:
    return sum(1 for _ in _WORD.finditer(text_of(value)))


def _sort(value: Any, reverse: bool = False, case_sensitive: bool = False) -> list[Any]:
    return sorted(_items(value), key=None if case_sensitive else _folded, reverse=reverse)


def _unique(value: Any, case_sensitive: bool = False) -> list[Any]:
    seen: dict[str, Any] = {}
    for item in _items(value):
        seen.setdefault(json_of(item if case_sensitive else _folded(item)), item)
    return list(seen.values())


def _pairs(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    raise TypeError("not an object")


def _reverse(value: Any) -> Any:
    return value[::-1] if isinstance(value, str) else _items(value)[::-1]


def _extreme(choose: Callable[..., Any]) -> Callable[..., Any]:
    def run(value: Any, case_sensitive: bool = False) -> Any:
        nothing = StrictUndefined("the list is empty")
        key = None if case_sensitive else _folded
        return choose(_items(value), key=key, default=nothing)

    return run


def _sum(value: Any) -> int | float:
    return sum(map(_number, _items(value)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_COUNT


def _anything(value: object) -> bool:
    return True


_TEXT, _FLAG = (_is_text, "a text"), (_is_flag, "true or false")
_COUNT = (_is_count, f"a number from 0 to {_MAX_COUNT}")
_ANY = (_anything, "a constant")
_PLACES = (lambda v: type(v) is int and 0 <= v <= _MAX_PLACES, f"a number from 0 to {_MAX_PLACES}")
_METHOD = (lambda v: v in ("common", "ceil", "floor"), "'common', 'ceil' or 'floor'")
_LIST = (lambda v: isinstance(v, list | tuple | str), "a list or a text")
_CASE = Parameter("case_sensitive", *_FLAG)

_FILTERS: dict[str, Function] = {
    "abs": Function(lambda value: abs(_number(value))),
    "capitalize": Function(_on_text(str.capitalize)),
    "default": Function(
        _default, (Parameter("default_value", *_ANY), Parameter("boolean", *_FLAG))
    ),
    "first": Function(_first),
    "float": Function(_float, (Parameter("default", *_ANY),)),
    "int": Function(_int, (Parameter("default", *_ANY),)),
    "items": Function(_pairs),
    "join": Function(_join, (Parameter("d", *_TEXT),)),
    "last": Function(_last),
    "length": Function(_length),
    "list": Function(_items),
    "lower": Function(_on_text(str.lower)),
    "max": Function(_extreme(max), (_CASE,)),
    "min": Function(_extreme(min), (_CASE,)),
    "reverse": Function(_reverse),
    "round": Function(_round, (Parameter("precision", *_PLACES), Parameter("method", *_METHOD))),
    "sort": Function(_sort, (Parameter("reverse", *_FLAG), _CASE)),
    "string": Function(text_of),
    "sum": Function(_sum),
    "title": Function(_on_text(do_title)),
    "tojson": Function(json_of),
    "trim": Function(_on_text(str.strip)),
    "truncate": Function(
        _truncate,
        (
            Parameter("length", *_COUNT),
            Parameter("killwords", *_FLAG),
            Parameter("end", *_TEXT),
            Parameter("leeway", *_COUNT),
        ),
    ),
    "unique": Function(_unique, (_CASE,)),
    "upper": Function(_on_text(str.upper)),
    "wordcount": Function(_wordcount),
}
_FILTERS |= {"d": _FILTERS["default"], "count": _FILTERS["length"]}

#: What a template may write behind `|`.
FILTERS = {name: f._replace(run=_bounded(f.run)) for name, f in sorted(_FILTERS.items())}

_OTHER = (Parameter("other", *_ANY),)
_TESTS: dict[str, Function] = {
    "boolean": Function(_is_flag),
    "defined": Function(lambda value: not isinstance(value, Undefined)),
    "eq": Function(lambda value, other: value == other, _OTHER, 1),
    "even": Function(lambda value: _number(value) % 2 == 0),
    "false": Function(lambda value: value is False),
    "ge": Function(lambda value, other: value >= other, _OTHER, 1),
    "gt": Function(lambda value, other: value > other, _OTHER, 1),
    "in": Function(lambda value, other: value in other, (Parameter("seq", *_LIST),), 1),
    "le": Function(lambda value, other: value <= other, _OTHER, 1),
    "lt": Function(lambda value, other: value < other, _OTHER, 1),
    "mapping": Function(lambda value: isinstance(value, dict)),
    "ne": Function(lambda value, other: value != other, _OTHER, 1),
    "none": Function(lambda value: value is None),
    "number": Function(_is_number),
    "odd": Function(lambda value: _number(value) % 2 == 1),
    "sequence": Function(lambda value: isinstance(value, list | tuple)),
    "string": Function(_is_text),
    "true": Function(lambda value: value is True),
    "undefined": Function(lambda value: isinstance(value, Undefined)),
}

#: What a template may write behind `is`.
TESTS = dict(sorted(_TESTS.items()))
#: Tests that say something of null without failing.
TESTS_OF_TYPE = frozenset(
    {"none", "string", "number", "boolean", "mapping", "sequence", "true", "false"}
)
