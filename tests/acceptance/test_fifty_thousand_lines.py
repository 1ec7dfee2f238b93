"""The largest batch the contract allows: complete, in order, and with memory that stays flat."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import defaultdict

import psutil
import pytest
from openai import OpenAI

from tests.support.batches import (
    chat_line,
    check_conservation,
    results_of,
    submit,
    wait_for_end,
)
from tests.support.stack import Stack

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]

ROLES = ("gateway", "controller", "file-worker", "batch-worker", "collector")
#: Generous: `make bench` prints the real figures. What is guarded against is memory that holds
#: the file (50,000 lines of 4 KB are 200 MB).
GROWTH_BOUND_BYTES = 150 * 1024 * 1024


class MemoryWatch:
    """Samples each role's resident memory while a block runs."""

    def __init__(self, stack: Stack) -> None:
        self._pids = {role: stack.pids(role) for role in ROLES}
        self.before = self._sample()
        self.peak: dict[str, int] = defaultdict(int, self.before)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def growth(self) -> dict[str, int]:
        """Bytes that each role grew by at its peak."""
        return {role: self.peak[role] - self.before[role] for role in ROLES}

    def _sample(self) -> dict[str, int]:
        return {
            role: sum(psutil.Process(pid).memory_info().rss for pid in pids)
            for role, pids in self._pids.items()
        }

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            for role, size in self._sample().items():
                self.peak[role] = max(self.peak[role], size)


def test_fifty_thousand_lines_come_out_once_in_order_with_flat_memory(
    client: OpenAI, stack: Stack
) -> None:
    padding = "x" * 3_500
    lines = [
        chat_line(f"row-{n}", text=padding, script="400" if n % 1000 == 7 else None)
        for n in range(50_000)
    ]
    with MemoryWatch(stack) as memory:
        batch = submit(client, lines)
        ended = wait_for_end(client, batch.id, within_s=480, poll_s=0.5)
    assert ended.status == "completed"
    results = results_of(client, ended)
    check_conservation(ended, results, lines)
    assert len(results.error) == 50
    for role, grown in memory.growth().items():
        assert grown < GROWTH_BOUND_BYTES, f"{role} grew by {grown >> 20} MiB"


def test_the_manifest_says_what_the_files_are(client: OpenAI, stack: Stack) -> None:
    lines = [chat_line(f"man-{n}", script="400" if n == 3 else None) for n in range(10)]
    ended = wait_for_end(client, submit(client, lines).id, within_s=60)
    assert ended.output_file_id is not None
    assert ended.error_file_id is not None
    folder = stack.data_dir / "objects" / "batches" / ended.id / "assembled"
    (manifest_path,) = folder.glob("*.manifest")
    manifest = json.loads(manifest_path.read_text())
    assert manifest["output"]["lines"] == 9
    assert manifest["error"]["lines"] == 1
    for part, file_id in (("output", ended.output_file_id), ("error", ended.error_file_id)):
        content = client.files.content(file_id).content
        assert manifest[part]["object"]["sha256"] == hashlib.sha256(content).hexdigest()
        assert manifest[part]["file_id"] == file_id
