"""What a stored prompt must become, told from the rules alone: nothing here uses our renderer.

A `Version` renders itself by a regular expression and `json.dumps`; a template with `{% %}` or
filters brings its texts along, written by hand. `book()` is a set of prompts that between them
use every rule, and `mixed_lines()` makes lines of all kinds for it.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.batches import chat_line

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
_PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")
_OURS = ("prompt_slug", "prompt_version", "variables")
_TEXT_PARTS = ("text", "input_text", "output_text")

Variables = Mapping[str, Any]


def text_of(value: Any) -> str:
    """A variable as text: a text as it is, all else as JSON writes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def filled(template: str, variables: Variables) -> str:
    """The template with every {{name}} replaced, once: what values hold is never looked at."""
    return _PLACEHOLDER.sub(lambda found: text_of(variables[found[1]]), template)


@dataclass(frozen=True)
class Version:
    """One version of a prompt. by_hand: the texts of its messages in order, given the variables."""

    messages: Sequence[Mapping[str, Any]]
    model_config: Mapping[str, Any] = field(default_factory=dict)
    by_hand: Callable[[Variables], Sequence[str]] | None = None

    @property
    def reads(self) -> set[str]:
        """The variables of its templates; those of a template by hand are all in {{ }} or tags."""
        names: set[str] = set()
        for text in self._texts():
            names.update(_PLACEHOLDER.findall(text))
            names.update(re.findall(r"\{%\s*(?:if|for \w+ in) (\w+)", text))
            names.update(re.findall(r"\{\{\s*(\w+)\s*\|", text))
            names.difference_update(re.findall(r"\{%\s*for (\w+) in", text))
        return names

    def body(self, endpoint: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """The upstream's body of a line whose body is `given`, which names this version."""
        form = given.get("prompt") if endpoint == RESPONSES else None
        variables = (given if form is None else form).get("variables") or {}
        body = {**self.model_config, **given}
        for name in (*_OURS, *(("prompt",) if form is not None else ())):
            body.pop(name, None)
        body["messages" if endpoint == CHAT else "input"] = self._rendered(endpoint, variables)
        return body

    def as_request(self) -> dict[str, Any]:
        """The body of POST …/versions."""
        return {"messages": self.messages, "model_config": self.model_config}

    def _texts(self) -> list[str]:
        return [part["text"] for message in self.messages for part in _text_parts(message)]

    def _rendered(self, endpoint: str, variables: Variables) -> list[dict[str, Any]]:
        if self.by_hand is not None:
            texts = iter(self.by_hand(_plain(variables)))
        else:
            texts = iter([filled(text, _plain(variables)) for text in self._texts()])
        return [_message(message, endpoint, texts) for message in self.messages]


def _plain(variables: Variables) -> dict[str, Any]:
    """OpenAI's typed texts as plain ones."""
    typed = {"type": "input_text"}
    return {
        name: value["text"] if isinstance(value, dict) and typed.items() <= value.items() else value
        for name, value in variables.items()
    }


def _text_parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message["content"]
    if isinstance(content, str):
        return [{"text": content}]
    return [part for part in content if part["type"] in _TEXT_PARTS]


def _message(message: Mapping[str, Any], endpoint: str, texts: Any) -> dict[str, Any]:
    if isinstance(message["content"], str):
        return {**message, "content": next(texts)}
    parts = []
    for part in message["content"]:
        if part["type"] not in _TEXT_PARTS:
            parts.append(part)
            continue
        said = "output_text" if message["role"] == "assistant" else "input_text"
        parts.append({**part, "type": said if endpoint == RESPONSES else "text"})
        parts[-1]["text"] = next(texts)
    return {**message, "content": parts}


def _said(template: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": template}]


#: One line of the issue's kind: a long instruction, a short text.
SUMMARIZE = (
    Version(
        [
            {"role": "system", "content": "Summarise, in {{ language }} or English."},
            {"role": "user", "content": "{{text}}"},
        ],
        {"model": "sim", "temperature": 0.2},
    ),
    Version(_said("Say it shorter: {{text}}"), {"temperature": 0.25, "max_tokens": 20}),
)
_TYPES = Version(
    _said("n={{n}} flag={{ flag }} list={{list}} object={{\tobject }} {{text}} again {{ text\n}}"),
    {"top_p": 1, "seed": 7},
)
_PARTS = Version(
    [
        {"role": "system", "content": [{"type": "text", "text": "{{a}}"}]},
        {
            "role": "user",
            "name": "{{a}}",
            "content": [
                {"type": "text", "text": "Look: {{a}}, {{b}}{{a}} }} { {a}"},
                {"type": "image_url", "image_url": {"url": "https://images.example/{{a}}.png"}},
                {"type": "text", "text": "\u00e9\U0001f600 {{b}}"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "Said {{b}}"}]},
    ]
)
_PRESET = Version(
    _said("Answer with JSON about {{text}}."),
    {
        "model": "gpt-4o-mini",
        "temperature": 0.5,
        "max_tokens": 12,
        "response_format": {"type": "json_object"},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "metadata": {"from": "the version {{text}}"},
    },
)
_STYLED = Version(
    [
        {"role": "system", "content": "For {{ name }}."},
        {
            "role": "user",
            "content": "{% if formal %}Dear {{ name }},{% else %}Hi {{ name | upper }}!{% endif %}"
            "{% for item in items %} [{{ item }}]{% endfor %} {{ note | default('none', true) }}",
        },
    ],
    by_hand=lambda v: [
        f"For {text_of(v['name'])}.",
        (f"Dear {text_of(v['name'])}," if v["formal"] else f"Hi {v['name'].upper()}!")
        + "".join(f" [{text_of(item)}]" for item in v["items"])
        + f" {text_of(v.get('note') or 'none')}",
    ],
)


class Book:
    """Prompts by slug, as the registry should hold them: versions in order, one published."""

    def __init__(self) -> None:
        self.versions: dict[str, list[Version]] = {}
        self.published: dict[str, int] = {}

    def add(self, slug: str, *versions: Version, published: int = 1) -> str:
        """Notes a prompt; the slug."""
        self.versions[slug] = list(versions)
        self.published[slug] = published
        return slug

    def pin_of(self, line: Mapping[str, Any]) -> tuple[str, int] | None:
        """(slug, version) that a line is rendered with if it is validated now."""
        body = line["body"]
        form = body.get("prompt") if line["url"] == RESPONSES else None
        slug = body.get("prompt_slug") if form is None else form["id"]
        if slug is None:
            return None
        version = body.get("prompt_version") if form is None else form.get("version")
        return slug, self.published[slug] if version is None else int(version)

    def pins(self, lines: Iterable[Mapping[str, Any]]) -> Counter[tuple[str, int]]:
        """How many lines use each version."""
        return Counter(pin for pin in map(self.pin_of, lines) if pin is not None)

    def body(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """What the upstream must be sent for a line, by what is published now."""
        pin = self.pin_of(line)
        if pin is None:
            literal: dict[str, Any] = dict(line["body"])
            return literal
        return self.versions[pin[0]][pin[1] - 1].body(line["url"], line["body"])

    def unused(self, lines: Iterable[Mapping[str, Any]]) -> int:
        """Lines that give a variable which their prompt doesn't read."""
        count = 0
        for line in lines:
            pin = self.pin_of(line)
            if pin is not None:
                body = line["body"]
                given = body.get("variables") or body.get("prompt", {}).get("variables") or {}
                count += not set(given) <= self.versions[pin[0]][pin[1] - 1].reads
        return count


def book(mark: str = "") -> Book:
    """Prompts of all kinds. mark: a text that stands in every slug."""
    made = Book()
    made.add(f"summarize{mark}", *SUMMARIZE)
    made.add(f"types{mark}", _TYPES)
    made.add(f"parts{mark}", _PARTS)
    made.add(f"preset{mark}", Version(_said("old {{gone}}")), _PRESET, published=2)
    made.add(f"styled{mark}", _STYLED)
    return made


#: Texts that some renderer would trip over.
TEXTS = (
    "plain",
    "",
    "{{ text }} {{n}} {% if x %} {# y #} }} {{",
    'quotes " \\" and \\ backslashes \\n \\u0041',
    "line\nfeed\r\n\ttab \x00\x01\x1f\x7f",
    "h\u00e9llo \u4f60\u597d \U0001f600 \u2028\u2029 \u202e\u0301",
    "</script> & <b> %s %(x)s {0} ${x} $(x)",
    "null",
    "x" * 5_000,
)
NUMBERS = (0, -7, 3.5, 1e22, 1e-7, -0.0, 2**63, 10**30, 12345678901234567890)
OBJECTS: tuple[Any, ...] = ({}, {"k": [1, {"{{n}}": None}]}, {"\u00e9": "\U0001f600", "a": "\\"})
LISTS: tuple[Any, ...] = ([], [1, "two", None, True], [[["{{text}}"]]])


def prompt_line(key: str, slug: str, variables: Variables | None, **fields: Any) -> dict[str, Any]:
    """A chat line that names a prompt; its custom id is also the simulator's request key."""
    body = {"model": "sim", "user": key, "prompt_slug": slug, **fields}
    if variables is not None:
        body["variables"] = variables
    body = {name: value for name, value in body.items() if value is not ...}
    return {"custom_id": key, "method": "POST", "url": CHAT, "body": body}


def mixed_lines(run: str, count: int, rng: random.Random, mark: str = "") -> list[dict[str, Any]]:
    """Chat lines of all kinds for the prompts of book(mark), the same for the same seed."""
    makers = [
        lambda key: chat_line(key, text=rng.choice(TEXTS) or "."),
        lambda key: chat_line(key, text="{{text}} {{ x }}", script="503,ok"),
        lambda key: prompt_line(
            key, f"summarize{mark}", {"text": rng.choice(TEXTS), "language": "Ελληνικά"}
        ),
        lambda key: prompt_line(
            key, f"summarize{mark}", {"text": rng.choice(TEXTS)}, prompt_version=2, model="sim-2"
        ),
        lambda key: prompt_line(
            key,
            f"summarize{mark}",
            {"text": rng.choice(TEXTS), "language": "en", "unused": [1]},
            prompt_version=1,
            model=...,
            metadata={"sim": "503,cut,ok"},
        ),
        lambda key: prompt_line(key, f"types{mark}", _all_types(rng), temperature=None, seed=8),
        lambda key: prompt_line(key, f"types{mark}", {**_all_types(rng), "x": 1}, top_p=0.1),
        lambda key: prompt_line(key, f"parts{mark}", {"a": rng.choice(TEXTS), "b": "B"}),
        lambda key: prompt_line(key, f"preset{mark}", {"text": rng.choice(TEXTS)}, model=...),
        lambda key: prompt_line(
            key,
            f"preset{mark}",
            {"text": "t"},
            tools=[],
            response_format={"type": "text"},
            metadata={"sim": "ok"},
            max_tokens=3,
        ),
        lambda key: prompt_line(key, f"styled{mark}", _styled(rng)),
    ]
    return [makers[n % len(makers)](f"{run}-{n}") for n in range(count)]


def _all_types(rng: random.Random) -> dict[str, Any]:
    return {
        "n": rng.choice(NUMBERS),
        "flag": rng.choice((True, False)),
        "list": rng.choice(LISTS),
        "object": rng.choice(OBJECTS),
        "text": rng.choice(TEXTS),
    }


def _styled(rng: random.Random) -> dict[str, Any]:
    variables: dict[str, Any] = {
        "name": rng.choice(TEXTS),
        "formal": rng.choice((True, False)),
        "items": rng.sample([*TEXTS, *NUMBERS, True, {"k": 1}], rng.randint(0, 4)),
    }
    return variables | rng.choice(({"note": None}, {"note": "N"}))


def responses_lines(run: str, count: int, rng: random.Random, mark: str = "") -> list[Any]:
    """Lines for /v1/responses, in both forms and literal."""
    lines = []
    for n in range(count):
        text = rng.choice(TEXTS)
        bodies: list[dict[str, Any]] = [
            {"input": text or ".", "instructions": "{{text}}"},
            {"prompt_slug": f"summarize{mark}", "variables": {"text": text}, "prompt_version": 2},
            {"prompt_slug": f"parts{mark}", "variables": {"a": text, "b": "B"}},
            {"prompt": {"id": f"summarize{mark}", "variables": {"text": text, "language": "x"}}},
            {"prompt": {"id": f"summarize{mark}", "version": "2", "variables": {"text": text}}},
            {
                "prompt": {
                    "id": f"summarize{mark}",
                    "version": "2",
                    "variables": {"text": {"type": "input_text", "text": text}},
                },
                "temperature": 0.75,
            },
        ]
        body = {"model": "sim", "user": f"{run}-{n}", **bodies[n % len(bodies)]}
        lines.append({"custom_id": f"{run}-{n}", "method": "POST", "url": RESPONSES, "body": body})
    return lines


def mixed_jsonl(lines: Iterable[Mapping[str, Any]]) -> bytes:
    """The lines as a file, written in the ways that callers' JSON encoders write."""
    styles: tuple[dict[str, Any], ...] = (
        {},
        {"ensure_ascii": False},
        {"separators": (",", ":")},
        {"separators": (" , ", " :  "), "ensure_ascii": False},
    )
    texts = [json.dumps(line, **styles[n % 4]) for n, line in enumerate(lines)]
    return "".join(text + "\n" for text in texts).encode()
