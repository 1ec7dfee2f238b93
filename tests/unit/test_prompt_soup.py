"""Random templates: each is refused or renders, and nothing else ever comes out."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from streams.domain.prompts.sandbox import Sandbox, analyse
from streams.domain.prompts.sandbox_filters import FILTERS, TESTS
from streams.domain.prompts.template import (
    MAX_RENDERED_BYTES,
    RenderError,
    TemplateError,
    parse_template,
)

_TOKENS = """{{ }} {% %} {# #} {%- -%} {{- -}} { } if elif else endif for in endfor raw endraw set
macro is not and or none true recursive include block loop x xs n s key self range _ __class__ ｘ é
. , : | ~ ( ) [ ] == < = + * ** % 1 0 -1 1e9 999999999999999999999 'a' "_b" ' " \\ |upper |d('')
|tojson |join(',') |attr('x') |list is_defined is_none {{x}} {{a}} {{x.a}} {{loop.index}} {#c#}"""
_soup = st.lists(
    st.sampled_from([*_TOKENS.split(), " ", "\n", "\r\n", "\x00", "{% if x %}", "{% endif %}"])
    | st.sampled_from(["{% for a in xs %}", "{% endfor %}", "{% else %}", "{% elif n %}"])
    | st.text(max_size=2),
    max_size=25,
)
_sources = _soup.map("".join) | _soup.map(" ".join) | _soup.map(lambda s: f"{{{{{' '.join(s)}}}}}")

_NAMES = ("x", "xs", "n", "s", "key", "a", "range")
_atoms = st.sampled_from([*_NAMES, "1", "-2", "0.5", "'text'", "''", "true", "[1, 'a', none]"])
_arguments = st.sampled_from(
    [
        "",
        "",
        "",
        "(1)",
        "('a')",
        "(true)",
        "(2, true)",
        "('x', true)",
        "([1, 'a'])",
        "(reverse=true)",
    ]
)
_BINARY = ("~", "==", "!=", "<", ">=", "in", "not in", "and", "or")
_wrong = st.sampled_from(
    ["x()", "x + 1", "x.__class__", "x|attr('a')", "loop", "[x]", "x * 9", "{}"]
)


def _larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Expressions of one or more others."""
    return st.one_of(
        st.tuples(inner, st.sampled_from([*FILTERS]), _arguments).map("{0[0]}|{0[1]}{0[2]}".format),
        st.tuples(inner, st.sampled_from([*TESTS]), _arguments).map(
            "({0[0]} is {0[1]}{0[2]})".format
        ),
        st.tuples(inner, st.sampled_from(_BINARY), inner).map(lambda x: f"({' '.join(x)})"),
        st.tuples(inner, inner, inner).map(lambda x: f"({x[0]} if {x[1]} else {x[2]})"),
        st.tuples(inner, inner).map(lambda x: f"({x[0]})[{x[1]}]"),
        inner.map(lambda x: f"({x}).a"),
        inner.map(lambda x: f"(not {x})"),
    )


_expressions = st.recursive(_atoms, _larger, max_leaves=4)
_texts = st.sampled_from([" ", "\n", "}}", "'", '"', "{# c #}", "{% raw %}{{ x() }}{% endraw %}"])
_statements = st.recursive(
    _texts | _expressions.map("{{{{ {} }}}}".format),
    lambda inner: st.one_of(
        st.tuples(_expressions, inner, inner).map(
            lambda x: f"{{% if {x[0]} %}}{x[1]}{{% elif n %}}.{{% else -%}}{x[2]}{{% endif %}}"
        ),
        st.tuples(st.sampled_from(["xs", "x|list", "x.a|d([])", "s|items"]), inner, inner).map(
            lambda x: (
                f"{{% for a in {x[0]} %}}{x[1]}{{{{ loop.last }}}}{{% else %}}{x[2]}{{% endfor %}}"
            )
        ),
        st.lists(inner, max_size=3).map("".join),
    ),
    max_leaves=6,
)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab_"), inner, max_size=2)
    ),
    max_leaves=5,
)
_variables = st.dictionaries(st.sampled_from([*_NAMES, "self", "loop"]), _json)
#: Each of the type that its name promises, so that many templates come to an end.
_fitting = st.fixed_dictionaries(
    {
        "x": st.dictionaries(st.just("a"), st.lists(st.integers(), max_size=3)),
        "xs": st.lists(st.integers()) | st.lists(st.text(max_size=3)),
        "n": st.integers(-5, 5) | st.floats(-5, 5),
        **dict.fromkeys(("s", "key", "a", "range"), st.text(max_size=5)),
    }
)


def _refusal(source: str) -> str | None:
    """What the refusal says; None if the template may be used."""
    try:
        parse_template(source)
        analyse(source)
    except TemplateError as error:
        return error.message
    return None


def _rendered(sandbox: Sandbox, source: str, values: dict[str, Any]) -> str | tuple[object, ...]:
    """The text, or what the error carries."""
    try:
        return sandbox.render(source, values)
    except RenderError as error:
        return error.args


def _check(source: str, values: dict[str, Any]) -> None:
    sandbox = Sandbox()
    refused = _refusal(source)
    text = _rendered(sandbox, source, values)
    if refused is not None:
        assert 0 < len(refused) < 700
        assert text == ()
        return
    sandbox.prepare(source)  # what is accepted compiles
    found = analyse(source)
    assert found.variables >= found.required | found.not_null
    read = {name: value for name, value in values.items() if name in found.variables}
    assert _rendered(sandbox, source, read) == text
    if isinstance(text, str):
        assert len(text.encode()) <= MAX_RENDERED_BYTES
        assert "object at 0x" not in text
    else:
        assert text == ()


@settings(max_examples=300, deadline=None)
@given(_sources, _variables)
def test_token_soup_renders_or_is_refused(source: str, values: dict[str, Any]) -> None:
    _check(source, values)


@settings(max_examples=300, deadline=None)
@given(_statements, _fitting | _variables)
def test_templates_that_could_be_meant_render_or_are_refused(
    source: str, values: dict[str, Any]
) -> None:
    _check(source, values)


@settings(max_examples=50, deadline=None)
@given(_statements, _wrong, _statements)
def test_one_wrong_expression_anywhere_refuses_the_whole(
    before: str, wrong: str, after: str
) -> None:
    for source in (
        f"{before}{{{{ {wrong} }}}}{after}",
        f"{{% if n %}}{before}{{% elif {wrong} %}}{after}{{% endif %}}",
        f"{{% for a in xs %}}{before}{{% else %}}{{{{ s ~ ({wrong})|d }}}}{{% endfor %}}",
    ):
        assert _refusal(source)
        assert _rendered(Sandbox(), source, {}) == ()
