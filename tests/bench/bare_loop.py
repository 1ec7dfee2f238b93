"""The yardstick: a bare aiohttp client loop that sends every line of a JSONL file.

    python -m tests.bench.bare_loop FILE BASE_URL CONCURRENCY

It reads the file, sends each body, reads each answer and writes it to a file, and keeps nothing
else: no retries, no ledger, no crash safety. Prints {"lines", "cpu_s", "wall_s"} as JSON.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import aiohttp


async def _send_all(file: bytes, base_url: str, concurrency: int) -> int:
    root = base_url.removesuffix("/v1")
    lines = iter(file.splitlines())
    sent = 0
    connector = aiohttp.TCPConnector(limit=concurrency)
    with tempfile.TemporaryFile() as out:
        async with aiohttp.ClientSession(connector=connector) as session:

            async def worker() -> None:
                nonlocal sent
                for raw in lines:
                    line = json.loads(raw)
                    async with session.post(root + line["url"], json=line["body"]) as answer:
                        body = await answer.json()
                    result = {"custom_id": line["custom_id"], "response": body}
                    out.write(json.dumps(result).encode() + b"\n")
                    sent += 1

            await asyncio.gather(*(worker() for _ in range(concurrency)))
    return sent


def main() -> None:
    """Sends the file and prints what it cost."""
    path, base_url, concurrency = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.monotonic()
    lines = asyncio.run(_send_all(path.read_bytes(), base_url, concurrency))
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"lines": lines, "cpu_s": cpu_s, "wall_s": time.monotonic() - began}))


if __name__ == "__main__":
    main()
