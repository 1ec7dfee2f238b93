"""Apache Kafka's jars, fetched once by Maven into the user's cache folder.

<cache>/kafka-4.3.1/           all jars; it appears whole or not at all
<cache>/kafka-4.3.1.lock       held while fetching, so that concurrent runs fetch once
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from api.up.broker import KAFKA_VERSION, BrokerError, BrokerUnavailableError

#: Kafka 4 needs it.
_JAVA = 17
_FETCH_WITHIN_S = 300.0
_POLL_S = 0.2
#: Pinned, so that every machine runs the same goal.
_COPY_GOAL = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_POM = f"""<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>backhaul</groupId>
  <artifactId>broker</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>{KAFKA_VERSION}</version>
    </dependency>
    <!-- Kafka logs through slf4j and brings nothing that would write it down. -->
    <dependency>
      <groupId>org.slf4j</groupId>
      <artifactId>slf4j-simple</artifactId>
      <version>1.7.36</version>
    </dependency>
  </dependencies>
</project>
"""


def cache_folder() -> Path:
    """Backhaul's folder below XDG_CACHE_HOME, or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "backhaul"


def java_binary() -> Path:
    """A Java that can run Kafka: JAVA_HOME's, else PATH's. Raises BrokerUnavailableError."""
    home = os.environ.get("JAVA_HOME")
    candidates = [str(Path(home) / "bin" / "java")] if home else []
    found = [path for path in map(shutil.which, [*candidates, "java"]) if path]
    for path in found:
        if (java_version(path) or 0) >= _JAVA:
            return Path(path)
    if found:
        raise BrokerUnavailableError(f"{found[0]} is older than Java {_JAVA}")
    raise BrokerUnavailableError(f"there is no Java {_JAVA} or newer (JAVA_HOME, PATH)")


def java_version(path: str) -> int | None:
    """The major version that `java -version` says, or None."""
    try:
        ran = subprocess.run(  # noqa: S603 - a path from PATH
            [path, "-version"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = re.search(r'version "(\d+)(?:\.(\d+))?', ran.stderr + ran.stdout)
    if said is None:
        return None
    major = int(said[1])
    return int(said[2] or 0) if major == 1 else major  # "1.8.0" is Java 8


def jars_available() -> None:
    """Returns if the jars are here or can be fetched. Raises BrokerUnavailableError."""
    if not (cache_folder() / f"kafka-{KAFKA_VERSION}").is_dir() and not shutil.which("mvn"):
        raise BrokerUnavailableError("there is no mvn to fetch Apache Kafka with")


async def fetch_jars(say: Callable[[str], None]) -> Path:
    """The folder with the jars, fetching them if need be. Raises BrokerUnavailableError."""
    folder = cache_folder() / f"kafka-{KAFKA_VERSION}"
    if folder.is_dir():
        return folder
    jars_available()
    folder.parent.mkdir(parents=True, exist_ok=True)
    async with _only_one(folder.with_name(folder.name + ".lock"), say):
        if not folder.is_dir():
            say(f"Fetching Apache Kafka {KAFKA_VERSION} with Maven (about 45 MB, once)")
            await _fetch_into(folder)
    return folder


@contextlib.asynccontextmanager
async def _only_one(path: Path, say: Callable[[str], None]) -> AsyncIterator[None]:
    """Holds the lock file; the kernel frees it if we die."""
    deadline = time.monotonic() + _FETCH_WITHIN_S
    with path.open("w") as lock:
        waiting = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BrokerError(f"Another process has held {path} for too long.") from None
                if not waiting:
                    say("Waiting for another process that is fetching Apache Kafka")
                waiting = True
                await asyncio.sleep(_POLL_S)
        yield


async def _fetch_into(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".kafka-") as scratch:
        pom, libs = Path(scratch) / "pom.xml", Path(scratch) / "libs"
        pom.write_text(_POM, "utf-8")
        maven = await asyncio.create_subprocess_exec(
            "mvn", "--batch-mode", "--quiet", "--file", str(pom), _COPY_GOAL,
            f"-DoutputDirectory={libs}", "-DincludeScope=runtime",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=scratch,
        )  # fmt: skip
        try:
            said, _ = await asyncio.wait_for(maven.communicate(), _FETCH_WITHIN_S)
        except TimeoutError:
            raise BrokerUnavailableError("Maven did not finish fetching Apache Kafka") from None
        finally:
            if maven.returncode is None:
                maven.kill()
                await maven.wait()
        if maven.returncode != 0 or not any(libs.glob("kafka_2.13-*.jar")):
            last = said.decode("utf-8", "replace").strip()[-600:]
            raise BrokerUnavailableError(f"Maven could not fetch Apache Kafka: {last}")
        libs.rename(folder)
