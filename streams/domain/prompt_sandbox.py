"""Templates that are more than text and `{{name}}`: a small, safe part of Jinja2.

    analyse(source)              parses it, holds every node against an allow-list, finds variables
    Sandbox().render(source, …)  renders it; in a process of its own, see streams.rendering

What is allowed: `if`, `for` over a variable or an item of one, comparisons, `and`, `or`, `not`,
items of JSON objects and lists, and the filters and tests of two short tables. Everything else is
refused by name when the prompt is created. Three walls stand behind the allow-list: Jinja2's
immutable sandbox, look-ups that never read a Python attribute, and the limits of the process.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, nodes
from jinja2.filters import FILTERS
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS

from streams.domain.prompt_template import (
    MAX_NAME_CHARS,
    MAX_RENDERED_BYTES,
    RenderFailed,
    RenderTimeout,
    RenderTooLarge,
    TemplateError,
    text_of,
)

#: Nodes of a template's syntax tree, how deep they may nest, and how deep loops may.
MAX_NODES = 5_000
MAX_DEPTH = 30
MAX_LOOPS = 3
#: Largest number that may stand in a template.
MAX_NUMBER = 1_000_000
#: Compiled templates that a Sandbox keeps.
_CACHED = 256

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)
#: Names that mean something to Jinja2 itself.
_RESERVED = frozenset({"self", "super", "caller", "varargs", "kwargs"})
_LOOP = "loop"
_LOOP_ITEMS = frozenset({"index", "index0", "revindex", "revindex0", "first", "last", "length"})

#: Filters by name; none of them can make a text much longer than what it is given.
_FROM_JINJA = (
    "abs capitalize count d default first float int last length list lower max min round sort "
    "title trim truncate upper wordcount"
)
#: Tests by name.
_TESTS = (
    "boolean defined eq even false float ge gt in integer le lt mapping ne none number odd "
    "sequence string true undefined"
)
_ABSENCE_TESTS = frozenset({"defined", "undefined"})
_DEFAULTS = frozenset({"d", "default"})

_PLAIN_NODES = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.If,
    nodes.CondExpr,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.List,
    nodes.Tuple,
)
#: What callers call the things that are refused.
_CALLED: dict[type[nodes.Node], str] = {
    nodes.Call: "a call",
    nodes.Mul: "'*'",
    nodes.Pow: "'**'",
    nodes.Mod: "'%'",
    nodes.Div: "'/'",
    nodes.FloorDiv: "'//'",
    nodes.Add: "'+'",
    nodes.Sub: "'-'",
    nodes.Neg: "'-'",
    nodes.Pos: "'+'",
    nodes.Concat: "'~'",
    nodes.Assign: "'set'",
    nodes.AssignBlock: "'set'",
    nodes.Macro: "'macro'",
    nodes.CallBlock: "'call'",
    nodes.FilterBlock: "a filter block",
    nodes.Block: "'block'",
    nodes.Extends: "'extends'",
    nodes.Include: "'include'",
    nodes.Import: "'import'",
    nodes.FromImport: "'from … import'",
    nodes.With: "'with'",
    nodes.ScopedEvalContextModifier: "'autoescape'",
    nodes.Dict: "an object",
    nodes.Slice: "a slice",
}


@dataclass(frozen=True, slots=True)
class Analysis:
    """What a template reads.

    variables: all names. required: those whose absence no use handles (`is defined`, `default`).
    not_null: those whose null no use handles (`is none`, `default(…, true)`, as a condition).
    """

    variables: frozenset[str]
    required: frozenset[str]
    not_null: frozenset[str]


def analyse(source: str) -> Analysis:
    """Holds a template against the allow-list. Raises TemplateError."""
    environment = _Environment()
    try:
        tree = environment.parse(source)
        reader = _Reader()
        reader.read(tree)
        environment.from_string(source)
    except TemplateSyntaxError as error:
        message = f"The template is not valid (line {error.lineno}): {error.message}."
        raise TemplateError(message[:500], error.lineno) from None
    except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError) as error:
        if isinstance(error, TemplateError):
            raise
        raise TemplateError("The template is too complex.") from None
    return reader.found()


class Sandbox:
    """Renders templates that analyse() accepted; keeps them compiled."""

    def __init__(self) -> None:
        self._environment = _Environment()
        self._compiled: OrderedDict[str, Template] = OrderedDict()

    def render(self, source: str, variables: Mapping[str, Any]) -> str:
        """The text. Raises RenderFailed, RenderTooLarge, RenderTimeout, without caller's text."""
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template(source).generate(variables):
                size += len(piece)
                if size > MAX_RENDERED_BYTES:
                    raise RenderTooLarge
                pieces.append(piece)
        except (RenderTooLarge, RenderTimeout):
            raise
        except MemoryError:
            raise RenderTimeout from None
        except Exception:  # noqa: BLE001 - a stranger's program: whatever it is, it failed
            raise RenderFailed from None
        return "".join(pieces)

    def _template(self, source: str) -> Template:
        template = self._compiled.get(source)
        if template is None:
            # Whoever sends a source here has been told by analyse() that it is good; but the
            # texts come through Kafka and an object store, so it is asked again.
            analyse(source)
            template = self._compiled[source] = self._environment.from_string(source)
            if len(self._compiled) > _CACHED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(source)
        return template


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja2 with our tables, and look-ups that only ever find items of JSON values."""

    def __init__(self) -> None:
        super().__init__(
            undefined=StrictUndefined,
            finalize=_finalize,
            autoescape=False,
            keep_trailing_newline=True,
            optimized=False,
            cache_size=0,
        )
        self.globals.clear()
        self.filters = dict(_FILTERS)
        self.tests = {name: TESTS[name] for name in _TESTS.split()}

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`a.b`: an item, or one of the few facts about a loop."""
        if isinstance(obj, LoopContext) and attribute in _LOOP_ITEMS:
            return getattr(obj, attribute)
        return self._item(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`a['b']` and `a[0]`: an item."""
        return self._item(obj, argument)

    def is_safe_callable(self, obj: Any) -> bool:
        """Nothing is."""
        return False

    def _item(self, obj: Any, key: Any) -> Any:
        if isinstance(obj, dict) and isinstance(key, str) and key in obj:
            return obj[key]
        if isinstance(obj, list | tuple) and type(key) is int and -len(obj) <= key < len(obj):
            return obj[key]
        return self.undefined(obj=obj, name=key)


def _finalize(value: Any) -> str:
    return text_of(value)


def _join(values: Any, separator: str = "") -> str:
    texts = [text_of(value) for value in values]
    size = sum(map(len, texts)) + len(separator) * max(len(texts) - 1, 0)
    if size > MAX_RENDERED_BYTES:
        raise RenderTooLarge
    return separator.join(texts)


def _unique(values: Any) -> list[Any]:
    found: dict[str, Any] = {}
    for value in values:
        found.setdefault(repr(value), value)
    return list(found.values())


def _reverse(value: Any) -> Any:
    return value[::-1]


def _tojson(value: Any) -> str:
    return "null" if value is None else text_of([value])[1:-1]


_FILTERS: dict[str, Callable[..., Any]] = {
    **{name: FILTERS[name] for name in _FROM_JINJA.split()},
    "join": _join,
    "reverse": _reverse,
    "string": text_of,
    "tojson": _tojson,
    "unique": _unique,
}


class _Reader:
    """Walks a syntax tree: refuses what isn't allowed, and notes how names are used."""

    def __init__(self) -> None:
        self._count = 0
        self._loops = 0
        #: Names that loops bind, innermost last.
        self._bound: list[frozenset[str]] = []
        self._names: set[str] = set()
        self._may_be_absent: set[str] = set()
        self._may_be_null: set[str] = set()

    def found(self) -> Analysis:
        names = frozenset(self._names)
        return Analysis(names, names - self._may_be_absent, names - self._may_be_null)

    def read(self, node: nodes.Node, depth: int = 0) -> None:
        """This node and all below it. Raises TemplateError."""
        self._count += 1
        if self._count > MAX_NODES or depth > MAX_DEPTH:
            raise TemplateError("The template is too complex.", node.lineno)
        for child in self._checked(node):
            self.read(child, depth + 1)

    def _checked(self, node: nodes.Node) -> Iterator[nodes.Node]:
        """What is to be read below the node, which itself is good."""
        match node:
            case nodes.For():
                yield from self._for(node)
            case nodes.Name():
                self._name(node)
            case nodes.Const():
                _check_constant(node)
            case nodes.Getattr() | nodes.Getitem():
                yield from self._item(node)
            case nodes.Filter():
                yield from self._filter(node)
            case nodes.Test():
                yield from self._test(node)
            case _ if type(node) in _PLAIN_NODES:
                self._note_conditions(node)
                yield from node.iter_child_nodes()
            case _:
                what = _CALLED.get(type(node), "this")
                raise _refused(f"{what} is not available in templates", node)

    def _for(self, node: nodes.For) -> Iterator[nodes.Node]:
        if node.recursive:
            raise _refused("'recursive' is not available in templates", node)
        if self._loops >= MAX_LOOPS:
            raise _refused(f"loops may nest {MAX_LOOPS} deep", node)
        if not _is_path(node.iter):
            raise _refused("a loop goes over a variable, or an item of one", node.iter)
        yield node.iter
        bound = frozenset(_targets(node.target))
        self._loops += 1
        self._bound.append(bound | {_LOOP})
        if node.test is not None:
            yield node.test
        yield from node.body
        self._bound.pop()
        self._loops -= 1
        yield from node.else_

    def _name(self, node: nodes.Name) -> None:
        name = node.name
        if any(name in bound for bound in self._bound):
            return
        _check_name(name, node)
        if name == _LOOP:
            raise _refused("'loop' is known within a loop only", node)
        self._names.add(name)

    def _item(self, node: nodes.Getattr | nodes.Getitem) -> Iterator[nodes.Node]:
        if isinstance(node, nodes.Getattr):
            key: Any = node.attr
        elif isinstance(node.arg, nodes.Const) and type(node.arg.value) in (str, int):
            key = node.arg.value
        else:
            raise _refused("an item is named by a text or a number", node)
        if isinstance(key, str) and key.startswith("_"):
            raise _refused("names that begin with '_' are not available in templates", node)
        if isinstance(node.node, nodes.Name) and node.node.name == _LOOP:
            if key not in _LOOP_ITEMS:
                known = ", ".join(sorted(_LOOP_ITEMS))
                raise _refused(f"of 'loop' there are only {known}", node)
        elif not _is_path(node.node):
            raise _refused("only a variable has items", node)
        yield node.node

    def _filter(self, node: nodes.Filter) -> Iterator[nodes.Node]:
        if node.name not in _FILTERS or node.node is None:
            known = ", ".join(sorted(_FILTERS))
            raise _refused(f"of filters there are only {known}", node)
        _check_arguments(node)
        if node.name in _DEFAULTS:
            for name in self._free_name(node.node):
                self._may_be_absent.add(name)
                if len(node.args) > 1:
                    self._may_be_null.add(name)
        elif not all(isinstance(argument, nodes.Const) for argument in node.args):
            raise _refused("arguments of filters are constants", node)
        yield node.node
        yield from node.args

    def _test(self, node: nodes.Test) -> Iterator[nodes.Node]:
        if node.name not in _TESTS.split():
            known = ", ".join(_TESTS.split())
            raise _refused(f"of tests there are only {known}", node)
        _check_arguments(node)
        for name in self._free_name(node.node):
            if node.name in _ABSENCE_TESTS:
                self._may_be_absent.add(name)
            elif node.name == "none":
                self._may_be_null.add(name)
        yield node.node
        yield from node.args

    def _note_conditions(self, node: nodes.Node) -> None:
        """Notes variables whose truth is asked for: null is false."""
        asked: list[nodes.Node] = []
        match node:
            case nodes.If() | nodes.CondExpr():
                asked = [node.test]
            case nodes.And() | nodes.Or():
                asked = [node.left, node.right]
            case nodes.Not():
                asked = [node.node]
        for condition in asked:
            self._may_be_null.update(self._free_name(condition))

    def _free_name(self, node: nodes.Node) -> list[str]:
        """The variable that this expression is, if it is one."""
        if not isinstance(node, nodes.Name) or any(node.name in bound for bound in self._bound):
            return []
        return [node.name]


def _is_path(node: nodes.Node) -> bool:
    while isinstance(node, nodes.Getattr | nodes.Getitem):
        node = node.node
    return isinstance(node, nodes.Name)


def _targets(target: nodes.Node) -> list[str]:
    names = target.items if isinstance(target, nodes.Tuple) else [target]
    found = []
    for name in names:
        if not isinstance(name, nodes.Name):
            raise _refused("a loop's target is a name, or some names", target)
        _check_name(name.name, name)
        found.append(name.name)
    return found


def _check_name(name: str, node: nodes.Node) -> None:
    if _NAME.fullmatch(name) is None or len(name) > MAX_NAME_CHARS:
        what = "a name is a letter, then letters, digits and underscores, of ASCII"
        raise _refused(what, node)
    if name in _RESERVED:
        raise _refused(f"'{name}' can't be the name of a variable", node)


def _check_constant(node: nodes.Const) -> None:
    value = node.value
    if isinstance(value, int | float) and not -MAX_NUMBER <= value <= MAX_NUMBER:
        raise _refused(f"numbers go up to {MAX_NUMBER}", node)


def _check_arguments(node: nodes.Filter | nodes.Test) -> None:
    if node.kwargs or node.dyn_args or node.dyn_kwargs:
        raise _refused("arguments are given by position", node)


def _refused(what: str, node: nodes.Node) -> TemplateError:
    return TemplateError(f"Not allowed in line {node.lineno} of the template: {what}.", node.lineno)
