"""What tests of results through Kafka share: ended batches with their files, as if they had run."""

from __future__ import annotations

import json
from collections.abc import Collection

from schemas.records import BatchSnapshot, BatchStatus, ObjectRef, Usage
from streams.domain.clock import SystemClock
from streams.domain.ids import error_file_id, line_request_id, output_file_id
from streams.ports.object_store import ObjectStore

#: When batches end here: just now, since old ones are not delivered.
ENDED_MS = SystemClock().now_ms()


def result_line(batch_id: str, number: int, size: int = 0) -> bytes:
    """A line of an output or error file, with about `size` bytes of answer."""
    line = {
        "id": line_request_id(batch_id, number),
        "custom_id": f"c-{number}",
        "response": {"status_code": 200, "request_id": f"req_{number}", "body": "x" * size},
        "error": None,
    }
    return json.dumps(line).encode()


async def ended_batch(
    store: ObjectStore,
    batch_id: str,
    lines: int,
    *,
    failed: Collection[int] = (),
    missing: Collection[int] = (),
    size: int = 0,
    sizes: dict[int, int] | None = None,
    tenant: str = "acme",
    key: str | None = "nightly",
    status: BatchStatus = BatchStatus.COMPLETED,
) -> BatchSnapshot:
    """The snapshot of a batch whose files are in the store. missing: lines of neither file."""
    files: dict[bool, list[bytes]] = {True: [], False: []}
    for number in range(lines):
        if number not in missing:
            line = result_line(batch_id, number, (sizes or {}).get(number, size))
            files[number not in failed].append(line + b"\n")
    refs: dict[bool, ObjectRef | None] = {True: None, False: None}
    for good, found in files.items():
        if found:
            data = b"".join(found)
            refs[good] = ObjectRef(key=f"results/{batch_id}/{good}", size_bytes=len(data))
            await store.put(f"results/{batch_id}/{good}", data)
    return BatchSnapshot(
        batch_id=batch_id,
        tenant=tenant,
        revision=7,
        status=status,
        created_at_ms=ENDED_MS - 100_000,
        expires_at_ms=ENDED_MS + 86_300_000,
        completed_at_ms=ENDED_MS if status is BatchStatus.COMPLETED else None,
        failed_at_ms=ENDED_MS if status is BatchStatus.FAILED else None,
        expired_at_ms=ENDED_MS if status is BatchStatus.EXPIRED else None,
        cancelled_at_ms=ENDED_MS if status is BatchStatus.CANCELLED else None,
        endpoint="/v1/chat/completions",
        input_file_id="file-in",
        completion_window="24h",
        metadata={},
        request_hash="h",
        output_file_id=output_file_id(batch_id) if refs[True] else None,
        error_file_id=error_file_id(batch_id) if refs[False] else None,
        errors=(),
        total=lines,
        completed=len(files[True]),
        failed=lines - len(files[True]),
        usage=Usage(input_tokens=3 * lines, output_tokens=lines),
        kafka_key=key,
        output=refs[True],
        error=refs[False],
    )
