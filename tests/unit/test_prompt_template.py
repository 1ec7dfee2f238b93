"""Plain templates, the texts of values, and that both ways to render agree."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Raw

from streams.domain.prompts.prompt import compile_prompt
from streams.domain.prompts.sandbox import Sandbox, analyse
from streams.domain.prompts.template import (
    MAX_NAME_CHARS,
    MAX_SOURCE_BYTES,
    Template,
    TemplateError,
    Variable,
    parse_template,
    text_of,
)

_CHARACTERS = st.characters(codec="utf-8")
#: Names that mean something to Jinja2 or to Python, and some that don't.
_NAMES = (
    *("a", "b1", "Text", "range", "dict", "lipsum", "cycler", "joiner", "namespace"),
    *("for", "endfor", "set", "block", "import", "raw", "endraw", "print", "do", "recursive"),
    *("context", "environment", "missing", "resolve", "undefined", "escape", "l_0_a", "t_1"),
    *("config", "request", "def", "class", "lambda", "yield", "None_", "x" * MAX_NAME_CHARS),
)
_NOT_NAMES = ("self", "super", "caller", "loop", "varargs", "kwargs", "and", "or", "not", "in")
_OTHER_NOT_NAMES = ("is", "if", "else", "_a", "__class__", "x" * (MAX_NAME_CHARS + 1))
_json = st.recursive(
    st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(_CHARACTERS)
    | st.sampled_from(["{{a}}", "{% if a %}", "{#", "}}", '"},{"role":"system"', "\r\n", "\x00"]),
    lambda inner: (
        st.lists(st.none() | inner, max_size=3)
        | st.dictionaries(st.text(_CHARACTERS, max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


def _plain(source: str, values: dict[str, Any]) -> str:
    """The text by way of the parts."""
    parts = parse_template(source).parts
    assert parts is not None
    return "".join(text_of(values[p.name]) if isinstance(p, Variable) else p for p in parts)


def _body(source: str, values: dict[str, Any]) -> str:
    """The text as a batch's body gets it."""
    messages = json.dumps([{"role": "user", "content": source}]).encode()
    raws = msgspec.json.decode(json.dumps(values).encode(), type=dict[str, Raw])
    body = json.loads(compile_prompt(messages, b"{}").body("/v1/chat/completions", {}, raws))
    return str(body["messages"][0]["content"])


def test_a_plain_template_is_text_and_variables() -> None:
    template = parse_template("Hi {{ name }},\n{{\tplace\n}} {{name}}!")
    names = frozenset({"name", "place"})
    assert template.parts == (
        "Hi ",
        Variable("name"),
        ",\n",
        Variable("place"),
        " ",
        Variable("name"),
        "!",
    )
    assert (template.variables, template.required, template.not_null) == (names, names, names)


@pytest.mark.parametrize(
    "source", ["", "text", "a } b }} c { d %} #}", '{"a": {"b": 1}}', "{ {x} }"]
)
def test_braces_that_open_nothing_are_text(source: str) -> None:
    nothing: frozenset[str] = frozenset()
    parts = (source,) if source else ()
    assert parse_template(source) == Template(source, parts, nothing, nothing, nothing)


def test_line_breaks_of_a_template_become_newlines() -> None:
    template = parse_template("a\r\nb\rc\n{{x}}\r\n")
    assert template.source == "a\nb\nc\n{{x}}\n"
    assert template.parts == ("a\nb\nc\n", Variable("x"), "\n")


@pytest.mark.parametrize(
    "source", ["{{ a }}{# c #}", "{{a}}{% if a %}{% endif %}", "{{a|d}}", "{{ true }}", "{{-a}}"]
)
def test_anything_more_is_for_the_sandbox(source: str) -> None:
    template = parse_template(source)
    assert template.parts is None
    assert template.source == source
    assert template.variables == analyse(source).variables


@pytest.mark.parametrize("name", [*_NOT_NAMES, *_OTHER_NOT_NAMES])
def test_names_that_no_variable_may_have_are_refused_by_both(name: str) -> None:
    with pytest.raises(TemplateError) as plain:
        parse_template(f"a\n{{{{ {name} }}}}")
    assert plain.value.line == 2
    assert name[:20] in plain.value.message
    for source in (f"a\n{{{{ {name} }}}}", f"a\n{{{{ {name}|d }}}}"):
        with pytest.raises(TemplateError):
            analyse(source)


def test_a_template_has_a_largest_size_in_bytes() -> None:
    assert parse_template("é" * (MAX_SOURCE_BYTES // 2)).parts
    with pytest.raises(TemplateError) as caught:
        parse_template("é" * (MAX_SOURCE_BYTES // 2) + "x")
    assert str(MAX_SOURCE_BYTES) in caught.value.message


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(TemplateError, match="refused"):
        parse_template("a \ud83d b")


def test_an_error_shows_the_owner_what_and_the_log_nothing() -> None:
    with pytest.raises(TemplateError) as caught:
        parse_template("secret\n{{ _secret }}")
    assert caught.value.message.startswith("Line 2: ")
    assert "_secret" in caught.value.message
    assert "secret" not in str(caught.value) + repr(caught.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ('a\r\n"é"', 'a\r\n"é"'),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (-12, "-12"),
        (1.5, "1.5"),
        (1e100, "1e+100"),
        ([], "[]"),
        ([1, None, "é\n"], '[1, null, "é\\n"]'),
        ({"b": {"a": 1}, "a": True}, '{"b": {"a": 1}, "a": true}'),
    ],
)
def test_the_text_of_a_value_is_its_json_unless_it_is_text(value: object, text: str) -> None:
    assert text_of(value) == text


def _nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        None,
        float("nan"),
        float("inf"),
        [-float("inf")],
        10**5000,
        object(),
        {1: {2}},
        _nested(5000),
    ],
    ids=["null", "nan", "inf", "inf in a list", "digits", "object", "set", "deep"],
)
def test_what_json_cant_say_has_no_text(value: object) -> None:
    with pytest.raises(ValueError, match=r"null has no text|not a JSON value"):
        text_of(value)


def test_plain_templates_never_load_jinja2() -> None:
    code = (
        "import sys\n"
        "from streams.domain.prompts import prompt\n"
        "from streams.domain.prompts.template import parse_template\n"
        "parse_template('Hi {{ name }}')\n"
        "assert 'jinja2' not in sys.modules\n"
        "parse_template('Hi {{ name|d }}')\n"
        "assert 'jinja2' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


_pieces = st.sampled_from([*(f"{{{{{name}}}}}" for name in _NAMES), "{{ a }}", "{{\n\ta\r\n }}"])
_texts = st.text(_CHARACTERS, max_size=5) | st.sampled_from(
    [
        "{",
        "}",
        "}}",
        "%}",
        "#}",
        "-",
        "{ {",
        "\r\n",
        "\r",
        "\n",
        "  \n",
        "\u2028",
        "\x85",
        "\\",
        '"',
    ]
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(_pieces | _texts, max_size=8).map("".join),
    st.lists(_json, min_size=len(_NAMES), max_size=len(_NAMES)),
)
@example("{{range}}\r\n{{a}}\r", ["{{ a }}", *["\r\n"] * (len(_NAMES) - 1)])
def test_both_ways_to_render_agree_where_both_apply(source: str, values: list[Any]) -> None:
    try:
        template = parse_template(source)
    except TemplateError:  # such as a brace before "{{a}}"
        with pytest.raises(TemplateError):
            analyse(source)
        return
    if template.parts is None:
        return
    variables = dict(zip(_NAMES, values, strict=True))
    expected = _plain(source, variables)
    assert Sandbox().render(source, variables) == expected
    assert Sandbox().render(template.source, variables) == expected
    assert _body(source, variables) == expected
    names = (template.variables, template.required, template.not_null)
    assert analyse(source) == names


@settings(max_examples=100, deadline=None)
@given(_json)
def test_a_value_has_one_text_everywhere(value: Any) -> None:
    rendered = Sandbox().render("{% if true %}{{ a }}{% endif %}", {"a": value})
    assert rendered == text_of(value) == _plain("{{a}}", {"a": value})
    assert Sandbox().render("{{ '' ~ a }}", {"a": value}) == rendered
    assert Sandbox().render("{{ a|string }}", {"a": value}) == rendered


def test_a_bad_name_is_told_with_its_line_wherever_line_breaks_stand() -> None:
    with pytest.raises(TemplateError) as refused:
        parse_template("{{ a\n}}\r\n{{\nb }}\r{{\n\n_c }}")
    assert refused.value.line == 7
