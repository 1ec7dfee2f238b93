"""A folder as object store: a full disk, a killed writer, a slow disk, many writers at once."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.adapters.object_store import open_store
from streams.adapters.object_store_local import STAGING
from streams.ports.object_store import (
    ObjectStore,
    ObjectStoreError,
    ObjectStoreFullError,
    ObjectWriter,
)

_MIB = 1 << 20


def _files(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


async def _write(writer: ObjectWriter, mebibytes: int) -> None:
    for _ in range(mebibytes):
        await writer.write(b"x" * _MIB)


async def _keys(store: ObjectStore) -> list[str]:
    return [info.key async for info in store.list("")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


async def test_a_full_disk_says_so_keeps_what_is_there_and_holds_nothing_half_written(
    small_disk: Path,
) -> None:
    store = open_store(str(small_disk))
    await store.put("files/t/kept", b"x" * _MIB)
    with pytest.raises(ObjectStoreFullError):
        await store.put("files/t/large", b"x" * (5 * _MIB))
    writer = store.writer("files/t/streamed")
    with pytest.raises(ObjectStoreFullError):
        await _write(writer, 10)
    await writer.abort()
    assert _files(small_disk) == ["files/t/kept"]
    assert await store.size("files/t/kept") == _MIB
    await store.put("files/t/after", b"x" * (2 * _MIB))


_LIMITED = """
import asyncio, resource, sys
from streams.adapters.object_store import open_store
from streams.ports.object_store import ObjectStoreFullError

async def main():
    store = open_store(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    await store.put("small", b"x" * 1000)
    try:
        await store.put("large", b"x" * (3 << 20))
    except ObjectStoreFullError as error:
        print(error)
    try:
        async with store.writer("streamed") as writer:
            for _ in range(5):
                await writer.write(b"x" * 700_000)
    except ObjectStoreFullError as error:
        print(error)

asyncio.run(main())
"""


def test_a_limit_on_file_sizes_is_a_full_store_and_the_process_stays_up(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _LIMITED, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == ["The object store has no room left."] * 2
    assert _files(tmp_path) == ["small"]


_KILLED = """
import asyncio, sys
from streams.adapters.object_store import open_store

async def main():
    store = open_store(sys.argv[1])
    writer = store.writer("files/t/cut")
    await writer.write(b"x" * (3 << 20))
    print("written", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_what_a_killed_writer_left_is_removed_when_a_store_is_opened(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (staged,) = (tmp_path / STAGING).iterdir()
        long_ago = time.time() - 3600
        os.utime(staged, (long_ago, long_ago))
        store = open_store(str(tmp_path))
        assert staged.exists(), "its writer is alive"
        assert asyncio.run(_keys(store)) == []
        process.kill()
    open_store(str(tmp_path))
    assert _files(tmp_path) == []


async def test_what_a_killed_writer_left_is_removed_by_one_that_writes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.adapters.object_store_local._SWEEP_S", 0.0)
    store = open_store(str(tmp_path))
    left = tmp_path / STAGING / "left"
    left.write_bytes(b"x")
    os.utime(left, (1, 1))
    await store.put("a", b"1")
    assert _files(tmp_path) == ["a"]


async def test_a_disk_that_is_slow_to_sync_does_not_stall_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned = threading.Event()
    synced = []

    def slow(descriptor: int) -> None:
        turned.clear()
        synced.append(turned.wait(10))

    monkeypatch.setattr("os.fsync", slow)
    store = open_store(str(tmp_path))
    putting = asyncio.create_task(store.put("files/t/f", b"x"))
    while not putting.done():
        turned.set()
        await asyncio.sleep(0.005)
    await putting
    assert all(synced), "the loop turned during each"
    # The bytes, the folders it made, and the name in its folder.
    assert len(synced) >= 2


async def test_a_name_appears_only_after_its_bytes_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    monkeypatch.setattr("os.fsync", lambda _: seen.append((tmp_path / "files/t/f").exists()))
    await open_store(str(tmp_path)).put("files/t/f", b"x")
    assert seen[0] is False
    assert seen[-1] is True


async def test_a_sync_that_fails_is_an_error_and_nothing_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    store = open_store(str(tmp_path))
    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(ObjectStoreError, match="Input/output error"):
        await store.put("f", b"x")
    assert _files(tmp_path) == []


async def test_writes_next_to_deletes_find_their_folder(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))

    async def churn(name: str) -> None:
        for _ in range(40):
            await store.put(f"batches/b/claims/{name}", b"x")
            await store.delete(f"batches/b/claims/{name}")

    await asyncio.gather(*(churn(str(n)) for n in range(8)))
    assert _files(tmp_path) == []


async def test_a_cancelled_write_leaves_nothing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))

    async def write() -> None:
        async with store.writer("files/t/f") as writer:
            await _write(writer, 10_000)

    for delay in (0.0, 0.01, 0.05):
        task = asyncio.create_task(write())
        await asyncio.sleep(delay)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert _files(tmp_path) == []


async def test_a_streamed_write_and_read_keep_memory_flat(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with store.writer("files/t/f") as writer:
        await _write(writer, 200)
    size = 0
    async for chunk in store.stream("files/t/f"):
        size += len(chunk)
    assert size == 200 * _MIB
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 40 * 1024


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ObjectStoreError, match="Cannot open the object store"):
        open_store(str(tmp_path / "file" / "objects"))


async def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    await open_store(f"file://{tmp_path}/my%20objects").put("a/b", b"1")
    assert _files(tmp_path) == ["my objects/a/b"]
