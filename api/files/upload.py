"""Receives an upload: streams its file to the object store with flat memory, judging as it goes.

Nothing is left behind by a body that is wrong, cut off or too large, nor by a full disk: the
object appears only when the whole form was read and found good.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field

import msgspec
from aiohttp import web

from api import checks
from api.errors import InvalidRequest, RequestTooSlow, TooLarge
from api.gateway import Gateway
from api.http.multipart import (
    MultipartError,
    MultipartParser,
    PartBegin,
    PartData,
    PartEnd,
    PartEvent,
    boundary_of,
)
from schemas.records import FileRecord, ObjectRef
from streams.domain import keys
from streams.domain.ids import new_file_id
from streams.ports.object_store import ObjectStore, ObjectWriter
from streams.settings import Settings

#: The purposes that OpenAI takes for uploads.
PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
BATCH = "batch"
#: Files of purpose 'batch' expire after this, unless the caller says otherwise.
BATCH_FILE_LIFE_S = 30 * 24 * 3600
MIN_EXPIRY_S = 3600
MAX_EXPIRY_S = 2_592_000

_FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
_MAX_FIELD_BYTES = 4096
_MAX_FILENAME = 255
#: Boundaries, headers and fields beside the file's own bytes.
_FORM_OVERHEAD_BYTES = 64 * 1024
#: Lines made here go to the store in pieces of this.
_CHUNK_BYTES = 256 * 1024
_BOM = b"\xef\xbb\xbf"


async def receive(request: web.Request, gateway: Gateway, tenant: str) -> FileRecord:
    """Reads the whole request and returns the record of the stored file, not yet published.

    Raises ApiError, ObjectStoreError, or ConnectionError if the client went away.
    """
    _refuse_early(request, gateway.settings)
    file_id = new_file_id()
    key = keys.uploaded_file(tenant, file_id)
    form = _Form(gateway.settings)
    try:
        async with asyncio.timeout(gateway.timeouts.upload_s), AsyncExitStack() as stack:
            events = await stack.enter_async_context(aclosing(_events(request, gateway)))
            async for event in events:
                if isinstance(event, PartBegin) and event.name == "file":
                    form.check_purpose()
                    writer = await stack.enter_async_context(gateway.store.writer(key))
                    form.begin_file(event, writer)
                else:
                    await form.add(event)
            # Leaving the stack without an error is what makes the object appear.
            form.check()
    except MultipartError as error:
        raise InvalidRequest(f"The upload could not be read: {error}") from error
    except TimeoutError as error:
        raise RequestTooSlow("The upload did not arrive in time.", code="timeout") from error
    return form.record(file_id, tenant, key, gateway.clock.now_ms())


async def store_lines(
    gateway: Gateway,
    tenant: str,
    lines: AsyncIterator[bytes],
    filename: str,
    file_id: str | None = None,
) -> FileRecord:
    """As write_lines(), now."""
    return await write_lines(
        gateway.store,
        gateway.settings,
        lines,
        tenant=tenant,
        filename=filename,
        now_ms=gateway.clock.now_ms(),
        file_id=file_id,
    )


async def write_lines(
    store: ObjectStore,
    settings: Settings,
    lines: AsyncIterator[bytes],
    *,
    tenant: str,
    filename: str,
    now_ms: int,
    file_id: str | None = None,
) -> FileRecord:
    """Stores a file of purpose 'batch' made here; returns its record, not yet published.

    file_id: of a file that is made again, the same to the byte; else it gets a new one. Raises
    InvalidRequest, TooLarge, ObjectStoreError, and whatever `lines` does; then nothing is left
    behind.
    """
    form = _Form(settings, {"purpose": bytearray(BATCH.encode())})
    file_id = file_id or new_file_id()
    key = keys.uploaded_file(tenant, file_id)
    async with store.writer(key) as writer:
        form.begin_file(PartBegin("file", filename), writer)
        async for chunk in _chunks(lines):
            await form.add(PartData(chunk))
            # Making lines takes time, which other requests share.
            await asyncio.sleep(0)
        await form.add(PartEnd())
        form.check()
    return form.record(file_id, tenant, key, now_ms)


async def one_by_one(lines: Iterable[bytes]) -> AsyncIterator[bytes]:
    """Lines that are made here, for store_lines()."""
    for line in lines:
        yield line


async def _chunks(lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    chunk = bytearray()
    async for line in lines:
        chunk += line
        if len(chunk) >= _CHUNK_BYTES:
            yield bytes(chunk)
            chunk.clear()
    if chunk:
        yield bytes(chunk)


def _refuse_early(request: web.Request, settings: Settings) -> None:
    announced = request.content_length or 0
    if announced > settings.max_file_bytes + _FORM_OVERHEAD_BYTES:
        raise _too_large(settings.max_file_bytes)


async def _events(request: web.Request, gateway: Gateway) -> AsyncGenerator[PartEvent, None]:
    parser = MultipartParser(boundary_of(request.headers.get("Content-Type", "")))
    limit = gateway.settings.max_file_bytes + _FORM_OVERHEAD_BYTES
    received = 0
    while True:
        async with asyncio.timeout(gateway.timeouts.body_idle_s):
            try:
                data = await request.content.readany()
            except web.RequestPayloadError as error:
                raise MultipartError("the body was cut off.") from error
        if not data:
            break
        received += len(data)
        if received > limit:
            raise _too_large(gateway.settings.max_file_bytes)
        for event in parser.feed(data):
            yield event
    parser.close()


@dataclass
class _Form:
    """The form as far as it was read."""

    settings: Settings
    fields: dict[str, bytearray] = field(default_factory=dict)
    current: str | None = None
    file: _ReceivedFile | None = None

    def begin_file(self, part: PartBegin, writer: ObjectWriter) -> None:
        """The part 'file' begins."""
        if self.file is not None:
            raise InvalidRequest("The upload has more than one 'file'.", param="file")
        filename = checks.at_most("file", part.filename or "upload", _MAX_FILENAME)
        self.file = _ReceivedFile(filename, writer, self.settings)
        self.current = None

    async def add(self, event: PartEvent) -> None:
        """Any other event."""
        match event:
            case PartBegin(name=name):
                checks.known_only({name: None}, _FIELDS)
                self.current = name
                self.fields[name] = bytearray()
            case PartData(data=data) if self.current is not None:
                value = self.fields[self.current]
                if len(value) + len(data) > _MAX_FIELD_BYTES:
                    raise InvalidRequest(
                        f"Invalid '{self.current}': the field is too long.", param=self.current
                    )
                value += data
            case PartData(data=data) if self.file is not None:
                await self.file.write(data, self.file_limit())
            case PartEnd() if self.current is None and self.file is not None:
                self.file.end()

    def file_limit(self) -> int:
        """How large the file may be, by what is known of its purpose yet."""
        if self.text("purpose") == BATCH:
            return min(self.settings.max_batch_file_bytes, self.settings.max_file_bytes)
        return self.settings.max_file_bytes

    def text(self, name: str) -> str | None:
        """A field's value."""
        value = self.fields.get(name)
        return None if value is None else value.decode("utf-8", "replace")

    def check_purpose(self) -> None:
        """Refuses a wrong purpose, where it is known before the file's bytes."""
        purpose = self.text("purpose")
        if purpose is not None and purpose not in PURPOSES:
            raise checks.unsupported("purpose", purpose, PURPOSES)

    def check(self) -> None:
        """Judges the whole form."""
        if self.file is None:
            raise checks.missing("file")
        if self.text("purpose") is None:
            raise checks.missing("purpose")
        self.check_purpose()
        self.expires_after_s()
        if self.text("purpose") == BATCH:
            if self.file.size_bytes > self.file_limit():
                raise _too_large(self.file_limit())
            self.file.first_line.check()

    def expires_after_s(self) -> int | None:
        """Seconds from the file's creation to its end; None for never."""
        anchor, seconds = self.text("expires_after[anchor]"), self.text("expires_after[seconds]")
        if anchor is None and seconds is None:
            return BATCH_FILE_LIFE_S if self.text("purpose") == BATCH else None
        if anchor is None:
            raise checks.missing("expires_after.anchor")
        if seconds is None:
            raise checks.missing("expires_after.seconds")
        if anchor != "created_at":
            raise checks.unsupported("expires_after.anchor", anchor, ("created_at",))
        number = checks.integer_text("expires_after.seconds", seconds)
        return checks.within("expires_after.seconds", number, MIN_EXPIRY_S, MAX_EXPIRY_S)

    def record(self, file_id: str, tenant: str, key: str, now_ms: int) -> FileRecord:
        """The record of a form that was found good."""
        if self.file is None:
            raise checks.missing("file")
        life_s = self.expires_after_s()
        return FileRecord(
            file_id=file_id,
            tenant=tenant,
            object=ObjectRef(
                key=key, size_bytes=self.file.size_bytes, sha256=self.file.hash.hexdigest()
            ),
            filename=self.file.filename,
            purpose=self.text("purpose") or "",
            created_at_ms=now_ms,
            # In whole seconds after the creation that callers see.
            expires_at_ms=None if life_s is None else (now_ms // 1000 + life_s) * 1000,
        )


class _ReceivedFile:
    """The file's bytes on their way to the store."""

    def __init__(self, filename: str, writer: ObjectWriter, settings: Settings) -> None:
        self.filename = filename
        self.size_bytes = 0
        self.hash = hashlib.sha256()
        self.first_line = _FirstLine(settings.max_line_bytes)
        self._writer = writer

    async def write(self, data: bytes, limit: int) -> None:
        """Stores some bytes. Raises TooLarge, ObjectStoreError."""
        self.size_bytes += len(data)
        if self.size_bytes > limit:
            raise _too_large(limit)
        self.hash.update(data)
        self.first_line.add(data)
        await self._writer.write(data)

    def end(self) -> None:
        """The file is complete."""
        self.first_line.complete = True


class _FirstLine:
    """The file's first line, kept until it can be judged. A longer one than a line may be is
    left to validation, which names the line and the limit."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._line = bytearray()
        self.complete = False

    def add(self, data: bytes) -> None:
        """Takes the file's next bytes."""
        if self.complete:
            return
        at = data.find(b"\n")
        self._line += data if at < 0 else data[:at]
        self.complete = at >= 0 or len(self._line) > self._max_bytes

    def check(self) -> None:
        """Raises InvalidRequest if the line is empty or not JSON."""
        line = bytes(self._line).removeprefix(_BOM).strip(b" \t\r")
        if not line:
            raise _not_jsonl("its first line is empty")
        if len(self._line) > self._max_bytes:
            return
        try:
            line.decode()
            # Raw: judges the syntax without building what may be millions of small objects.
            msgspec.json.decode(line, type=msgspec.Raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _not_jsonl("its first line is not valid JSON") from error


def _not_jsonl(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid file format. Files of purpose 'batch' must be .jsonl, but {why}.",
        param="file",
        code="invalid_file_format",
    )


def _too_large(limit: int) -> TooLarge:
    return TooLarge(
        f"The file is too large: at most {limit} bytes are allowed.",
        param="file",
        code="file_too_large",
    )
