"""`backhaul up`: one line when ready, nothing left when stopped, and everything there again."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from openai import OpenAI

from tests.support.batches import chat_line, submit, wait_for_end
from tests.support.stack import BACKHAUL, Stack, running, start_stack
from tests.support.waiting import eventually_sync

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]

_ROLES = (
    *("controller", "collector", "file-worker", "batch-worker", "realtime-worker", "meter"),
    *("webhook-worker", "bridge", "gateway"),
)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything of its own: broker, simulator, two workers. The tests share it, in order."""
    stack = start_stack(tmp_path_factory.mktemp("up") / "data", "--workers", "2")
    with running(stack):
        yield stack


def _client(stack: Stack) -> OpenAI:
    return OpenAI(base_url=stack.base_url, api_key=stack.api_key, max_retries=20)


def _all_pids(stack: Stack) -> list[int]:
    return [pid for pids in stack.info["pids"].values() for pid in pids]


def _gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_the_line_of_json_says_all_that_a_script_needs(up: Stack) -> None:
    assert up.info["base_url"].endswith("/v1")
    assert up.info["kafka"].startswith("127.0.0.1:")
    assert up.info["data_dir"] == str(up.data_dir)
    for role in _ROLES:
        assert up.info["pids"][role] == up.pids(role)
    assert len(up.info["pids"]["batch-worker"]) == 2
    assert len(up.info["pids"]["simulator"]) == 1


def test_the_secret_is_readable_by_its_owner_only(up: Stack) -> None:
    path = up.data_dir / "api-key"
    assert path.read_text().strip() == up.api_key
    assert path.stat().st_mode & 0o077 == 0


def test_a_second_up_on_the_folder_is_refused_with_the_first_ones_pid(up: Stack) -> None:
    second = subprocess.run(
        [BACKHAUL, "up", "--json", "--data", str(up.data_dir)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 1
    assert second.stdout == ""
    assert f"pid {up.process.pid}" in second.stderr


@pytest.mark.parametrize("role", _ROLES)
def test_a_role_that_is_killed_is_replaced_and_batches_run_on(up: Stack, role: str) -> None:
    old = up.kill(role)
    eventually_sync(lambda: up.pids(role) and old not in up.pids(role), within_s=30)
    with _client(up) as client:
        batch = submit(client, [chat_line(f"after-{role}-{n}", model="sim-chat") for n in range(5)])
        assert wait_for_end(client, batch.id, within_s=60).status == "completed"


def test_after_kill_9_of_the_supervisor_the_same_command_goes_on(up: Stack) -> None:
    with _client(up) as client:
        before = submit(client, [chat_line(f"kept-{n}", model="sim-chat") for n in range(20)])
        ended = wait_for_end(client, before.id, within_s=60)
        assert ended.output_file_id is not None
        output = client.files.content(ended.output_file_id).read()
    children, info = _all_pids(up), dict(up.info)
    up.process.kill()
    up.process.wait(timeout=60)
    eventually_sync(lambda: all(map(_gone, children)), within_s=10, what="children end, too")
    up.kill_supervisor_and_restart()
    for same in ("base_url", "api_key", "kafka"):
        assert up.info[same] == info[same]
    with _client(up) as client:
        assert client.batches.retrieve(before.id).status == "completed"
        assert client.files.content(ended.output_file_id).read() == output
        after = submit(client, [chat_line(f"more-{n}", model="sim-chat") for n in range(5)])
        assert wait_for_end(client, after.id, within_s=60).status == "completed"


def test_a_batch_that_ran_when_everything_was_killed_is_finished_by_the_next_up(up: Stack) -> None:
    with _client(up) as client:
        batch = submit(client, [chat_line(f"cut-{n}", model="sim-chat") for n in range(2000)])
    up.kill_supervisor_and_restart()
    with _client(up) as client:
        ended = wait_for_end(client, batch.id, within_s=120)
        assert ended.status == "completed"
        assert ended.request_counts is not None
        assert ended.request_counts.completed == 2000


def test_ctrl_c_stops_everything_with_exit_code_0(up: Stack) -> None:
    children = [p for role in (*_ROLES, "broker") for p in up.pids(role)]
    assert up.stop() == 0
    assert all(map(_gone, children))


def test_what_cannot_start_is_told_in_a_sentence_on_stderr(tmp_path: Path) -> None:
    failed = subprocess.run(
        [BACKHAUL, "up", "--json", "--data", str(tmp_path), "--kafka", "127.0.0.1:1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert "127.0.0.1:1" in failed.stderr
    assert "Traceback" not in failed.stderr
