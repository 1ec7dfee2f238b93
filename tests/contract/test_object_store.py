"""Every object store keeps the same promises: the fake, a folder, and a server that speaks S3."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from streams.adapters.object_store import open_store
from streams.adapters.object_store_fake import FakeObjectStore
from streams.ports.object_store import (
    ObjectInfo,
    ObjectNotFoundError,
    ObjectStore,
    ObjectStoreError,
    ObjectWriter,
)

_MIB = 1 << 20


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        _s3("PUT", "/objects")
        yield "s3://objects"
    server.stop()


def _s3(method: str, path: str) -> str:
    url = os.environ["AWS_ENDPOINT_URL"] + path
    with urllib.request.urlopen(urllib.request.Request(url, method=method)) as answer:  # noqa: S310 - our own loopback server
        text: str = answer.read().decode()
        return text


@pytest.fixture(params=["fake", "folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "fake":
        return FakeObjectStore()
    if request.param == "folder":
        return open_store(str(tmp_path / "made" / "objects"))
    url: str = request.getfixturevalue("s3_url")
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    return open_store(f"{url}/{name}")


async def _listed(store: ObjectStore, prefix: str = "") -> list[str]:
    return sorted([info.key async for info in store.list(prefix)])


async def _joined(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


@pytest.mark.parametrize("size", [0, 1, 3 * _MIB])
async def test_what_was_put_is_read_back(store: ObjectStore, size: int) -> None:
    data = bytes(i % 251 for i in range(min(size, 5000))) * max(1, size // 5000)
    await store.put("batches/b/plan/x", data)
    assert await store.get("batches/b/plan/x") == data
    assert await store.size("batches/b/plan/x") == len(data)
    assert await _joined(store.stream("batches/b/plan/x")) == data


@pytest.mark.parametrize("pieces", [[], [b""], [b"one"], [b"a" * 700_000] * 20])
async def test_a_streamed_object_appears_whole_at_close(
    store: ObjectStore, pieces: list[bytes]
) -> None:
    writer = store.writer("files/t/f")
    for piece in pieces:
        await writer.write(piece)
    assert await _listed(store) == []
    await writer.close()
    await writer.close()
    assert await store.get("files/t/f") == b"".join(pieces)


async def test_one_huge_write_is_stored_in_parts(store: ObjectStore) -> None:
    data = b"0123456789abcdef" * (_MIB + 1)
    async with store.writer("files/t/f") as writer:
        await writer.write(data)
    assert await store.size("files/t/f") == len(data)
    assert hashlib.sha256(await store.get("files/t/f")).digest() == hashlib.sha256(data).digest()


async def _write_and_fail(writer: ObjectWriter, data: bytes) -> None:
    async with writer:
        await writer.write(data)
        raise ZeroDivisionError


@pytest.mark.parametrize("size", [10, 12 * _MIB])
async def test_an_aborted_object_never_appears(store: ObjectStore, size: int) -> None:
    writer = store.writer("files/t/f")
    with pytest.raises(ZeroDivisionError):
        await _write_and_fail(writer, b"x" * size)
    assert await _listed(store) == []
    with pytest.raises(ObjectNotFoundError):
        await store.get("files/t/f")
    with pytest.raises(ObjectStoreError):
        await writer.write(b"more")


async def test_aborting_twice_or_before_the_first_write_does_nothing(store: ObjectStore) -> None:
    writer = store.writer("files/t/f")
    await writer.abort()
    await writer.abort()
    assert await _listed(store) == []


async def test_many_objects_can_be_written_at_once(store: ObjectStore) -> None:
    writers = [store.writer(f"files/t/f{n}") for n in range(5)]
    for _ in range(3):
        for n, writer in enumerate(writers):
            await writer.write(bytes([n]) * 1000)
    for writer in writers:
        await writer.close()
    for n in range(5):
        assert await store.get(f"files/t/f{n}") == bytes([n]) * 3000


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [(0, 3, b"012"), (7, 3, b"789"), (7, 100, b"789"), (10, 1, b""), (99, 1, b""), (3, 0, b"")],
)
async def test_a_range_ends_at_the_objects_end(
    store: ObjectStore, offset: int, length: int, expected: bytes
) -> None:
    await store.put("k", b"0123456789")
    assert await store.get_range("k", offset, length) == expected


async def test_a_range_of_an_empty_object_is_empty(store: ObjectStore) -> None:
    await store.put("k", b"")
    assert await store.get_range("k", 0, 10) == b""
    assert await _joined(store.stream("k")) == b""


@pytest.mark.parametrize(
    ("offset", "length"), [(0, None), (5, None), (5, 100), (0, 10_000_000), (9_999_999, 5)]
)
async def test_a_stream_gives_the_bytes_asked_for_in_bounded_chunks(
    store: ObjectStore, offset: int, length: int | None
) -> None:
    data = b"abcdefghij" * 500_000
    await store.put("k", data)
    chunks = [c async for c in store.stream("k", offset, length, chunk_bytes=300_000)]
    end = len(data) if length is None else offset + length
    assert b"".join(chunks) == data[offset:end]
    assert all(0 < len(chunk) <= 300_000 for chunk in chunks)


async def test_reading_what_is_not_there_says_so(store: ObjectStore) -> None:
    for length in (0, 5):
        with pytest.raises(ObjectNotFoundError):
            await store.get_range("no/such", 0, length)
    with pytest.raises(ObjectNotFoundError):
        await store.size("no/such")
    with pytest.raises(ObjectNotFoundError):
        await _joined(store.stream("no/such"))


async def test_a_listing_has_every_key_with_the_prefix_its_size_and_age(store: ObjectStore) -> None:
    for key in (
        "batches/b/segments/1",
        "batches/b/segments/22",
        "batches/b/plan/1",
        "batches/bb/x",
    ):
        await store.put(key, b"x" * len(key))
    found: list[ObjectInfo] = [info async for info in store.list("batches/b/segments/")]
    assert sorted(info.key for info in found) == ["batches/b/segments/1", "batches/b/segments/22"]
    assert all(info.size_bytes == len(info.key) for info in found)
    assert all(info.modified_ms > 1_600_000_000_000 for info in found)
    assert await _listed(store, "batches/b") == [
        "batches/b/plan/1",
        "batches/b/segments/1",
        "batches/b/segments/22",
        "batches/bb/x",
    ]
    assert await _listed(store, "nothing/") == []
    assert len(await _listed(store)) == 4


async def test_a_deleted_object_is_gone_and_deleting_again_is_no_error(store: ObjectStore) -> None:
    await store.put("batches/b/x", b"1")
    await store.delete("batches/b/x")
    await store.delete("batches/b/x")
    assert await _listed(store) == []
    await store.put("batches/b/y", b"2")
    assert await _listed(store) == ["batches/b/y"]


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../../b", "a/./b", "a\nb", "é"])
async def test_a_key_that_could_leave_the_store_is_refused(store: ObjectStore, key: str) -> None:
    for call in (store.put(key, b""), store.get(key), store.delete(key), store.size(key)):
        with pytest.raises(ObjectNotFoundError):
            await call
    with pytest.raises(ObjectNotFoundError):
        store.writer(key)


async def test_an_aborted_upload_leaves_no_parts_in_the_bucket(s3_url: str) -> None:
    store = open_store(f"{s3_url}/aborted")
    writer = store.writer("files/t/f")
    await writer.write(b"x" * (17 * _MIB))
    await writer.abort()
    assert "<UploadId>" not in _s3("GET", "/objects?uploads")


async def test_a_server_that_is_not_there_is_an_error_of_the_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setattr("streams.adapters.object_store._RETRY", {"max_retries": 0})
    store = open_store("s3://objects")
    with pytest.raises(ObjectStoreError):
        await store.get("k")
    with pytest.raises(ObjectStoreError):
        await store.put("k", b"")
    with pytest.raises(ObjectStoreError):
        async with store.writer("k") as writer:
            await writer.write(b"x" * (12 * _MIB))


@pytest.mark.parametrize("url", ["ftp://host/x", "http://host/x", "memory://"])
def test_an_unknown_kind_of_store_is_named(url: str) -> None:
    with pytest.raises(ObjectStoreError, match="s3://"):
        open_store(url)
