"""Templates that are more than text with `{{name}}` in it: checked and rendered with Jinja2.

    analyse(source)                     what the template reads; TemplateError if it isn't allowed
    Sandbox().render(source, variables) its text

Four walls, each of which would do alone: only what the allow-list names is compiled
(prompt_sandbox_check); only our own filters and tests exist (prompt_sandbox_filters); the
environment never reads an attribute of a Python object, calls nothing and has no globals; and
the values are JSON. How long and with how much memory a template may run is for the process
that it runs in (streams/rendering).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.lexer import Token, TokenStream
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from streams.domain.prompts.sandbox_check import ALLOWED, AS_TEXT, LOOP_FIELDS, Checker
from streams.domain.prompts.sandbox_filters import CONCATENATED, FILTERS, TESTS, concatenated
from streams.domain.prompts.template import (
    MAX_RENDERED_BYTES,
    RenderError,
    RenderFailed,
    RenderTimeout,
    RenderTooLarge,
    TemplateError,
    normalised,
    text_of,
)

#: Bounds that keep reading a template quick, and far from Python's own limits.
MAX_TOKENS = 10_000
MAX_BRACKETS = 20
#: What a sandbox keeps compiled.
MAX_TEMPLATES = 128
MAX_TEMPLATES_CHARS = 1 << 20

_OPEN_AT_END = re.compile(r"(\{#[-+]?|\{%[-+]?\s*raw\s*(%\}|-%\}\s*))\Z")
_OPENING = ("lparen", "lbracket", "lbrace")
_CLOSING = ("rparen", "rbracket", "rbrace")


class Analysis(NamedTuple):
    """What a template reads: all variables, those that must be given, those never null."""

    variables: frozenset[str]
    required: frozenset[str]
    not_null: frozenset[str]


def analyse(source: str) -> Analysis:
    """The variables of a template that only the sandbox can render. Raises TemplateError."""
    _, checker = _checked(source)
    variables = frozenset(checker.variables)
    return Analysis(variables, variables - checker.may_be_absent, variables - checker.may_be_null)


class Sandbox:
    """Renders templates; keeps those that it compiled. Not for several threads at once."""

    def __init__(self) -> None:
        self._compiled: OrderedDict[str, tuple[Template, frozenset[str]]] = OrderedDict()
        self._chars = 0

    def prepare(self, source: str) -> None:
        """Compiles a template, which takes far longer than rendering it. Raises RenderError."""
        with _errors():
            self._template(source)

    def render(self, source: str, variables: Mapping[str, Any]) -> str:
        """The template's text with these variables, which are JSON values.

        Raises RenderFailed, RenderTooLarge, and RenderTimeout where memory ran out.
        """
        with _errors():
            template, names = self._template(source)
            read = {name: variables[name] for name in names if name in variables}
            return _joined(template.root_render_func(template.new_context(read)))

    def _template(self, source: str) -> tuple[Template, frozenset[str]]:
        found = self._compiled.get(source)
        if found is not None:
            self._compiled.move_to_end(source)
            return found
        tree, checker = _checked(source)
        _Texts().visit(tree)
        tree.set_environment(_environment)
        template = Template.from_code(_environment, _environment.compile(tree), {})
        found = self._compiled[source] = template, frozenset(checker.variables)
        self._chars += len(source)
        while len(self._compiled) > MAX_TEMPLATES or self._chars > MAX_TEMPLATES_CHARS:
            dropped, _ = self._compiled.popitem(last=False)
            self._chars -= len(dropped)
        return found


class _Texts(NodeTransformer):
    """Puts our own concatenation for Jinja2's, which has Python's texts of values."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802 (Jinja2's name)
        self.generic_visit(node)
        values = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(values, CONCATENATED, [], [], None, None, lineno=node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja2's sandbox without globals and calls; a dot means an item, never an attribute."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            undefined=StrictUndefined,
            autoescape=False,
            keep_trailing_newline=True,
            finalize=text_of,
            optimized=False,
            cache_size=0,
        )
        self.globals.clear()
        self.filters = {name: function.run for name, function in FILTERS.items()}
        self.filters[CONCATENATED] = concatenated
        self.tests = {name: function.run for name, function in TESTS.items()}

    def getattr(self, obj: Any, attribute: str) -> Any:
        """The item of that name."""
        if isinstance(obj, LoopContext):
            return getattr(obj, attribute) if attribute in LOOP_FIELDS else self.undefined()
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """The item of a JSON object or list; undefined if there is none."""
        if isinstance(obj, Undefined):
            raise SecurityError("an item of nothing")
        if isinstance(obj, dict) and isinstance(argument, str) and not argument.startswith("_"):
            return obj[argument] if argument in obj else self.undefined()
        if isinstance(obj, list | tuple) and type(argument) is int:
            return obj[argument] if -len(obj) <= argument < len(obj) else self.undefined()
        return self.undefined()

    def call(self, *arguments: Any, **named: Any) -> NoReturn:
        """Nothing may be called."""
        raise SecurityError("a call")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> NoReturn:
        """There is no arithmetic."""
        raise SecurityError("arithmetic")

    def _tokenize(self, *arguments: Any, **named: Any) -> TokenStream:
        return TokenStream(_few(super()._tokenize(*arguments, **named)), None, None)


_environment = _Environment()


def _few(tokens: Iterable[Token]) -> Iterator[Token]:
    """The tokens, as long as they are few, and brackets not deep."""
    depth = 0
    for number, token in enumerate(tokens):
        if number >= MAX_TOKENS:
            raise TemplateError(f"more than {MAX_TOKENS} elements in one template.", token.lineno)
        depth += (token.type in _OPENING) - (token.type in _CLOSING)
        if depth > MAX_BRACKETS:
            message = f"brackets are nested more than {MAX_BRACKETS} levels deep."
            raise TemplateError(message, token.lineno)
        yield token


def _checked(source: str) -> tuple[nodes.Template, Checker]:
    """The parsed template, all of which is allowed."""
    source = normalised(source)
    if _OPEN_AT_END.search(source):  # Jinja2 would drop it without a word.
        what = "a comment or {% raw %} is opened at the end of the template."
        raise TemplateError(f"{what} {AS_TEXT}", source.count("\n") + 1)
    try:
        tree = Parser(_environment, source).parse()
    except TemplateError:
        raise
    except TemplateSyntaxError as error:
        what = (error.message or "the template can't be read").rstrip(".")[:200]
        raise TemplateError(f"{what}. {ALLOWED} {AS_TEXT}", error.lineno) from None
    except ValueError:  # Python refuses to read thousands of digits.
        raise TemplateError("A number in the template is too long.") from None
    except RecursionError:
        raise TemplateError("The template is nested too deeply.") from None
    except Exception:  # noqa: BLE001 (whatever a hostile template makes the parser raise)
        raise TemplateError(f"The template can't be read. {ALLOWED}") from None
    checker = Checker()
    checker.check(tree)
    return tree, checker


@contextmanager
def _errors() -> Iterator[None]:
    """Whatever goes wrong becomes a RenderError that says nothing of the caller's."""
    try:
        yield
    except RenderError:
        raise
    except MemoryError:
        raise RenderTimeout from None
    except Exception:  # noqa: BLE001 (a hostile template may make Jinja2 raise anything)
        raise RenderFailed from None


def _joined(pieces: Iterable[str]) -> str:
    """All of a rendering, as long as it is not too large."""
    texts: list[str] = []
    size = 0
    for piece in pieces:
        size += len(piece) if piece.isascii() else len(piece.encode())
        if size > MAX_RENDERED_BYTES:
            raise RenderTooLarge
        texts.append(piece)
    return "".join(texts)
