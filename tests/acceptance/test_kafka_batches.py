"""Batches of services that only speak Kafka: the examples, and a bridge that is killed at work."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from schemas.headers import LINE
from streams.settings import Settings
from tests.support.batches import chat_line
from tests.support.bridge import kind_of, make_topics, results, service
from tests.support.stack import Simulator, Stack, running, start_simulator, start_stack
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kafka, pytest.mark.real_kafka]

EXAMPLES = Path(__file__).parents[2] / "examples"
LINES = 1500


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    simulator = start_simulator("--error", "400=0.1")
    with running(simulator):
        yield simulator


@pytest.fixture(scope="module")
def stack(
    simulator: Simulator, kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    stack = start_stack(
        tmp_path_factory.mktemp("bridge"),
        *("--kafka", kafka_bootstrap, "--upstream", simulator.base_url),
        env={"BACKHAUL_TOPIC_PREFIX": f"brg{uuid4().hex[:10]}"},
    )
    with running(stack):
        yield stack


@pytest.fixture
def settings(stack: Stack) -> Settings:
    return Settings(
        kafka=stack.info["kafka"],
        kafka_replicas=1,
        topic_prefix=stack.env["BACKHAUL_TOPIC_PREFIX"],
    )


async def test_the_example_for_aiokafka_gets_its_answers(settings: Settings) -> None:
    await make_topics(settings)
    done = await asyncio.to_thread(
        run,
        *(sys.executable, str(EXAMPLES / "kafka_batch.py"), "--kafka", settings.kafka),
        *("--tenant", "acme", "--model", "sim", "--prefix", settings.topic_prefix),
        *("Who?", "Why?"),
    )
    assert done.returncode == 0, done.stderr
    kinds = [line.split(" ", 1)[0] for line in done.stdout.splitlines()]
    assert (kinds[0], len(kinds), kinds[-1]) == ("accepted", 4, "end")


@pytest.mark.skipif(shutil.which("kcat") is None, reason="kcat is not installed")
async def test_the_example_for_kcat_prints_the_results(settings: Settings, tmp_path: Path) -> None:
    await make_topics(settings)
    (tmp_path / "in.jsonl").write_text(
        "".join(f"{json.dumps(chat_line(f'k{n}'))}\n" for n in range(20))
    )
    done = await asyncio.to_thread(
        run,
        *(str(EXAMPLES / "kcat.sh"), settings.kafka, "acme", str(tmp_path / "in.jsonl")),
        env={"BACKHAUL_TOPIC_PREFIX": settings.topic_prefix, "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    ids = [json.loads(line)["custom_id"] for line in done.stdout.splitlines()]
    assert ids == [f"k{n}" for n in range(20)]


async def test_a_bridge_killed_at_work_delivers_every_line_once_and_in_order(
    stack: Stack, settings: Settings
) -> None:
    await make_topics(settings)
    async with service(settings) as tenant, results(settings) as told:

        async def count(kind: str) -> int:
            return sum(kind_of(r) == kind for r in await told.more() if r.key == b"big")

        async def has_ended_twice() -> bool:
            return await count("end") >= 2

        for n in range(LINES):
            if n == LINES // 2:
                stack.kill("bridge")
            await tenant.send(b"big", json.dumps(chat_line(f"b{n}")).encode())
        await tenant.submit(b"big", [], lines=LINES)
        await eventually(lambda: count("accepted"), 60)
        await eventually(lambda: stack.pids("bridge"))
        stack.kill("bridge")
        await eventually(lambda: count("end"), 90)
        # Another batch with the key: what is sent again of the first would come before its end.
        await tenant.submit(b"big", [json.dumps(chat_line("b-next")).encode()])
        await eventually(has_ended_twice, 60)
    mine = [r for r in told.records if r.key == b"big"]
    kinds = Counter(kind_of(r) for r in mine)
    assert kinds["output"] + kinds["error"] == LINES + 1
    assert (kinds["end"], kind_of(mine[-1])) == (2, "end")
    # The kill may come between the answer and the commit: then that is told again.
    assert kinds["accepted"] in (2, 3)
    lines = [r for r in mine if kind_of(r) in ("output", "error")]
    assert [int(dict(r.headers)[LINE]) for r in lines] == [*range(LINES), 0]
    ids = [json.loads(r.value)["custom_id"] for r in lines]
    assert ids == [*(f"b{n}" for n in range(LINES)), "b-next"]


def run(*command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs an example to its end."""
    return subprocess.run(
        command, check=False, env=env, capture_output=True, text=True, timeout=240
    )
