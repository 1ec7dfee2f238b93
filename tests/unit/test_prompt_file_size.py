"""What a stored prompt saves: the input file of many lines of one prompt."""

from __future__ import annotations

import json

from tests.bench.prompt_files import (
    MESSAGES,
    MODEL_CONFIG,
    SYSTEM,
    SYSTEM_BYTES,
    inlined_file,
    prompt_file,
)
from tests.support.prompts import Version

LINES = 50_000


def test_fifty_thousand_lines_of_a_2_kb_prompt_are_a_file_ten_times_smaller() -> None:
    assert len(SYSTEM.encode()) == SYSTEM_BYTES == 2048
    assert len(inlined_file(LINES)) >= 10 * len(prompt_file(LINES))


def test_both_files_ask_for_the_same() -> None:
    version = Version(MESSAGES, MODEL_CONFIG)
    for named, inlined in zip(
        prompt_file(100).splitlines(), inlined_file(100).splitlines(), strict=True
    ):
        line, wanted = json.loads(named), json.loads(inlined)
        assert line["custom_id"] == wanted["custom_id"]
        assert version.body(line["url"], line["body"]) == wanted["body"]
