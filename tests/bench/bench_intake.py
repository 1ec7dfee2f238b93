"""How fast intake checks an input file on one core: MB/s and lines/s at 300 B and 2 KB a line."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from streams.domain.intake import Accepted, Intake, Rules

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
            "url": "/v1/chat/completions",
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


def measure(label: str, data: bytes, lines: int) -> Speed:
    """The best of some runs over the same bytes."""
    chunks = [data[i : i + _CHUNK_BYTES] for i in range(0, len(data), _CHUNK_BYTES)]
    best = float("inf")
    for _ in range(_REPEATS):
        intake = Intake(Rules("/v1/chat/completions", lambda _: True))
        start = time.process_time()
        for chunk in chunks:
            intake.feed(chunk)
        verdict = intake.finish()
        best = min(best, time.process_time() - start)
        if not isinstance(verdict, Accepted) or verdict.total != lines:
            raise AssertionError("the sample is not a good file")
    return Speed(label, lines, len(data) / best / 1e6, lines / best)


def run() -> list[Speed]:
    """All measurements."""
    return [
        measure("2 KB lines", sample(2000, 50_000), 50_000),
        measure("300 B lines", sample(300, 50_000), 50_000),
        measure("2 KB lines, Greek", sample(2000, 50_000, "λ"), 50_000),
    ]


def main() -> None:
    """Prints a line for each kind of file."""
    for speed in run():
        print(f"{speed.label:<20} {speed.mb_per_s:8.0f} MB/s {speed.lines_per_s:10.0f} lines/s")


if __name__ == "__main__":
    main()
