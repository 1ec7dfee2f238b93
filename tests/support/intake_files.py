"""Input files with prompt lines, the prompts that they name, and what intake makes of them."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from schemas.records import PromptHead, PromptVersion, PromptVersionRef
from streams.domain.intake.intake import Accepted, Intake, Refused, Rules
from streams.domain.intake.lines import ENDPOINTS
from streams.domain.plan import pins_range, read_header, read_rows, rows_range
from streams.domain.prompts.pins import Pin, decode_pins
from streams.domain.prompts.registry import Registry, head_key, version_key

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
#: A field that is left out.
GONE = object()
MODELS = {"m", "other"}


class PromptBook:
    """A tenant's prompts, written to a registry as the gateway does."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.resolve = partial(self.registry.resolve, "t")
        self._revision = 0

    def write(self, slug: str, texts: dict[int, str], published: int | None, **config: Any) -> None:
        """The prompt with these versions, each of one user message."""
        self._revision += 1
        for number, text in texts.items():
            messages = json.dumps([{"role": "user", "content": text}]).encode()
            version = PromptVersion(
                tenant="t",
                slug=slug,
                version_id=f"v{number}",
                messages=messages,
                model_config=json.dumps(config).encode(),
            )
            self.registry.apply(version_key("t", slug, f"v{number}"), version)
        head = PromptHead(
            tenant="t",
            slug=slug,
            revision=self._revision,
            write_id="w",
            prompt_id="prompt_1",
            request_hash="h",
            created_at_ms=0,
            updated_at_ms=0,
            published=published,
            latest=max(texts, default=1),
            versions=tuple(
                PromptVersionRef(
                    number=n, version_id=f"v{n}", created_at_ms=0, size_bytes=0, request_hash="h"
                )
                for n in texts
            ),
            deleted_at_ms=None if texts else 1,
        )
        self.registry.apply(head_key("t", slug, self._revision, "w"), head)


def book() -> PromptBook:
    """The prompts that most tests use."""
    made = PromptBook()
    made.write("greet", {1: "Hi {{name}}", 2: "Dear {{name}}, {{tone}}"}, published=2)
    made.write("chatty", {1: "Say {{text}}"}, published=1, model="other", temperature=0)
    made.write("plain", {1: "Hello"}, published=1)
    made.write("draft", {1: "Hi {{name}}"}, published=None)
    made.write("gone", {1: "Hi"}, published=1)
    made.write("gone", {}, published=None)
    made.write("maybe", {1: "{% if name %}Hi {{ name }}{% endif %}"}, published=1)
    made.write("elsewhere", {1: "Hi"}, published=1, model="gpt-9")
    return made


def line(n: int | str = 0, url: str = CHAT, **body: Any) -> bytes:
    """A line whose body has a model and what is given; GONE takes a field away."""
    fields = {"model": "m"} | body
    body = {k: v for k, v in fields.items() if v is not GONE}
    line = {"custom_id": f"r{n}", "method": "POST", "url": url, "body": body}
    return json.dumps(line).encode()


def literal(n: int | str = 0, **body: Any) -> bytes:
    """A line with messages."""
    return line(n, **({"messages": [{"role": "user", "content": "hello"}]} | body))


def intake(prompts: PromptBook | None = None, **rules: Any) -> Intake:
    """The check of one file."""
    fields: dict[str, Any] = {"endpoint": CHAT, "serves": MODELS.__contains__}
    return Intake(Rules(prompts=(prompts or book()).resolve, **(fields | rules)))


def check(data: bytes, *, chunk: int = 1 << 20, **rules: Any) -> Accepted | Refused:
    """The verdict on a file, fed in pieces of that size."""
    checked = intake(**rules)
    for start in range(0, len(data), chunk):
        checked.feed(data[start : start + chunk])
    return checked.finish()


def accepted(*lines: bytes, **rules: Any) -> Accepted:
    """The verdict on good lines."""
    verdict = check(b"\n".join(lines), **rules)
    assert isinstance(verdict, Accepted), verdict
    return verdict


def errors_of(*lines: bytes, **rules: Any) -> list[tuple[str, int | None, str | None]]:
    """Code, line and param of each error."""
    verdict = check(b"\n".join(lines), **rules)
    assert isinstance(verdict, Refused)
    return [(e.code, e.line, e.param) for e in verdict.errors]


def refusal(bad: bytes, **rules: Any) -> tuple[str | None, str]:
    """The param and message of a line that follows a good one of each kind."""
    url = rules.get("endpoint", CHAT)
    needed = ENDPOINTS[url].needed
    before = [line("a", url=url, **{needed: "x"})]
    if url in (CHAT, RESPONSES):
        before.append(line("b", url=url, prompt_slug="greet", variables={"name": "A", "tone": ""}))
    alone = check(bad, **rules)
    after = check(b"\n".join([*before, bad]), **rules)
    assert isinstance(alone, Refused)
    assert isinstance(after, Refused)
    assert [(e.message, e.param) for e in alone.errors] == [
        (e.message, e.param) for e in after.errors
    ]
    (error,) = after.errors
    assert (error.code, error.line) == ("invalid_request", len(before) + 1)
    return error.param, error.message


def pins(verdict: Accepted) -> tuple[Pin, ...]:
    """The versions that the plan holds."""
    offset, length = pins_range(verdict.total, len(verdict.plan))
    return decode_pins(verdict.plan[offset : offset + length])


def row_pins(verdict: Accepted) -> list[int]:
    """Each row's pin number."""
    offset, length = rows_range(0, read_header(verdict.plan))
    return [row.pin for row in read_rows(verdict.plan[offset : offset + length])]
