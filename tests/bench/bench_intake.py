"""How fast intake checks an input file on one core: MB/s and lines/s, at 300 B and 2 KB a line with
messages, and for lines that name a stored prompt of 2 KB."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from schemas.records import PromptVersion
from streams.domain.intake.intake import Accepted, Intake, Rules
from streams.domain.prompts.registry import Resolved

_CHAT, _RESPONSES = "/v1/chat/completions", "/v1/responses"
_CHUNK_BYTES = 1 << 20
_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Speed:
    """One measurement: the best of several runs."""

    label: str
    lines: int
    mb_per_s: float
    lines_per_s: float


def sample(line_bytes: int, lines: int, letter: str = "x") -> bytes:
    """A chat file whose lines have about that many bytes; another letter for other scripts."""
    made = []
    for n in range(lines):
        line = {
            "custom_id": f"request-{n}",
            "method": "POST",
            "url": _CHAT,
            "body": {
                "model": "m",
                "messages": [
                    {"role": "system", "content": "You are a helpful assistant."},
                    {"role": "user", "content": ""},
                ],
                "max_tokens": 100,
            },
        }
        base = len(json.dumps(line).encode())
        words = f"{letter * 5} " * ((line_bytes - base) // (5 * len(letter.encode()) + 1))
        line["body"]["messages"][1]["content"] = words  # type: ignore[index]
        made.append(json.dumps(line, ensure_ascii=False).encode())
    return b"\n".join(made) + b"\n"


def prompt_sample(lines: int, form: bool = False) -> bytes:
    """A file of lines with three variables, which name the prompt in one form or the other."""
    made = []
    for n in range(lines):
        variables = {
            "text": f"{n}: " + "some words " * 8,
            "language": "English",
            "title": "A title",
        }
        body: dict[str, object] = {"prompt_slug": "summarize", "variables": variables}
        if form:
            body = {"prompt": {"id": "summarize", "version": "2", "variables": variables}}
        line = {
            "custom_id": f"request-{n}",
            "method": "POST",
            "url": _RESPONSES if form else _CHAT,
            "body": {"model": "m", **body},
        }
        made.append(json.dumps(line).encode())
    return b"\n".join(made) + b"\n"


def measure(label: str, data: bytes, lines: int, endpoint: str = _CHAT) -> Speed:
    """The best of some runs over the same bytes."""
    chunks = [data[i : i + _CHUNK_BYTES] for i in range(0, len(data), _CHUNK_BYTES)]
    best = float("inf")
    for _ in range(_REPEATS):
        intake = Intake(Rules(endpoint, lambda _: True, _resolve))
        start = time.process_time()
        for chunk in chunks:
            intake.feed(chunk)
        verdict = intake.finish()
        best = min(best, time.process_time() - start)
        if not isinstance(verdict, Accepted) or verdict.total != lines:
            raise AssertionError("the sample is not a good file")
    return Speed(label, lines, len(data) / best / 1e6, lines / best)


def _resolve(slug: str, version: int | None) -> Resolved:
    messages = [
        {"role": "system", "content": "You summarize documents in few words. " * 54},
        {"role": "user", "content": "Summarize in {{language}}: {{title}}\n\n{{text}}"},
    ]
    text = PromptVersion(
        tenant="t",
        slug=slug,
        version_id="v",
        messages=json.dumps(messages).encode(),
        model_config=b'{"temperature": 0}',
    )
    return Resolved(version or 2, text)


def run() -> list[Speed]:
    """All measurements."""
    return [
        measure("2 KB lines", sample(2000, 50_000), 50_000),
        measure("300 B lines", sample(300, 50_000), 50_000),
        measure("2 KB lines, Greek", sample(2000, 50_000, "λ"), 50_000),
        measure("prompt, 3 variables", prompt_sample(50_000), 50_000),
        measure("prompt on responses", prompt_sample(50_000, form=True), 50_000, _RESPONSES),
    ]


def main() -> None:
    """Prints a line for each kind of file."""
    for speed in run():
        print(f"{speed.label:<20} {speed.mb_per_s:8.0f} MB/s {speed.lines_per_s:10.0f} lines/s")


if __name__ == "__main__":
    main()
