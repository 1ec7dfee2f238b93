"""Fetching Kafka's jars: once, whole or not at all, also for concurrent runs; by a mvn of ours."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from api.up.broker import KAFKA_VERSION, BrokerUnavailableError
from api.up.jars import cache_folder, fetch_jars, java_binary, java_version

#: Records that it was called and leaves a jar where it was asked to, or fails.
_MAVEN = """#!{python}
import pathlib, sys, time
with open({log!r}, "a") as log:
    log.write("called\\n")
target = next(a.partition("=")[2] for a in sys.argv if a.startswith("-DoutputDirectory="))
pathlib.Path(target).mkdir()
time.sleep(0.3)
if {fails}:
    sys.exit("Could not transfer artifact")
(pathlib.Path(target) / "kafka_2.13-{version}.jar").write_text("jar")
"""


def _install_maven(folder: Path, monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> Path:
    log, command = folder / "calls", folder / "bin" / "mvn"
    command.parent.mkdir()
    text = _MAVEN.format(python=sys.executable, log=str(log), fails=fails, version=KAFKA_VERSION)
    command.write_text(text)
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    return log


def _java(folder: Path, version: str) -> Path:
    command = folder / "home" / "bin" / "java"
    command.parent.mkdir(parents=True, exist_ok=True)
    command.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    command.chmod(0o755)
    return command


async def test_concurrent_runs_fetch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = _install_maven(tmp_path, monkeypatch)
    said: list[str] = []
    folders = await asyncio.gather(*(fetch_jars(said.append) for _ in range(3)))
    assert len(set(folders)) == 1
    assert [path.suffix for path in folders[0].iterdir()] == [".jar"]
    assert log.read_text() == "called\n"
    assert any("Waiting for another process" in text for text in said)


async def test_jars_that_are_there_need_no_maven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install_maven(tmp_path, monkeypatch)
    first = await fetch_jars(lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await fetch_jars(lambda _: None) == first


async def test_a_failed_fetch_leaves_nothing_and_may_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install_maven(tmp_path, monkeypatch, fails=True)
    for _ in range(2):
        with pytest.raises(BrokerUnavailableError, match="Could not transfer artifact"):
            await fetch_jars(lambda _: None)
    assert [path.suffix for path in cache_folder().iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("said", "major"), [("17.0.15", 17), ("21", 21), ("1.8.0_402", 8), ("24-ea", 24)]
)
def test_the_version_of_java_is_read_as_javas_name_it(
    tmp_path: Path, said: str, major: int
) -> None:
    assert java_version(str(_java(tmp_path, said))) == major


def test_a_java_that_is_too_old_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _java(tmp_path, "11.0.2")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrokerUnavailableError, match="older than Java 17"):
        java_binary()
