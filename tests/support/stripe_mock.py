"""Stripe's own stand-in, `stripe-mock`: stateless, but it knows every request's shape.

Built once with Go into a cache folder. Where neither is there the test is skipped by name, and
in CI that is a failure.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.support.waiting import eventually

_VERSION = "v0.203.0"
_BUILD_S = 240
_START_S = 60
_LISTENING = b"Listening for HTTP at address: "


def stripe_mock_binary() -> Path:
    """The binary, built if need be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    binary = cache / "backhaul-tests" / f"stripe-mock-{_VERSION}" / "stripe-mock"
    if binary.exists():
        return binary
    go = shutil.which("go")
    if go is None:
        _missing("stripe-mock needs Go to be built; install Go 1.21 or newer.")
    # Built beside and moved: several test processes may do this at once.
    folder = binary.parent / f"build-{os.getpid()}"
    built = subprocess.run(
        [go or "go", "install", f"github.com/stripe/stripe-mock@{_VERSION}"],
        env={**os.environ, "GOBIN": str(folder)},
        capture_output=True,
        timeout=_BUILD_S,
        check=False,
    )
    if built.returncode:
        _missing(f"stripe-mock could not be built: {built.stderr.decode()[-500:]}")
    (folder / "stripe-mock").replace(binary)
    folder.rmdir()
    return binary


@asynccontextmanager
async def running_stripe_mock() -> AsyncIterator[str]:
    """A stripe-mock on a free port of loopback; its base address."""
    binary = await asyncio.to_thread(stripe_mock_binary)
    # Left alone it also listens for HTTPS, at a port that only one of them can have.
    process = await asyncio.create_subprocess_exec(
        *(str(binary), "-http-addr", "127.0.0.1:0", "-https-addr", "127.0.0.1:0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        base = await asyncio.wait_for(_address(process), _START_S)
        await eventually(lambda: _answers(base), 30, "stripe-mock answers")
        yield base
    finally:
        process.kill()
        await process.communicate()


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async for line in process.stdout:
        if line.startswith(_LISTENING):
            return f"http://{line.removeprefix(_LISTENING).decode().strip()}"
    raise AssertionError("stripe-mock ended before it listened")


async def _answers(base: str) -> bool:
    try:
        async with aiohttp.ClientSession() as session, session.get(base):
            return True
    except aiohttp.ClientError:
        return False


def _missing(why: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)
