"""What a template may be made of: an allow-list over its parsed form, and what it reads.

Every node of the parsed template is looked up in one table; what is not in it is refused by
name. On the way the variables are found:

    required    unless some use handles its absence: `is defined`, `is undefined`, default(…)
    not_null    unless some use handles null: `is none` and the other tests of type, `== none`,
                default(…, true), tojson, or asking whether it is true (if, and, or, not)

A use through an item (`user.name`) never handles the absence of `user`; it handles a null
`user` where it handles the absence of `name`. Targets of `for` are no variables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

from jinja2 import nodes

from streams.domain.prompts.sandbox_filters import FILTERS, TESTS, TESTS_OF_TYPE, Function
from streams.domain.prompts.template import TemplateError, check_name

#: Bounds that keep compiling quick, and far from Python's own limits.
MAX_NODES = 2000
MAX_DEPTH = 40
MAX_ELIFS = 50
MAX_LOOPS = 3
MAX_INTEGER = 2**63 - 1
LOOP_FIELDS = ("index", "index0", "first", "last", "length")

ALLOWED = (
    "Allowed are text, {{ variables }} and their items, {% if %}, {% for %} over a variable, "
    "comparisons, 'and', 'or', 'not', '~', filters and tests."
)
AS_TEXT = "To have '{{', '{%' or '{#' in the text, put it between {% raw %} and {% endraw %}."
#: How the constructs are called that people try; the rest go by Jinja2's own name.
_NAMES: dict[type[nodes.Node], str] = {
    nodes.Add: "'+'",
    nodes.Sub: "'-'",
    nodes.Mul: "'*'",
    nodes.Pow: "'**'",
    nodes.Div: "'/'",
    nodes.FloorDiv: "'//'",
    nodes.Mod: "'%'",
    nodes.Pos: "a sign",
    nodes.Neg: "a sign",
    nodes.Call: "a call",
    nodes.Dict: "an object in braces",
    nodes.Slice: "a slice",
    nodes.Assign: "{% set %}",
    nodes.AssignBlock: "{% set %}",
    nodes.Macro: "{% macro %}",
    nodes.CallBlock: "{% call %}",
    nodes.FilterBlock: "{% filter %}",
    nodes.Block: "{% block %}",
    nodes.Include: "{% include %}",
    nodes.Import: "{% import %}",
    nodes.FromImport: "{% from … import %}",
    nodes.Extends: "{% extends %}",
    nodes.With: "{% with %}",
    nodes.Scope: "{% autoescape %}",
    nodes.ScopedEvalContextModifier: "{% autoescape %}",
    nodes.NSRef: "an assignment to a field",
}


class _Handles(NamedTuple):
    """What the place of an expression does when its value is absent or null."""

    absent: bool = False
    null: bool = False


_NOTHING = _Handles()
_TRUTH = _Handles(null=True)


class Checker:
    """Goes through one parsed template; raises TemplateError at what isn't allowed."""

    def __init__(self) -> None:
        self.variables: set[str] = set()
        self.may_be_absent: set[str] = set()
        self.may_be_null: set[str] = set()
        self._nodes = 0
        self._depth = 0
        self._targets: tuple[frozenset[str], ...] = ()
        self._in_loop = False

    def check(self, template: nodes.Template) -> None:
        """Check the whole template."""
        self._all(template.body)

    def _visit(self, node: nodes.Node, handles: _Handles = _NOTHING) -> None:
        self._nodes += 1
        self._depth += 1
        if self._nodes > MAX_NODES:
            raise TemplateError(f"more than {MAX_NODES} elements in one template.", node.lineno)
        if self._depth > MAX_DEPTH:
            raise TemplateError(f"nested more than {MAX_DEPTH} levels deep.", node.lineno)
        visitor = _VISITORS.get(type(node))
        if visitor is None:
            raise refusal(node)
        visitor(self, node, handles)
        self._depth -= 1

    def _all(self, found: Iterable[nodes.Node]) -> None:
        for node in found:
            self._visit(node)

    def _text(self, node: nodes.TemplateData, handles: _Handles) -> None:
        """Nothing in it can be wrong."""

    def _output(self, node: nodes.Output, handles: _Handles) -> None:
        for child in node.nodes:
            if isinstance(child, nodes.Const) and child.value is None:
                raise TemplateError("none has no text.", child.lineno)
            self._visit(child)

    def _name(self, node: nodes.Name, handles: _Handles) -> None:
        check_name(node.name, node.lineno)
        if any(node.name in targets for targets in self._targets):
            return
        self.variables.add(node.name)
        if handles.absent:
            self.may_be_absent.add(node.name)
        if handles.null:
            self.may_be_null.add(node.name)

    def _const(self, node: nodes.Const, handles: _Handles) -> None:
        _check_constant(node.value, node.lineno)

    def _constants(self, node: nodes.List | nodes.Tuple, handles: _Handles) -> None:
        for item in node.items:
            if type(item) not in _CONSTANTS:
                raise TemplateError("a list may hold constants only.", item.lineno)
            self._visit(item)

    def _negative(self, node: nodes.Neg, handles: _Handles) -> None:
        if not isinstance(node.node, nodes.Const) or type(node.node.value) not in (int, float):
            raise refusal(node)
        self._visit(node.node)

    def _if(self, node: nodes.If, handles: _Handles) -> None:
        if len(node.elif_) > MAX_ELIFS:
            raise TemplateError(f"more than {MAX_ELIFS} elif in one if.", node.lineno)
        self._visit(node.test, _TRUTH)
        self._all(node.body)
        self._all(node.elif_)
        self._all(node.else_)

    def _choice(self, node: nodes.CondExpr, handles: _Handles) -> None:
        if node.expr2 is None:
            raise TemplateError("'if' within an expression needs an 'else'.", node.lineno)
        self._visit(node.test, _TRUTH)
        self._visit(node.expr1, handles)
        self._visit(node.expr2, handles)

    def _and(self, node: nodes.And, handles: _Handles) -> None:
        self._visit(node.left, _Handles(null=handles.null))
        self._visit(node.right, handles)

    def _or(self, node: nodes.Or, handles: _Handles) -> None:
        self._visit(node.left, _TRUTH)
        self._visit(node.right, handles)

    def _not(self, node: nodes.Not, handles: _Handles) -> None:
        self._visit(node.node, _TRUTH)

    def _compare(self, node: nodes.Compare, handles: _Handles) -> None:
        sides = [node.expr, *(operand.expr for operand in node.ops)]
        with_none = any(isinstance(side, nodes.Const) and side.value is None for side in sides)
        equal = all(operand.op in ("eq", "ne") for operand in node.ops)
        for side in sides:
            self._visit(side, _Handles(null=with_none and equal))

    def _concat(self, node: nodes.Concat, handles: _Handles) -> None:
        self._all(node.nodes)

    def _attribute(self, node: nodes.Getattr, handles: _Handles) -> None:
        base = node.node
        if isinstance(base, nodes.Name) and base.name == "loop":
            self._loop_field(node)
            return
        _check_key(node.attr, node.lineno)
        self._visit(base, _Handles(null=handles.absent))

    def _item(self, node: nodes.Getitem, handles: _Handles) -> None:
        if isinstance(node.arg, nodes.Const):
            _check_key(node.arg.value, node.lineno)
        self._visit(node.node, _Handles(null=handles.absent))
        self._visit(node.arg)

    def _loop_field(self, node: nodes.Getattr) -> None:
        if not self._in_loop:
            raise TemplateError("'loop' is known only in the body of a for.", node.lineno)
        if node.attr not in LOOP_FIELDS:
            fields = ", ".join(LOOP_FIELDS)
            raise TemplateError(f"of 'loop' there are only: {fields}.", node.lineno)

    def _filter(self, node: nodes.Filter, handles: _Handles) -> None:
        arguments = _arguments(node, FILTERS, "filter")
        for_default = node.name in ("default", "d")
        null = bool(arguments.get("boolean")) if for_default else node.name == "tojson"
        self._visit(cast(nodes.Node, node.node), _Handles(absent=for_default, null=null))

    def _test(self, node: nodes.Test, handles: _Handles) -> None:
        _arguments(node, TESTS, "test")
        absent = node.name in ("defined", "undefined")
        self._visit(node.node, _Handles(absent, null=node.name in TESTS_OF_TYPE))

    def _for(self, node: nodes.For, handles: _Handles) -> None:
        if node.recursive:
            raise TemplateError("a recursive for is not allowed.", node.lineno)
        if len(self._targets) >= MAX_LOOPS:
            raise TemplateError(f"more than {MAX_LOOPS} for within one another.", node.lineno)
        if not isinstance(_root(node.iter), nodes.Name):
            raise TemplateError("a for may go only over a variable or its items.", node.lineno)
        self._visit(node.iter)
        self._all(node.else_)
        outer = self._targets, self._in_loop
        self._targets = (*self._targets, _targets(node.target))
        if node.test is not None:
            self._in_loop = False
            self._visit(node.test, _TRUTH)
        self._in_loop = True
        self._all(node.body)
        self._targets, self._in_loop = outer


def refusal(node: nodes.Node) -> TemplateError:
    """The error for a construct that isn't allowed."""
    name = _NAMES.get(type(node), type(node).__name__)
    hint = f" {AS_TEXT}" if isinstance(node, nodes.Dict) else ""
    child = next(node.iter_child_nodes(), node)  # for Jinja2's Scope has no line
    line = child.lineno if node.lineno is None else node.lineno
    return TemplateError(f"{name} is not allowed. {ALLOWED}{hint}", line)


def _check_constant(value: object, line: int) -> None:
    if type(value) is int and not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise TemplateError("a whole number that long is not allowed.", line)
    if type(value) is float and not math.isfinite(value):
        raise TemplateError("a number that large is not allowed.", line)
    if type(value) is str:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise TemplateError("a text is not valid Unicode.", line) from None


def _check_key(key: object, line: int) -> None:
    if isinstance(key, str) and key.startswith("_"):
        shown = key if len(key) <= 20 else f"{key[:20]}…"
        message = f"names must not begin with an underscore, as '{shown}' does."
        raise TemplateError(message, line)


def _root(node: nodes.Node | None) -> nodes.Node | None:
    """What a chain of items and filters begins with."""
    while isinstance(node, nodes.Getattr | nodes.Getitem | nodes.Filter):
        node = node.node
    return node


def _targets(target: nodes.Node) -> frozenset[str]:
    names: Sequence[nodes.Node] = target.items if isinstance(target, nodes.Tuple) else [target]
    for name in names:
        if not isinstance(name, nodes.Name):
            raise TemplateError("a for needs a name, or names with commas.", target.lineno)
        check_name(name.name, name.lineno)
    return frozenset(name.name for name in cast(Sequence[nodes.Name], names))


def _arguments(
    node: nodes.Filter | nodes.Test, table: dict[str, Function], kind: str
) -> dict[str, Any]:
    """The arguments by name. Raises TemplateError where the table doesn't allow them."""
    function = table.get(node.name)
    if function is None:
        shown = node.name if len(node.name) <= 40 else f"{node.name[:40]}…"
        message = f"there is no {kind} '{shown}'. There are: {', '.join(table)}."
        raise TemplateError(message, node.lineno)
    names = [parameter.name for parameter in function.parameters]
    pairs = [*zip(names, node.args, strict=False)]
    pairs += [(pair.key, pair.value) for pair in cast(list[nodes.Keyword], node.kwargs)]
    given = {name: _constant(argument, node) for name, argument in pairs}
    wrong = (
        node.dyn_args is not None
        or node.dyn_kwargs is not None
        or len(node.args) > len(names)
        or len(given) < max(len(pairs), function.needed)
        or not given.keys() <= set(names)
    )
    for parameter in function.parameters:
        wrong = wrong or (parameter.name in given and not parameter.takes(given[parameter.name]))
    if wrong:
        takes = ", ".join(f"{p.name} ({p.wanted})" for p in function.parameters) or "no argument"
        raise TemplateError(f"the {kind} '{node.name}' takes {takes}.", node.lineno)
    return given


def _constant(node: nodes.Expr, of: nodes.Node) -> Any:
    """The value of an argument, which has to be a constant."""
    if type(node) not in _CONSTANTS:
        raise TemplateError("arguments of filters and tests must be constants.", of.lineno)
    Checker()._visit(node)
    return node.as_const()


_CONSTANTS = (nodes.Const, nodes.List, nodes.Tuple, nodes.Neg)
#: The allow-list. Exact types: what Jinja2 may yet derive from them is not in it.
_VISITORS: dict[type[nodes.Node], Callable[[Checker, Any, _Handles], None]] = {
    nodes.TemplateData: Checker._text,
    nodes.Output: Checker._output,
    nodes.Name: Checker._name,
    nodes.Const: Checker._const,
    nodes.List: Checker._constants,
    nodes.Tuple: Checker._constants,
    nodes.Neg: Checker._negative,
    nodes.If: Checker._if,
    nodes.CondExpr: Checker._choice,
    nodes.And: Checker._and,
    nodes.Or: Checker._or,
    nodes.Not: Checker._not,
    nodes.Compare: Checker._compare,
    nodes.Concat: Checker._concat,
    nodes.Getattr: Checker._attribute,
    nodes.Getitem: Checker._item,
    nodes.Filter: Checker._filter,
    nodes.Test: Checker._test,
    nodes.For: Checker._for,
}
