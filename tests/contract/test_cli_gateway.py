"""The CLI against the real gateway on fakes: what the fake gateway of its other tests promises."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from typer.testing import CliRunner, Result

from api.cli.main import app
from schemas.records import BatchStatus
from tests.support.gateway import GatewayUnderTest
from tests.support.waiting import eventually

LINE = b'{"custom_id":"1","method":"POST","url":"/v1/chat/completions","body":{"model":"m1"}}\n'


@pytest.fixture(autouse=True)
def _quiet_gateway() -> Iterator[None]:
    """What the gateway logs in this process must not look like the command's output."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture(autouse=True)
def environment(gateway: GatewayUnderTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BACKHAUL_BASE_URL", gateway.url)
    monkeypatch.setenv("BACKHAUL_API_KEY", gateway.keys["acme"])
    monkeypatch.setenv("BACKHAUL_DATA_DIR", str(tmp_path))


async def backhaul(*args: str) -> Result:
    """The command in a thread, since the gateway runs in this one."""
    return await asyncio.to_thread(CliRunner().invoke, app, list(args), prog_name="backhaul")


async def submitted(tmp_path: Path, *args: str) -> str:
    path = tmp_path / 'in "1" ☃.jsonl'
    path.write_bytes(LINE)
    result = await backhaul("submit", str(path), *args)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


async def test_submit_get_and_list(gateway: GatewayUnderTest, tmp_path: Path) -> None:
    batch_id = await submitted(tmp_path, "--metadata", "team=red", "--idempotency-key", "k1")
    shown = json.loads((await backhaul("get", batch_id, "--json")).stdout)
    assert shown["metadata"] == {"team": "red"}
    file = await gateway.client().files.retrieve(shown["input_file_id"])
    assert file.filename == 'in "1" ☃.jsonl'
    content = await gateway.client().files.content(file.id)
    assert content.content == LINE
    again = await backhaul(
        *("submit", "--input-file-id", file.id, "--endpoint", "/v1/chat/completions"),
        *("--metadata", "team=red", "--idempotency-key", "k1"),
    )
    assert again.stdout.strip() == batch_id
    for _ in range(4):
        await gateway.create()
    listed = (await backhaul("list", "--json", "--all")).stdout.splitlines()
    assert len(listed) == 5
    assert batch_id in {json.loads(line)["id"] for line in listed}
    assert len((await backhaul("list", "--json", "-n", "2")).stdout.splitlines()) == 2


async def test_watch_follows_a_batch_to_its_end_and_download_fetches_it(
    gateway: GatewayUnderTest, tmp_path: Path
) -> None:
    batch_id = await submitted(tmp_path)
    watching = asyncio.create_task(backhaul("watch", batch_id, "--json", "--interval", "0.05"))
    now_ms = time.time_ns() // 1_000_000
    await gateway.show(
        batch_id,
        status=BatchStatus.IN_PROGRESS,
        in_progress_at_ms=now_ms,
        total=2,
        completed=1,
    )
    await asyncio.sleep(0)
    output = bytes(range(256)) * 2000
    output_id = await gateway.upload(LINE + output)
    await gateway.show(
        batch_id,
        status=BatchStatus.COMPLETED,
        completed_at_ms=now_ms,
        completed=2,
        output_file_id=output_id,
    )
    result = await watching
    assert result.exit_code == 0
    assert json.loads(result.stdout.splitlines()[-1])["request_counts"]["completed"] == 2
    target = tmp_path / f"{batch_id}_output.jsonl"
    target.with_name(f"{target.name}.{output_id}.part").write_bytes((LINE + output)[:1000])
    fetched = await backhaul("download", batch_id, "--dir", str(tmp_path))
    assert fetched.exit_code == 0, fetched.output
    assert "1.0 KB of it from an earlier run" in fetched.stderr
    assert target.read_bytes() == LINE + output


async def test_cancel(gateway: GatewayUnderTest, tmp_path: Path) -> None:
    batch_id = await submitted(tmp_path)
    waiting = asyncio.create_task(backhaul("cancel", batch_id, "--wait", "--interval", "0.05"))

    async def cancelling() -> bool:
        return (await gateway.client().batches.retrieve(batch_id)).status == "cancelling"

    await eventually(cancelling)
    await gateway.show(
        batch_id, status=BatchStatus.CANCELLED, cancelled_at_ms=time.time_ns() // 1_000_000
    )
    result = await waiting
    assert result.exit_code == 4
    assert f"{batch_id} cancelled" in result.stdout


async def test_refusals_come_in_the_servers_words(tmp_path: Path) -> None:
    unknown = await backhaul("get", "batch_none")
    assert unknown.exit_code == 1
    assert "No batch found with id 'batch_none'." in unknown.stderr
    path = tmp_path / "in.jsonl"
    path.write_bytes(LINE)
    endpoint = await backhaul("submit", str(path), "--endpoint", "/v1/nope")
    assert endpoint.exit_code == 1
    assert "Invalid endpoint" in endpoint.stderr
    assert "--input-file-id" in endpoint.stderr
    window = await backhaul("submit", str(path), "--window", "1h")
    assert window.exit_code == 1
    key = await backhaul("list", "--api-key", "bh_wrong")
    assert key.exit_code == 3


async def test_a_large_upload_with_a_wrong_key_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    path.write_bytes(LINE * 300_000)
    result = await backhaul("submit", str(path), "--api-key", "bh_wrong")
    assert result.exit_code == 3
    assert "does not accept this API key" in result.stderr
