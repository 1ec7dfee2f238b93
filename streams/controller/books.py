"""The controller's memory: live batches and their chunks, for the assigned partitions.

The tables hold the same as rows. Ended batches are in the tables only, as stubs; whoever asks for
one is answered from there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import cast

from schemas.partitions import partition_for
from schemas.records import BatchRow, ChunkRow
from streams.controller.ports import Cause, Rows
from streams.domain.batch.row import from_row, to_row
from streams.domain.batch.state import Batch, Ended, Live
from streams.domain.chunk import chunk_key
from streams.domain.ledger import Ledger
from streams.domain.ledger import from_row as ledger_from_row
from streams.domain.ledger import to_row as ledger_to_row

#: A stub must outlive every command that could start its batch again: batch.command keeps 35 days.
STUB_KEPT_MS = 36 * 86_400_000
#: Stubs removed in one go, so that a backlog of them is no pause.
_STUBS_AT_ONCE = 200


class Books:
    """All state of this process, and the only writer of its tables."""

    def __init__(self, batches: Rows, chunks: Rows) -> None:
        self._batches = batches
        self._chunks = chunks
        self._partitions = 1
        self.live: dict[str, Live] = {}
        self.ledgers: dict[str, dict[int, Ledger]] = {}
        #: Chunks of ended batches, to be deleted: batch, what ended it.
        self.leftovers: deque[tuple[str, Cause]] = deque()
        self._stubs: deque[tuple[int, str, Cause]] = deque()

    def load(self, assigned: Iterable[int], partitions: int) -> None:
        """Starts over with what the tables hold of these partitions, of so many in all."""
        self.clear()
        self._partitions = partitions
        mine = set(assigned)
        for _, row in self._chunks.items():  # noqa: PERF102 - a table, not a dict
            if self.partition_of(row.batch_id) in mine:
                chunk = cast("ChunkRow", row)
                self.ledgers.setdefault(row.batch_id, {})[chunk.chunk] = ledger_from_row(chunk)
        stubs: list[tuple[int, str, Cause]] = []
        for _, row in self._batches.items():  # noqa: PERF102 - as above
            partition = self.partition_of(row.batch_id)
            if partition not in mine:
                continue
            batch = from_row(cast("BatchRow", row), self.ledgers.get(row.batch_id, {}))
            if isinstance(batch, Ended):
                stubs.append((batch.ended_at_ms, row.batch_id, Cause(partition, row.watermark)))
                if row.batch_id in self.ledgers:
                    self.leftovers.append((row.batch_id, Cause(partition, row.watermark)))
            else:
                self.live[row.batch_id] = batch
        self._stubs.extend(sorted(stubs, key=lambda stub: stub[:2]))

    def clear(self) -> None:
        """Forgets everything: the partitions are another's."""
        self.live.clear()
        self.ledgers.clear()
        self.leftovers.clear()
        self._stubs.clear()

    def partition_of(self, batch_id: str) -> int:
        """The partition of batch.event that holds the batch's log."""
        return partition_for(batch_id, self._partitions)

    def find(self, batch_id: str) -> Batch | None:
        """The batch; of an ended one what its stub says."""
        live = self.live.get(batch_id)
        if live is not None:
            return live
        row = self._batches.get(batch_id)
        return None if row is None else from_row(cast("BatchRow", row), {})

    def write_chunks(self, batch_id: str, changed: Mapping[int, Ledger], cause: Cause) -> None:
        """Writes chunk rows and remembers them."""
        ledgers = self.ledgers.setdefault(batch_id, {})
        for chunk, ledger in changed.items():
            ledgers[chunk] = ledger
            self._chunks.put(
                chunk_key(batch_id, chunk), ledger_to_row(batch_id, chunk, ledger), cause
            )

    def write_batch(self, batch: Batch, cause: Cause) -> None:
        """Writes the batch's row and remembers it as long as it lives."""
        batch_id = batch.request.batch_id
        self._batches.put(batch_id, to_row(batch), cause)
        if isinstance(batch, Ended):
            self.live.pop(batch_id, None)
            self._stubs.append((batch.ended_at_ms, batch_id, cause))
            if batch_id in self.ledgers:
                self.leftovers.append((batch_id, cause))
        else:
            self.live[batch_id] = batch

    def delete_leftovers(self, most: int) -> None:
        """Deletes chunks of so many ended batches. Their batches' rows must be durable."""
        for _ in range(min(most, len(self.leftovers))):
            batch_id, cause = self.leftovers.popleft()
            for chunk, ledger in self.ledgers.pop(batch_id, {}).items():
                at = Cause(cause.partition, max(cause.offset, ledger.watermark))
                self._chunks.delete(chunk_key(batch_id, chunk), at)

    def delete_old_stubs(self, now_ms: int) -> None:
        """Deletes stubs that nothing can wake any more."""
        for _ in range(_STUBS_AT_ONCE):
            if not self._stubs or self._stubs[0][0] + STUB_KEPT_MS > now_ms:
                return
            _, batch_id, cause = self._stubs.popleft()
            self._batches.delete(batch_id, cause)
