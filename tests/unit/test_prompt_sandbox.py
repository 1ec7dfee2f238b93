"""Templates beyond `{{name}}`: what is allowed, what it means, and what a template reads."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from streams.domain.prompts import sandbox as prompt_sandbox
from streams.domain.prompts.sandbox import Sandbox, analyse
from streams.domain.prompts.sandbox_check import MAX_DEPTH, MAX_ELIFS, MAX_NODES
from streams.domain.prompts.sandbox_filters import FILTERS, TESTS
from streams.domain.prompts.template import (
    MAX_RENDERED_BYTES,
    RenderFailed,
    RenderTimeout,
    RenderTooLarge,
    TemplateError,
    parse_template,
    text_of,
)

_VALUES: dict[str, Any] = {
    "t": "some Text, it's",
    "n": 7,
    "f": 2.5,
    "yes": True,
    "no": False,
    "nil": None,
    "xs": [3, 1, 2],
    "names": ["b", "A", "a", "B"],
    "pairs": [["k", 1], ["l", 2]],
    "user": {"name": "Zoë", "items": [{"id": 1}, {"id": 2}], "class": "c", "nil": None},
    "empty": "",
    "none_": [],
}


def _render(source: str, **more: Any) -> str:
    return Sandbox().render(source, {**_VALUES, **more})


_STATEMENTS = [
    ("{% if yes %}A{% elif n %}B{% else %}C{% endif %}", "A"),
    ("{% if no %}A{% elif n %}B{% else %}C{% endif %}", "B"),
    ("{% if no %}A{% elif empty %}B{% else %}C{% endif %}\n", "C\n"),
    (
        "{% for x in xs %}{{ loop.index }}/{{ loop.length }}:{{ x }} {% endfor %}",
        "1/3:3 2/3:1 3/3:2 ",
    ),
    ("{% for x in xs %}{{ x }}{{ '' if loop.last else ', ' }}{% endfor %}", "3, 1, 2"),
    ("{% for x in xs %}{{ loop.first }}{{ loop.index0 }}{% endfor %}", "true0false1false2"),
    ("{% for k, v in pairs %}{{ k }}={{ v }};{% endfor %}", "k=1;l=2;"),
    ("{% for k, v in user|items if v is string %}{{ k }};{% endfor %}", "name;class;"),
    ("{% for x in none_ %}x{% else %}nothing{% endfor %}", "nothing"),
    ("{% for x in gone|default([1, 2]) %}{{ x }}{% endfor %}", "12"),
    (
        "{% for i in user.items %}{% for c in i %}{{ c }}{{ i[c] }}{% endfor %}{% endfor %}",
        "id1id2",
    ),
    ("{% for x in xs %}{{ names[loop.index0] }}{% endfor %}", "bAa"),
    ("{% for x in xs|sort(reverse=true) if x > 1 %}{{ x }}{% endfor %}", "32"),
    ("{% for n in xs %}{{ n }}{% endfor %}{{ n }}", "3127"),
    ("a {# b {{ c }} #}d{%- if yes -%} e {%- endif %} \n", "a de \n"),
    ("{% raw %}{{ n }}{% x %}{% endraw %}{{ n }}", "{{ n }}{% x %}7"),
    ("{% print n %}", "7"),
]
_EXPRESSIONS = [
    ("'a' if n > 5 else 'b'", "a"),
    ("'a' if n in [1, 2] else 'b'", "b"),
    ("1 < n <= 7 and not no", "true"),
    ("n == 7.0", "true"),
    ("n != 7", "false"),
    ("n not in (1,)", "true"),
    ("no or t", "some Text, it's"),
    ("yes and n", "7"),
    ("n >= 8", "false"),
    ("n ~ yes ~ xs ~ user.nil|tojson ~ t", "7true[3, 1, 2]nullsome Text, it's"),
    ("true", "true"),
    ("1.50", "1.5"),
    ("-3", "-3"),
    ("'é\\n\\x41'", "é\nA"),
    ("[1, 'b', (2, -1)]", '[1, "b", [2, -1]]'),
    ("user.name ~ user['name']", "ZoëZoë"),
    ("xs[0] ~ xs[-1] ~ xs.1", "321"),
    ("user.items[1].id", "2"),
    ("user.class", "c"),
    ("user[t] is defined", "false"),
    ("-3|abs", "3"),
    ("f|abs", "2.5"),
    ("'aB'|capitalize", "Ab"),
    ("xs|count", "3"),
    ("gone|default", ""),
    ("gone|d('x')", "x"),
    ("nil|default('y', true)", "y"),
    ("empty|d(default_value=1, boolean=true)", "1"),
    ("user.gone|d('z')", "z"),
    ("user.nil.deep|d('w')", "w"),
    ("none_|first|d('none')", "none"),
    ("none_|max|d(0)", "0"),
    ("t|first", "s"),
    ("'1.5'|float", "1.5"),
    ("'x'|float", "0.0"),
    ("'12'|int", "12"),
    ("'x'|int", "0"),
    ("'x'|int(5)", "5"),
    ("'3.9'|int", "3"),
    ("f|int", "2"),
    ("user|items|first", '["name", "Zoë"]'),
    ("xs|join(', ')", "3, 1, 2"),
    ("xs|join", "312"),
    ("'ab'|join('-')", "a-b"),
    ("xs|last", "2"),
    ("t|length", "15"),
    ("user|length", "4"),
    ("'ab'|list", '["a", "b"]'),
    ("user|list", '["name", "items", "class", "nil"]'),
    ("t|lower", "some text, it's"),
    ("names|max", "b"),
    ("xs|min", "1"),
    ("names|min(case_sensitive=true)", "A"),
    ("xs|reverse", "[2, 1, 3]"),
    ("'ab'|reverse", "ba"),
    ("f|round", "2.0"),
    ("2.345|round(2)", "2.35"),
    ("2.1|round(0, 'ceil')", "3.0"),
    ("2.19|round(1, method='floor')", "2.1"),
    ("n|round", "7"),
    ("names|sort", '["A", "a", "b", "B"]'),
    ("names|sort(case_sensitive=true)", '["A", "B", "a", "b"]'),
    ("xs|string|length", "9"),
    ("xs|sum", "6"),
    ("t|title", "Some Text, It's"),
    ("t|tojson", '"some Text, it\'s"'),
    ("nil|tojson", "null"),
    ("'</é>\"'|tojson", '"</é>\\""'),
    ("'[' ~ ' a '|trim ~ ']'", "[a]"),
    ("'hello big world'|truncate(9, leeway=0)", "hello..."),
    ("'hello big world'|truncate(9, true, '…', 0)", "hello bi…"),
    ("t|truncate", "some Text, it's"),
    ("names|unique", '["b", "A"]'),
    ("[1, true, 1]|unique", "[1, true]"),
    ("t|upper", "SOME TEXT, IT'S"),
    ("n|upper", "7"),
    ("t|wordcount", "4"),
    ("yes is boolean", "true"),
    ("n is not defined", "false"),
    ("n is eq 7", "true"),
    ("n is even", "false"),
    ("no is false", "true"),
    ("n is ge 8", "false"),
    ("n is gt(8)", "false"),
    ("n is in [7]", "true"),
    ("'T' is in 'T'", "true"),
    ("n is le 7", "true"),
    ("n is lt 8", "true"),
    ("user is mapping", "true"),
    ("n is ne 7", "false"),
    ("nil is none", "true"),
    ("n is number", "true"),
    ("yes is number", "false"),
    ("n is odd", "true"),
    ("xs is sequence", "true"),
    ("t is sequence", "false"),
    ("t is string", "true"),
    ("yes is true", "true"),
    ("gone is undefined", "true"),
]


@pytest.mark.parametrize(
    ("source", "text"),
    _STATEMENTS + [(f"{{{{ {source} }}}}", text) for source, text in _EXPRESSIONS],
)
def test_what_is_allowed_renders_as_written(source: str, text: str) -> None:
    analyse(source)
    assert _render(source) == text


def test_every_filter_and_every_test_is_tried_above() -> None:
    everything = " ".join(source for source, _ in _STATEMENTS + _EXPRESSIONS)
    for name in FILTERS:
        assert f"|{name}" in everything, name
    for name in TESTS:
        assert f" is {name}" in everything or f" is not {name}" in everything, name


@pytest.mark.parametrize(
    "source",
    [
        "{{ gone }}{{ nil }}",
        "{{ nil|d('x') }}",
        "{{ user.gone }}",
        "{{ gone.deep|d('x') }}",
        "{{ user.gone.deep }}",
        "{{ user.nil }}",
        "{{ xs['0'] }}",
        "{{ xs[3] }}{{ xs[-4] }}",
        "{{ xs[true] }}",
        "{{ user[0] }}",
        "{{ t[0] }}{{ t.upper }}",
        "{{ user[secret] }}",
        "{{ n < t }}",
        "{{ names|sort|sum }}",
        "{{ [1, 'a']|sort }}",
        "{{ [1, 'a']|min }}",
        "{{ none_|first }}",
        "{{ none_|max }}",
        "{{ n|length }}{{ n|list }}",
        "{{ nil|upper }}",
        "{{ gone|tojson }}",
        "{{ t|round }}",
        "{{ yes|abs }}",
        "{{ t is odd }}",
        "{{ t|items }}",
        "{{ n in t }}",
        "{% for x in n %}{% endfor %}",
        "{% for x in gone %}{% endfor %}",
        "{% for a, b in xs %}{% endfor %}",
        "{% if gone %}{% endif %}",
        "{{ 'inf'|float }}",
        "{{ 'nan'|float }}",
        "{{ huge|float|round(0, 'ceil') }}",
        "{{ nil or nil }}",
    ],
)
def test_variables_that_dont_fit_fail_without_saying_more(source: str) -> None:
    analyse(source)
    with pytest.raises(RenderFailed) as caught:
        _render(source, secret="__class__", huge="1e999")
    assert caught.value.args == ()
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("source", "variables", "not_required", "nullable"),
    [
        ("{{ a }}{{ b|upper }}{{ a|d }}", "a b", "a", ""),
        ("{% if a is defined %}{{ a }}{% endif %}{{ b is undefined }}", "a b", "a b", ""),
        ("{% if a %}{{ a }}{% endif %}", "a", "", "a"),
        ("{% if no %}{% elif a %}{% endif %}", "a no", "", "a no"),
        ("{{ a is none }}{{ b is not none }}", "a b", "", "a b"),
        ("{{ a == none }}{{ none != b }}", "a b", "", "a b"),
        ("{{ a < none }}{{ b == 1 }}", "a b", "", ""),
        ("{{ a|default('x', true) }}{{ b|d('x', false) }}", "a b", "a b", "a"),
        ("{{ a or b }}{{ not c }}{{ d and e }}", "a b c d e", "", "a c"),
        ("{% if a and b %}{% endif %}", "a b", "", "a b"),
        ("{{ (a or b)|d('x', true) }}", "a b", "b", "a b"),
        ("{{ 'x' if a else b }}", "a b", "", "a"),
        ("{{ a|tojson }}{{ b is string }}", "a b", "", "a b"),
        ("{{ a.b }}{{ c.d|d }}{% if e.f %}{% endif %}", "a c e", "", "c"),
        ("{{ a['b'].c is defined }}{{ d['e'] is defined }}", "a d", "", "d"),
        ("{% for x in a %}{{ x }}{{ y }}{% else %}{{ z }}{% endfor %}", "a y z", "", ""),
        ("{% for x in x %}{{ x }}{% endfor %}", "x", "", ""),
        ("{% for x, y in a if y %}{% for z in y %}{{ z }}{% endfor %}{% endfor %}", "a", "", ""),
        ("{% for x in a if b %}{{ loop.index }}{% endfor %}{{ x }}", "a b x", "", "b"),
        ("{% for x in a|d([]) %}{% endfor %}{{ b ~ c }}{{ k[i] }}", "a b c i k", "a", ""),
        ("{# {{ a }} #}{% raw %}{{ b }}{% endraw %}", "", "", ""),
    ],
)
def test_what_a_template_reads_and_handles(
    source: str, variables: str, not_required: str, nullable: str
) -> None:
    template = parse_template(source)
    assert template.variables == set(variables.split())
    assert template.variables - template.required == set(not_required.split())
    assert template.variables - template.not_null == set(nullable.split())


def test_the_bounds_are_far_from_what_breaks_compiling() -> None:
    deepest = [
        "{% if n %}" * (MAX_DEPTH - 2) + "x" + "{% endif %}" * (MAX_DEPTH - 2),
        "{{ " + "(not " * 20 + "not " * (MAX_DEPTH - 23) + "n" + ")" * 20 + " }}",
        "{{ n" + "|d" * (MAX_DEPTH - 2) + " }}",
        "{% if no %}" + "{% elif no %}" * MAX_ELIFS + "{% else %}x{% endif %}",
        "{% if n %}" + "{{n}}" * (MAX_NODES - 3) + "{% endif %}",
    ]
    assert [_render(source)[:5] for source in deepest] == ["x", "false", "7", "x", "77777"]
    deeper = [
        "{% if n %}" * (MAX_DEPTH - 1) + "x" + "{% endif %}" * (MAX_DEPTH - 1),
        "{{ " + "(" * 21 + "n" + ")" * 21 + " }}",
        "{{ n" + "|d" * (MAX_DEPTH - 1) + " }}",
        "{% if no %}" + "{% elif no %}" * (MAX_ELIFS + 1) + "{% endif %}",
        "{% if n %}" + "{{n}}" * (MAX_NODES - 2) + "{% endif %}",
        "{% if n %}" + "{{n }}" * 4000 + "{% endif %}",
    ]
    for source in deeper:
        with pytest.raises(TemplateError):
            analyse(source)
        with pytest.raises(RenderFailed):
            _render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for x in xs %}{% for y in xs %}{{ t }}{% endfor %}{% endfor %}",
        "{{ t" + " ~ t" * 200 + " }}",
        "{{ '\"' " + "|tojson" * 30 + " }}",
        "{{ ts|join }}",
        "{{ t|upper|list|string|list|string|list|string }}",
        "{% for x in xs %}é{{ big }}{% endfor %}",
    ],
)
def test_a_text_that_grows_too_large_ends_the_rendering(source: str) -> None:
    with pytest.raises(RenderTooLarge) as caught:
        _render(source, t="x" * 50_000, xs=[1] * 1000, ts=["x" * 50_000] * 100, big="é" * 2_000_000)
    assert caught.value.args == ()


def test_the_largest_text_is_counted_in_bytes() -> None:
    source, half = "{% if yes %}{{ a }}{{ a }}{% endif %}", MAX_RENDERED_BYTES // 4
    assert _render(source, a="é" * half) == "é" * 2 * half
    with pytest.raises(RenderTooLarge):
        _render(source + ".", a="é" * half)


def test_memory_that_runs_out_counts_as_time_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(pieces: object) -> str:
        raise MemoryError

    monkeypatch.setattr(prompt_sandbox, "_joined", full)
    with pytest.raises(RenderTimeout):
        _render("{{ n|d }}")


def test_whatever_the_parser_raises_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(prompt_sandbox, "Parser", broken)
    with pytest.raises(TemplateError) as caught:
        analyse("{{ n|d }}")
    assert "can't be read" in caught.value.message
    with pytest.raises(RenderFailed):
        Sandbox().prepare("{{ n|d }}")


def test_a_sandbox_compiles_a_template_once_and_keeps_a_bounded_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[str] = []
    check = prompt_sandbox._checked

    def noting(source: str) -> Any:
        compiled.append(source)
        return check(source)

    monkeypatch.setattr(prompt_sandbox, "MAX_TEMPLATES", 2)
    monkeypatch.setattr(prompt_sandbox, "_checked", noting)
    sandbox = Sandbox()
    a, b, c = ("{{ n|d }}" + letter for letter in "abc")
    sandbox.prepare(a)
    for source in (a, b, a, c, a, b):
        assert sandbox.render(source, _VALUES) == "7" + source[-1]
    assert compiled == [a, b, c, b]
    monkeypatch.setattr(prompt_sandbox, "MAX_TEMPLATES_CHARS", 10)
    assert [sandbox.render(source, _VALUES) for source in (c, a, a)] == ["7c", "7a", "7a"]
    assert compiled == [a, b, c, b, c, a]


def test_values_are_not_changed_and_others_not_seen() -> None:
    values = {"xs": [2, 1], "a b": 1, "range": 5, "self": 6}
    assert Sandbox().render("{{ xs|sort }}{{ xs|reverse }}{{ range|d }}", values) == "[1, 2][1, 2]5"
    assert values == {"xs": [2, 1], "a b": 1, "range": 5, "self": 6}


_stock = ImmutableSandboxedEnvironment(
    undefined=StrictUndefined, keep_trailing_newline=True, finalize=text_of
)
_names = st.sampled_from(["t", "u"])
_expressions = st.recursive(
    _names | st.sampled_from(["'x y'", "''", "3", "'it\\'s'"]),
    lambda inner: st.one_of(
        st.tuples(
            inner,
            st.sampled_from(
                [
                    "upper",
                    "lower",
                    "title",
                    "capitalize",
                    "trim",
                    "length",
                    "wordcount",
                    "string",
                    "int",
                    "d('z')",
                    "default('z',true)",
                    "truncate(3)",
                    "truncate(5,true,'.',0)",
                    "join('-')",
                    "reverse|join",
                    "list|join(',')",
                    "unique|join",
                    "sort|join",
                ]
            ),
        ).map(lambda pair: f"({pair[0]}|string)|{pair[1]}"),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]} ~ {pair[1]})"),
        st.tuples(inner, inner, inner).map(lambda x: f"({x[0]} if {x[1]} == {x[2]} else {x[2]})"),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]} or {pair[1]})"),
    ),
    max_leaves=5,
)
_templates = st.recursive(
    st.sampled_from(["text", " ", "\n", "}}", "{# c #}", "{% raw %}{{ x }}{% endraw %}"])
    | _expressions.map(lambda e: f"{{{{ {e} }}}}"),
    lambda inner: st.one_of(
        st.tuples(_expressions, inner, inner).map(
            lambda x: f"{{% if {x[0]} %}}{x[1]}{{%- else -%}}{x[2]}{{% endif %}}"
        ),
        inner.map(lambda x: f"{{% for c in t|list %}}{{{{ c ~ loop.index }}}}{x}{{% endfor %}}"),
        st.lists(inner, max_size=3).map("".join),
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(_templates, st.text(max_size=6), st.text("aB é\n", max_size=12))
def test_over_texts_a_template_means_what_stock_jinja2_says(source: str, t: str, u: str) -> None:
    analyse(source)
    try:
        expected = _stock.from_string(source).render(t=t, u=u)
    except UnicodeEncodeError:
        return
    try:
        expected.encode()
    except UnicodeEncodeError:
        with pytest.raises(RenderFailed):
            Sandbox().render(source, {"t": t, "u": u})
        return
    assert Sandbox().render(source, {"t": t, "u": u}) == expected
