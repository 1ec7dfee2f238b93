"""The output and error file of one attempt at an assembly: all of it appears, or none."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from types import TracebackType

import msgspec

from schemas.records import AssembledFile, AssembleTask, ObjectRef
from streams.domain import ids, keys
from streams.domain.assembly import Tally
from streams.ports.object_store import ObjectStore, ObjectStoreError


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What lies beside an assembled file as JSON, for people who check it by hand."""

    batch_id: str
    reason: str
    total: int
    completed: int
    failed: int
    unfinished: int
    lost: int
    agrees_with_ledger: bool
    output: AssembledFile | None
    error: AssembledFile | None
    written_at_ms: int


class _File:
    """One file being written; its object is begun with the first bytes."""

    def __init__(self, store: ObjectStore, batch_id: str, file_id: str) -> None:
        self.file_id = file_id
        # Other attempts write a file of the same id: each has an object of its own.
        self.key = keys.assembled(batch_id, ids.new_object_id())
        self._writer = store.writer(self.key)
        self._sha256 = hashlib.sha256()
        self._size = 0

    async def write(self, data: bytes) -> None:
        self._sha256.update(data)
        self._size += len(data)
        await self._writer.write(data)

    async def close(self) -> None:
        await self._writer.close()

    async def abort(self) -> None:
        await self._writer.abort()

    def assembled(self, lines: int) -> AssembledFile:
        sha256 = self._sha256.hexdigest()
        ref = ObjectRef(key=self.key, size_bytes=self._size, sha256=sha256)
        return AssembledFile(file_id=self.file_id, object=ref, lines=lines)


class Files:
    """Both files and the manifest. Leaving the context without publish() removes everything."""

    def __init__(self, store: ObjectStore, task: AssembleTask) -> None:
        self._store = store
        self._task = task
        self._output: _File | None = None
        self._error: _File | None = None
        self._stored: list[str] = []
        self._published = False

    async def write_output(self, data: bytes) -> None:
        """Appends whole lines to the output file."""
        if data:
            self._output = self._output or self._begun(ids.output_file_id)
            await self._output.write(data)

    async def write_error(self, data: bytes) -> None:
        """Appends whole lines to the error file."""
        if data:
            self._error = self._error or self._begun(ids.error_file_id)
            await self._error.write(data)

    async def publish(
        self, tally: Tally, agrees: bool, at_ms: int
    ) -> tuple[AssembledFile | None, AssembledFile | None, ObjectRef | None]:
        """Makes the files visible and writes the manifest. Raises ObjectStoreError."""
        output = await self._finish(self._output, tally.completed)
        error = await self._finish(self._error, tally.errors)
        manifest = await self._write_manifest(tally, agrees, output, error, at_ms)
        self._published = True
        return output, error, manifest

    async def __aenter__(self) -> Files:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._published:
            return
        for file in (self._output, self._error):
            if file is not None:
                await file.abort()
        for key in self._stored:
            # Where the store can't even delete, the clean-up finds the object later.
            with contextlib.suppress(ObjectStoreError):
                await self._store.delete(key)

    def _begun(self, id_of: Callable[[str], str]) -> _File:
        batch_id = self._task.batch_id
        return _File(self._store, batch_id, id_of(batch_id))

    async def _finish(self, file: _File | None, lines: int) -> AssembledFile | None:
        if file is None:
            return None
        # Before, not after: a close that is cut off may have stored the object all the same.
        self._stored.append(file.key)
        await file.close()
        return file.assembled(lines)

    async def _write_manifest(
        self,
        tally: Tally,
        agrees: bool,
        output: AssembledFile | None,
        error: AssembledFile | None,
        at_ms: int,
    ) -> ObjectRef | None:
        named = output or error
        if named is None:
            return None
        manifest = Manifest(
            batch_id=self._task.batch_id,
            reason=self._task.reason.value,
            total=self._task.total,
            completed=tally.completed,
            failed=tally.failed,
            unfinished=tally.unfinished,
            lost=tally.lost,
            agrees_with_ledger=agrees,
            output=output,
            error=error,
            written_at_ms=at_ms,
        )
        data = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
        key = keys.manifest_of(named.object.key)
        self._stored.append(key)
        await self._store.put(key, data)
        return ObjectRef(key=key, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
