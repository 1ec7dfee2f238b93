"""The routes of the server that the commands use. Answers are the server's JSON objects, whole."""

from __future__ import annotations

import http.client
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, urlencode

from api.cli.failure import Misuse, ServerRefused, TransferFailed
from api.cli.http import HTTP, Json

#: Called with how many more bytes have passed.
Progress = Callable[[int], None]
_CHUNK_BYTES = 256 * 1024
_PAGE = 100
#: What a server says of a growing file that has no more bytes yet.
_NOTHING_NEW = (http.client.NOT_FOUND, http.client.REQUESTED_RANGE_NOT_SATISFIABLE)


class ConnectionLost(Exception):  # noqa: N818 - it is what went wrong
    """The connection broke while a file's content came; what came before is good."""


class Client:
    """A small client of the Files and Batches API. Use as a context manager."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.http = HTTP(base_url, api_key, sleep=sleep)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.http.close()

    def upload(
        self, path: Path, *, purpose: str = "batch", progress: Progress | None = None
    ) -> Json:
        """Streams the file to the server; the File object.

        Raises Misuse if it can't be read, TransferFailed if it changes meanwhile, and what
        HTTP.json raises. Sent once: an upload that may have arrived is not sent again.
        """
        try:
            size = path.stat().st_size
            file = path.open("rb")
        except OSError as error:
            raise Misuse(f"{path} can't be read: {error.strerror}.") from error
        boundary = f"backhaul-{secrets.token_hex(16)}"
        head, tail = _multipart_frame(boundary, path.name, purpose)

        def body() -> Iterator[bytes]:
            yield head
            left = size
            while left:
                chunk = file.read(min(_CHUNK_BYTES, left))
                if not chunk:
                    raise TransferFailed(f"{path} became shorter while it was sent.")
                left -= len(chunk)
                yield chunk
                if progress is not None:
                    progress(len(chunk))
            yield tail

        headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(len(head) + size + len(tail)),
        }
        self.http.close()
        with file:
            try:
                answer = self.http.send("POST", "/files", body(), headers)
            except (OSError, http.client.HTTPException) as error:
                raise self.http.unreachable(error) from error
        return self.http.judged(answer)

    def create_batch(
        self,
        *,
        input_file_id: str,
        endpoint: str,
        window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        priority: int | None = None,
    ) -> Json:
        """The new Batch object. Without a key of the caller's it gets one, so a retry is safe."""
        body: Json = {
            "input_file_id": input_file_id,
            "endpoint": endpoint,
            "completion_window": window,
        }
        if metadata:
            body["metadata"] = dict(metadata)
        if priority is not None:
            body["priority"] = priority
        key = idempotency_key or f"cli-{secrets.token_hex(16)}"
        return self.http.json("POST", "/batches", body, {"Idempotency-Key": key})

    def get_batch(self, batch_id: str) -> Json:
        """The Batch object."""
        return self.http.json("GET", f"/batches/{_segment(batch_id)}")

    def list_batches(self, *, page: int = _PAGE) -> Iterator[Json]:
        """All Batch objects, newest first, fetched page by page as they are asked for."""
        query = {"limit": str(page)}
        while True:
            answer = self.http.json("GET", f"/batches?{urlencode(query)}")
            batches = answer.get("data") or []
            yield from batches
            if not answer.get("has_more") or not batches:
                return
            query["after"] = str(batches[-1].get("id"))

    def cancel_batch(self, batch_id: str) -> Json:
        """The Batch object, now cancelling."""
        return self.http.json("POST", f"/batches/{_segment(batch_id)}/cancel")

    def pause_batch(self, batch_id: str) -> Json:
        """The Batch object, now paused."""
        return self.http.json("POST", f"/batches/{_segment(batch_id)}/pause")

    def resume_batch(self, batch_id: str) -> Json:
        """The Batch object, no longer paused."""
        return self.http.json("POST", f"/batches/{_segment(batch_id)}/resume")

    def change_batch(self, batch_id: str, changes: Mapping[str, int]) -> Json:
        """The Batch object with this priority, this expires_at (Unix seconds), or both."""
        return self.http.json("POST", f"/batches/{_segment(batch_id)}", dict(changes))

    def retry_batch(
        self, batch_id: str, changes: Mapping[str, object], idempotency_key: str | None = None
    ) -> Json:
        """The new Batch object, of the failed lines. Gets a key, so a repeat is safe."""
        key = idempotency_key or f"cli-{secrets.token_hex(16)}"
        path = f"/batches/{_segment(batch_id)}/retry"
        return self.http.json("POST", path, dict(changes), {"Idempotency-Key": key})

    def get_file(self, file_id: str) -> Json:
        """The File object."""
        return self.http.json("GET", f"/files/{_segment(file_id)}")

    def estimate_cost(self, file_id: str, endpoint: str, window: str) -> Json:
        """What a batch on the file would use and cost in this window."""
        body: Json = {"endpoint": endpoint, "completion_window": window}
        return self.http.json("POST", f"/files/{_segment(file_id)}/cost-estimate", body)

    def usage(self, query: Mapping[str, str]) -> Iterator[Json]:
        """The rows of a usage report, fetched page by page as they are asked for."""
        asked = dict(query)
        while True:
            answer = self.http.json("GET", f"/usage?{urlencode(asked)}")
            yield from answer.get("data") or []
            if not answer.get("has_more") or not answer.get("next_page"):
                return
            asked["after"] = str(answer["next_page"])

    def realtime_usage(self, query: Mapping[str, str]) -> Iterator[Json]:
        """The rows of a report of real-time usage."""
        yield from self.http.json("GET", f"/usage/realtime?{urlencode(query)}")["data"]

    def usage_csv(self, query: Mapping[str, str], *, realtime: bool = False) -> Iterator[bytes]:
        """The same as CSV, in chunks. Raises TransferFailed if it breaks, and as HTTP.json does."""
        route = "/usage/realtime" if realtime else "/usage"
        path = f"{route}?{urlencode({**query, 'format': 'csv'})}"
        try:
            with self.http.response("GET", path, None, {"Accept": "text/csv"}) as response:
                if response.status >= http.client.BAD_REQUEST:
                    raise self.http.refusal(response.status, response.read(_CHUNK_BYTES))
                while chunk := response.read(_CHUNK_BYTES):
                    yield chunk
        except ConnectionRefusedError as error:
            raise self.http.unreachable(error) from error
        except (OSError, http.client.HTTPException) as error:
            raise TransferFailed(
                f"The report broke off: {error or type(error).__name__}."
            ) from error

    def content(self, file_id: str, offset: int = 0) -> Iterator[bytes]:
        """The file's bytes from offset on, in chunks, in one request; may end early.

        Raises ConnectionLost if it broke, and what HTTP.json raises.
        """
        headers = {"Accept": "*/*"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        path = f"/files/{_segment(file_id)}/content"
        try:
            with self.http.response("GET", path, None, headers) as response:
                if response.status >= http.client.INTERNAL_SERVER_ERROR:
                    raise ConnectionLost(f"HTTP {response.status}")
                if response.status >= http.client.BAD_REQUEST:
                    raise self.http.refusal(response.status, response.read(_CHUNK_BYTES))
                # A server that does not know ranges sends the whole file again.
                skip = offset if response.status == http.client.OK else 0
                while chunk := response.read(_CHUNK_BYTES):
                    kept = chunk[skip:]
                    skip = max(0, skip - len(chunk))
                    if kept:
                        yield kept
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionLost(str(error) or type(error).__name__) from error

    def content_after(self, file_id: str, offset: int) -> Iterator[bytes]:
        """What there is now behind the first `offset` bytes of a file that grows, if anything.

        Raises as content() does.
        """
        try:
            yield from self.content(file_id, offset)
        except ServerRefused as refused:
            if refused.status not in _NOTHING_NEW:
                raise


def _segment(text: str) -> str:
    """An id as one segment of a path."""
    if not text:
        raise Misuse("The id is empty.")
    return quote(text, safe="")


def _multipart_frame(boundary: str, filename: str, purpose: str) -> tuple[bytes, bytes]:
    """What stands before and after the file's bytes. The purpose comes first: servers stream."""
    name = (
        filename.replace("%", "%25").replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
    )
    head = (
        f"--{boundary}\r\n"
        'Content-Disposition: form-data; name="purpose"\r\n\r\n'
        f"{purpose}\r\n"
        f"--{boundary}\r\n"
        f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return head.encode("utf-8", "surrogateescape"), f"\r\n--{boundary}--\r\n".encode()
