"""`python -m api` as a process on a real broker and a real folder: starts, stops, kills, memory."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import APIConnectionError, APIStatusError, NotFoundError, OpenAI

from api.accounts.keys import create_key, list_keys, revoke_key
from api.read_model.schema import from_create
from api.up.broker import free_port
from schemas.records import ApiKeyRecord, BatchCreate, BatchStatus
from schemas.topics import ACCOUNT, BATCH_COMMAND, BATCH_STATUS
from streams.kafka.admin import apply_topics
from streams.kafka.producer import RecordProducer
from streams.kafka.reader import TopicReader
from streams.settings import Settings
from tests.support.brokers import run
from tests.support.waiting import eventually_sync

pytestmark = pytest.mark.kafka

REPOSITORY = Path(__file__).parents[2]
LINE = b'{"custom_id": "1"}\n'
MIB = 1024 * 1024


@dataclass
class GatewayProcess:
    """A gateway that is run as operators run it."""

    settings: Settings
    secret: str
    environment: dict[str, str]
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    clients: list[OpenAI] = field(default_factory=list)

    def start(self, **environment: str) -> None:
        """Starts it and waits until it is ready."""
        self.port, health = free_port(), free_port()
        ports = {"BACKHAUL_PORT": str(self.port), "BACKHAUL_HEALTH_PORT": str(health)}
        self.process = spawn({**self.environment, **ports, **environment})
        eventually_sync(lambda: self._ready(health), 60)

    def _ready(self, health: int) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            pytest.fail(f"the gateway ended with {self.process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{health}/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def client(self) -> OpenAI:
        """The SDK, without retries."""
        client = OpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key=self.secret, max_retries=0
        )
        self.clients.append(client)
        return client

    def end(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and waits for the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(30)

    def memory(self) -> int:
        """Resident bytes now."""
        assert self.process is not None
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def close(self) -> None:
        for client in self.clients:
            client.close()
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)


def spawn(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "api"],
        env={**os.environ, **environment},
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


async def make_key(settings: Settings) -> tuple[ApiKeyRecord, str]:
    producer = RecordProducer(settings)
    await producer.start()
    try:
        return await create_key(producer, "acme", "test")
    finally:
        await producer.stop()


@pytest.fixture
def stopped(kafka_settings: Settings, tmp_path: Path) -> Iterator[GatewayProcess]:
    """A gateway's environment; topics and a key are there."""
    run(apply_topics(kafka_settings))
    _, secret = run(make_key(kafka_settings))
    table = tmp_path / "upstreams.yaml"
    table.write_text("upstreams: [{name: one, base_url: 'http://127.0.0.1:9/v1', models: [m1]}]")
    environment = {
        "BACKHAUL_KAFKA": kafka_settings.kafka,
        "BACKHAUL_KAFKA_IDEMPOTENCE": str(kafka_settings.kafka_idempotence),
        "BACKHAUL_TOPIC_PREFIX": kafka_settings.topic_prefix,
        "BACKHAUL_DATA_DIR": str(tmp_path / "data"),
        "BACKHAUL_UPSTREAMS_FILE": str(table),
    }
    gateway = GatewayProcess(kafka_settings, secret, environment)
    yield gateway
    gateway.close()


@pytest.fixture
def gateway(stopped: GatewayProcess) -> GatewayProcess:
    """The same, running."""
    stopped.start()
    return stopped


def create(client: OpenAI, file_id: str = "file-none") -> str:
    made = client.batches.create(
        input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    return made.id


def stored(gateway: GatewayProcess) -> list[Path]:
    root = Path(gateway.environment["BACKHAUL_DATA_DIR"]) / "objects"
    return [path for path in root.rglob("*") if path.is_file()]


def test_what_was_written_is_read_at_once_and_after_a_kill(gateway: GatewayProcess) -> None:
    client = gateway.client()
    file = client.files.create(file=("in.jsonl", LINE), purpose="batch")
    assert client.files.retrieve(file.id) == file
    made = []
    for _ in range(45):
        made.append(create(client, file.id))
        assert client.batches.retrieve(made[-1]).status == "validating"
    gateway.end(signal.SIGKILL)
    gateway.start()
    client = gateway.client()
    assert [b.id for b in client.batches.list()] == made[::-1]
    assert client.files.content(file.id).content == LINE
    assert client.files.delete(file.id).deleted
    with pytest.raises(NotFoundError):
        client.files.retrieve(file.id)
    assert gateway.end() == 0


def test_a_read_model_that_was_lost_is_read_again(gateway: GatewayProcess) -> None:
    made = [create(gateway.client()) for _ in range(10)]
    assert gateway.end() == 0
    folder = Path(gateway.environment["BACKHAUL_DATA_DIR"]) / "gateway-0"
    (folder / "read-model.sqlite").write_bytes(b"damaged" * 1000)
    gateway.start()
    assert [b.id for b in gateway.client().batches.list()] == made[::-1]


def test_gateways_that_race_for_a_prompt_lose_no_version_when_one_is_killed(
    gateway: GatewayProcess,
) -> None:
    prompts = gateway.client()
    prompts.post("/prompts", body={"slug": "s", "messages": says("0")}, cast_to=object)
    second = replace(gateway, clients=[], process=None)
    acknowledged: dict[int, str] = {}

    def add(client: OpenAI, name: str) -> None:
        for number in range(60):
            text = f"{name} {number}"
            try:
                made: Any = client.post(
                    "/prompts/s/versions", body={"messages": says(text)}, cast_to=object
                )
            except APIConnectionError:
                return
            assert acknowledged.setdefault(made["version"], text) == text
            if name == "b" and number == 20:
                second.end(signal.SIGKILL)

    try:
        second.start(BACKHAUL_INSTANCE="1")
        with ThreadPoolExecutor() as pool:
            writers = [(prompts, "a"), (second.client(), "b"), (gateway.client(), "c")]
            list(pool.map(lambda writer: add(*writer), writers))
    finally:
        second.close()
    shown: Any = prompts.get("/prompts/s", cast_to=object)
    numbers = [version["version"] for version in shown["versions"]]
    assert numbers == list(range(1, len(numbers) + 1))
    # What was under way at the kill may be there, too.
    assert len(acknowledged) == 60 + 21 + 60 <= len(numbers) - 1 <= len(acknowledged) + 1
    gateway.end(signal.SIGKILL)
    gateway.start()
    client = gateway.client()
    for number, text in acknowledged.items():
        version: Any = client.get(f"/prompts/s/versions/{number}", cast_to=object)
        assert version["messages"] == says(text)


def says(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_a_controllers_snapshots_and_a_cancel_are_shown(gateway: GatewayProcess) -> None:
    client = gateway.client()
    batch_id = create(client)
    assert client.batches.cancel(batch_id).status == "cancelling"

    async def play_the_controller() -> None:
        producer, reader = (
            RecordProducer(gateway.settings),
            TopicReader(gateway.settings, [BATCH_COMMAND]),
        )
        await producer.start()
        await reader.start()
        try:
            commands = [r.record for r in await reader.poll(10.0)]
            (asked,) = [c for c in commands if isinstance(c, BatchCreate)]
            shown = from_create(asked)
            changes = {
                "revision": 1,
                "status": BatchStatus.CANCELLED,
                "cancelling_at_ms": asked.at_ms,
                "cancelled_at_ms": asked.at_ms + 1000,
            }
            snapshot = type(shown)(
                **{name: getattr(shown, name) for name in shown.__struct_fields__} | changes
            )
            await producer.send(BATCH_STATUS, batch_id, snapshot)
        finally:
            await reader.stop()
            await producer.stop()

    run(play_the_controller())
    eventually_sync(lambda: client.batches.retrieve(batch_id).status == "cancelled")


def test_keys_are_listed_and_revoked_while_the_gateway_runs(gateway: GatewayProcess) -> None:
    client = gateway.client()
    client.batches.list()

    async def revoke_all() -> None:
        producer = RecordProducer(gateway.settings)
        await producer.start()
        try:
            for key in await list_keys(TopicReader(gateway.settings, [ACCOUNT])):
                await revoke_key(producer, key)
        finally:
            await producer.stop()

    run(revoke_all())

    def refused() -> bool:
        try:
            client.batches.list()
        except APIStatusError as error:
            return error.code == "invalid_api_key"
        return False

    eventually_sync(refused)


def test_an_upload_of_200_mb_is_streamed_with_flat_memory(gateway: GatewayProcess) -> None:
    client = gateway.client()
    client.files.create(file=("warm.jsonl", LINE * 1000), purpose="batch")
    line = LINE[:-1] + b" " * (1023 - len(LINE) + 1) + b"\n"
    size = 200 * MIB
    data = io.BytesIO(line * (size // len(line)))
    before = gateway.memory()
    with peak_of(gateway) as peak:
        file = client.files.create(file=("large.jsonl", data), purpose="batch")
    assert file.bytes == size
    assert peak() - before < 50 * MIB
    with peak_of(gateway) as peak, client.files.with_streaming_response.content(file.id) as answer:
        assert sum(len(chunk) for chunk in answer.iter_bytes()) == size
    assert peak() - before < 50 * MIB


def test_one_byte_more_than_200_mb_is_refused_and_a_line_without_end_is_not_kept(
    gateway: GatewayProcess,
) -> None:
    client = gateway.client()
    before = gateway.memory()
    with peak_of(gateway) as peak:
        for data in (LINE + b"x" * (200 * MIB + 1 - len(LINE)), b"{" + b"x" * (200 * MIB)):
            with pytest.raises(APIStatusError) as caught:
                client.files.create(file=("large.jsonl", io.BytesIO(data)), purpose="batch")
            assert caught.value.status_code == 413
            assert caught.value.code == "file_too_large"
    assert peak() - before < 50 * MIB
    assert stored(gateway) == []
    assert create(client)


@contextmanager
def peak_of(gateway: GatewayProcess) -> Iterator[Callable[[], int]]:
    """Gives a function that says the most resident memory seen within the block."""
    seen, ended = [gateway.memory()], False

    def watch() -> None:
        while not ended:
            seen.append(gateway.memory())
            time.sleep(0.01)

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            yield lambda: max(seen)
        finally:
            ended = True
            watching.result()


def test_a_client_killed_in_mid_upload_leaves_nothing_in_the_folder(
    gateway: GatewayProcess,
) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        connection.sendall(
            b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n"
            + f"Authorization: Bearer {gateway.secret}\r\n".encode()
            + b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
            + b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            + LINE * 200_000
        )
        eventually_sync(lambda: stored(gateway) != [])
    eventually_sync(lambda: stored(gateway) == [])


def test_a_folder_without_room_is_said_and_the_process_stays_up(stopped: GatewayProcess) -> None:
    # A limit on the size of a file is what a full disk looks like to one process.
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20 * MIB, limit[1]))
    try:
        stopped.start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    client = stopped.client()
    with pytest.raises(APIStatusError) as caught:
        client.files.create(file=("a.jsonl", io.BytesIO(LINE * 2_000_000)), purpose="batch")
    assert (caught.value.status_code, caught.value.code) == (507, "storage_full")
    assert stored(stopped) == []
    client.files.create(file=("a.jsonl", LINE), purpose="batch")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"BACKHAUL_KAFKA": "127.0.0.1:1"}, 69),
        ({"BACKHAUL_TOPIC_PREFIX": "no-such-topics"}, 69),
        ({"BACKHAUL_STORE_URL": "/dev/null/folder"}, 69),
        ({"BACKHAUL_UPSTREAMS_FILE": "no-such-file.yaml"}, 78),
        ({"BACKHAUL_SESSION_TIMEOUT_S": "soon"}, 78),
    ],
    ids=["no broker", "no topics", "no store", "no upstream table", "a wrong setting"],
)
def test_what_is_missing_at_start_is_told_by_the_exit_code(
    stopped: GatewayProcess, change: dict[str, str], code: int
) -> None:
    process = spawn({**stopped.environment, "BACKHAUL_PORT": "0", **change})
    assert process.wait(60) == code


def test_requests_in_flight_are_answered_before_it_stops(gateway: GatewayProcess) -> None:
    async def upload_slowly() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        body = (
            b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            + LINE
            + b"\r\n--b--\r\n"
        )
        writer.write(
            b"POST /v1/files HTTP/1.1\r\nHost: x\r\n"
            + f"Content-Length: {len(body)}\r\n".encode()
            + f"Authorization: Bearer {gateway.secret}\r\n".encode()
            + b"Content-Type: multipart/form-data; boundary=b\r\n"
            + b"Expect: 100-continue\r\n\r\n"
        )
        assert b"100 Continue" in await reader.readuntil(b"\r\n\r\n")
        writer.write(body[:150])
        await writer.drain()
        assert gateway.process is not None
        gateway.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.5)
        writer.write(body[150:])
        status = await asyncio.wait_for(reader.readline(), 30)
        writer.close()
        return int(status.split()[1])

    assert run(upload_slowly()) == 200
    assert gateway.process is not None
    assert gateway.process.wait(30) == 0
