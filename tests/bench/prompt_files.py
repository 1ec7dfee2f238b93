"""The same requests as two input files: naming one stored prompt, and with it in every line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from streams.domain.prompts.lines import PromptRef, batch_lines
from streams.domain.prompts.request import PROMPT_ENDPOINTS

SLUG = "summarize"
MODEL = "sim"
SYSTEM_BYTES = 2048
_SENTENCE = "You summarise what people write to a museum, in one sentence and in their language. "
#: 2 KB of instructions, as people write them; the variable part comes last.
SYSTEM = (_SENTENCE * (SYSTEM_BYTES // len(_SENTENCE) + 1))[:SYSTEM_BYTES]
MESSAGES: list[dict[str, str]] = [
    {"role": "system", "content": SYSTEM},
    {"role": "user", "content": "Summarise: {{text}}"},
]
MODEL_CONFIG: dict[str, Any] = {"model": MODEL, "temperature": 0.2}


def rows(count: int) -> Iterator[dict[str, str]]:
    """The variables of each line."""
    return ({"text": f"Letter {n}: when does it open?"} for n in range(count))


def prompt_file(count: int, slug: str = SLUG) -> bytes:
    """The lines as our own generator makes them."""
    return b"".join(batch_lines(PromptRef(slug=slug), rows(count)))


def inlined_file(count: int) -> bytes:
    """What one uploads without stored prompts, as compactly written."""
    return b"".join(_inlined(n, row["text"]) for n, row in enumerate(rows(count), 1))


def _inlined(number: int, text: str) -> bytes:
    messages = [MESSAGES[0], {"role": "user", "content": f"Summarise: {text}"}]
    line = {
        "custom_id": f"row-{number:06d}",
        "method": "POST",
        "url": next(iter(PROMPT_ENDPOINTS)),
        "body": {**MODEL_CONFIG, "messages": messages},
    }
    return msgspec.json.encode(line) + b"\n"
