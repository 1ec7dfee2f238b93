"""How `backhaul up` decides: restarts, ports, environments, upstreams, the lock's words."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from api.up.backoff import HEALTHY_AFTER_S, LONGEST_DELAY_S, RestartPolicy
from api.up.broker import (
    ABILITIES,
    BrokerKind,
    BrokerState,
    claim_port,
    free_port,
    new_cluster_id,
    ports_to_try,
)
from api.up.ladder import LADDER, rungs
from api.up.lock import FolderInUseError, FolderLock
from api.up.options import DEFAULT_PORT, Memory, UpError, UpOptions, write_private
from api.up.plan import (
    ROLES,
    STOP_ORDER,
    Surroundings,
    common_env,
    own_settings,
    role_process,
    shared_settings,
)
from api.up.process import LogFile
from api.up.upstreams import choose, normal_base_url, write_table
from streams.domain.upstreams import parse_upstreams


def _surroundings(**changes: object) -> Surroundings:
    around = Surroundings(
        inherited={"PATH": "/bin", "HOME": "/home/me"},
        kafka="127.0.0.1:1",
        own_broker=True,
        abilities=ABILITIES[BrokerKind.JVM],
        replicas=1,
        data_dir=Path("/data"),
        upstreams_file=Path("/data/upstreams.yaml"),
        installation="abc123",
        host="127.0.0.1",
        port=8080,
    )
    return replace(around, **changes)  # type: ignore[arg-type]


# Restarts


def test_a_single_death_is_followed_by_a_restart_at_once() -> None:
    policy = RestartPolicy()
    policy.became_ready(0)
    assert policy.died(1) == 0


def test_deaths_in_a_row_are_followed_by_ever_longer_waits() -> None:
    policy = RestartPolicy()
    delays = [policy.died(now) for now in range(12)]
    assert delays == sorted(delays)
    assert delays[1] > 0
    assert delays[-1] == LONGEST_DELAY_S


def test_a_process_that_was_healthy_for_a_while_starts_with_a_clean_slate() -> None:
    policy = RestartPolicy()
    for now in range(5):
        policy.died(now)
    policy.became_ready(10)
    assert policy.died(10 + HEALTHY_AFTER_S) == 0
    assert not policy.worth_showing


def test_a_process_that_dies_soon_after_it_was_ready_is_still_ill() -> None:
    policy = RestartPolicy()
    for now in range(5):
        policy.died(now)
    policy.became_ready(10)
    assert policy.died(11) > 0
    assert policy.worth_showing


@given(st.lists(st.booleans(), max_size=200))
def test_no_wait_is_ever_longer_than_the_longest(ready: list[bool]) -> None:
    policy = RestartPolicy()
    for now, became_ready in enumerate(ready):
        if became_ready:
            policy.became_ready(now)
        assert 0 <= policy.died(now) <= LONGEST_DELAY_S


# Environments


def test_a_role_gets_its_settings_by_environment_and_keeps_what_was_inherited() -> None:
    process = role_process(_surroundings(), "batch-worker", 2, 4567)
    assert process.env["HOME"] == "/home/me"
    assert process.env["BACKHAUL_KAFKA"] == "127.0.0.1:1"
    assert process.env["BACKHAUL_KAFKA_REPLICAS"] == "1"
    assert process.env["BACKHAUL_INSTANCE"] == "abc123-2"
    assert process.env["BACKHAUL_HEALTH_PORT"] == "4567"
    assert process.env["BACKHAUL_UPSTREAMS_FILE"] == "/data/upstreams.yaml"
    assert process.ready_url == "http://127.0.0.1:4567/ready"
    assert process.command[-2:] == ("streams", "batch-worker")
    assert process.name == "batch-worker-2"


def test_the_gateway_is_run_as_the_package_api() -> None:
    assert role_process(_surroundings(), "gateway", 0, 1).command[-2:] == ("-m", "api")


def test_instance_names_differ_between_installations_and_processes_of_a_role() -> None:
    names = {
        role_process(_surroundings(installation=one), "collector", index, 1).env[
            "BACKHAUL_INSTANCE"
        ]
        for one in ("a", "b")
        for index in (0, 1)
    }
    assert len(names) == 4


def test_a_cluster_of_somebody_elses_keeps_its_security_and_ours_has_none() -> None:
    inherited = {"BACKHAUL_KAFKA_SECURITY": "SASL_SSL", "BACKHAUL_KAFKA_USERNAME": "me"}
    theirs = common_env(_surroundings(inherited=inherited, own_broker=False))
    ours = common_env(_surroundings(inherited=inherited))
    assert theirs["BACKHAUL_KAFKA_SECURITY"] == "SASL_SSL"
    assert not set(inherited) & set(ours)


def test_a_broker_that_lacks_idempotence_is_told_to_every_process() -> None:
    abilities = ABILITIES[BrokerKind.TANSU]
    env = common_env(_surroundings(abilities=abilities))
    assert env["BACKHAUL_KAFKA_IDEMPOTENCE"] == "false"
    assert float(env["BACKHAUL_SESSION_TIMEOUT_S"]) == abilities.session_timeout_s
    assert "BACKHAUL_KAFKA_IDEMPOTENCE" not in common_env(_surroundings())


def test_what_other_commands_are_told_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKHAUL_KAFKA_PASSWORD", "hunter2")
    told = shared_settings(own_settings(_surroundings()))
    assert told["kafka"] == "127.0.0.1:1"
    assert told["kafka_replicas"] == 1
    assert "hunter2" not in repr(told)


def test_every_role_has_its_place_in_the_order_of_stopping() -> None:
    assert set(ROLES) < set(STOP_ORDER)
    assert STOP_ORDER[0] == "gateway"


# Ports


def test_our_ports_are_not_among_those_of_outgoing_connections() -> None:
    assert all(free_port() < 32_768 for _ in range(20))


def test_processes_that_start_beside_each_other_do_not_choose_the_same_port() -> None:
    tried = [set(islice(ports_to_try(pid), 32)) for pid in range(4711, 4811)]
    assert len(set.union(*tried)) == sum(map(len, tried))


def test_a_free_port_is_not_given_to_two_programs_before_its_server_has_started() -> None:
    ours = free_port()
    ask = f"from api.up import broker; print(broker._mark({ours}), broker._mark({ours} + 1))"
    other = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert other.stdout.split() == ["False", "True"]


async def test_a_remembered_port_is_used_again(tmp_path: Path) -> None:
    memory = Memory.load(tmp_path)
    port = await memory.port_for("controller.health")
    memory.save(tmp_path)
    assert await Memory.load(tmp_path).port_for("controller.health") == port
    assert Memory.load(tmp_path).name == memory.name


async def test_a_remembered_port_that_another_program_took_is_replaced() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        assert await claim_port(taken, within_s=0.1) != taken


def test_a_named_gateway_port_that_is_taken_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(UpError, match=f"Port {taken} .* --port"):
            Memory.load(tmp_path).gateway_port(UpOptions(data_dir=tmp_path, port=taken))


def test_port_0_means_the_port_of_last_time_so_that_clients_find_it_again(tmp_path: Path) -> None:
    memory = Memory.load(tmp_path)
    port = memory.gateway_port(UpOptions(data_dir=tmp_path, port=0))
    assert port != DEFAULT_PORT
    assert memory.gateway_port(UpOptions(data_dir=tmp_path, port=0)) == port
    assert memory.gateway_port(UpOptions(data_dir=tmp_path)) == port


def test_a_damaged_memory_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "up.json").write_text("{")
    with pytest.raises(UpError, match=r"up\.json can't be read"):
        Memory.load(tmp_path)


# Files


def test_private_files_can_be_read_by_their_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "api-key"
    write_private(path, b"secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["api-key"]


def test_a_second_holder_of_a_folder_is_told_the_first_ones_pid(tmp_path: Path) -> None:
    with FolderLock(tmp_path), pytest.raises(FolderInUseError, match=f"pid {os.getpid()}"):
        FolderLock(tmp_path).__enter__()
    with FolderLock(tmp_path):
        pass


def test_a_log_is_moved_aside_when_it_is_long_and_the_writer_goes_on(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "role.log", limit_bytes=10)
    descriptor = log.open()
    os.write(descriptor, b"0123456789\n")
    assert log.rotate()
    os.write(descriptor, b"next\n")
    os.close(descriptor)
    assert log.path.read_bytes() == b"next\n"
    assert (tmp_path / "role.log.1").read_bytes() == b"0123456789\n"
    assert not log.rotate()


def test_the_last_lines_of_a_log_are_there_for_people(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "role.log")
    assert log.last_lines(3) == []
    log.path.write_text("one\n\ntwo\nthree\n")
    assert log.last_lines(2) == ["two", "three"]


# Brokers


def test_a_folder_with_durable_data_goes_on_with_the_broker_that_has_them(tmp_path: Path) -> None:
    assert rungs(tmp_path) == LADDER
    BrokerState(kind="tansu").save(tmp_path / "kafka" / "broker.json")
    assert rungs(tmp_path) == LADDER
    BrokerState(kind="jvm").save(tmp_path / "kafka" / "broker.json")
    assert rungs(tmp_path) == (BrokerKind.JVM,)


# Upstreams


@pytest.mark.parametrize(
    ("given_url", "base_url"),
    [
        ("http://h:8000", "http://h:8000/v1"),
        ("http://h:8000/", "http://h:8000/v1"),
        ("https://h/v1/", "https://h/v1"),
        ("https://h/openai/v3", "https://h/openai/v3"),
    ],
)
def test_an_upstream_url_without_a_path_gets_v1(given_url: str, base_url: str) -> None:
    assert normal_base_url(given_url) == base_url


@pytest.mark.parametrize("text", ["", "h:8000", "ftp://h", "http://"])
def test_what_is_no_http_url_is_refused_by_name(text: str) -> None:
    with pytest.raises(UpError, match="--upstream"):
        normal_base_url(text)


def test_the_written_table_is_one_that_the_roles_accept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKHAUL_UPSTREAM_KEY", "sk-secret")
    path = tmp_path / "upstreams.yaml"
    write_table(path, "upstream", "http://h/v1", ["a", "b"])
    table = parse_upstreams(yaml.safe_load(path.read_text()))
    assert table.named_models() == ("a", "b")
    assert table.upstreams["upstream"].api_key_env == "BACKHAUL_UPSTREAM_KEY"
    assert "sk-secret" not in path.read_text()


async def test_without_an_upstream_the_one_of_last_time_is_used(tmp_path: Path) -> None:
    memory = Memory(name="x", upstream="url:http://h:1/v1")
    write_table(tmp_path / "upstreams.yaml", "mine", "http://h:1/v1", ["edited"])
    choice = await choose(UpOptions(data_dir=tmp_path), memory, tmp_path)
    assert choice.label == "http://h:1/v1"
    assert "edited" in choice.file.read_text()


async def test_without_any_upstream_it_is_the_simulator_at_a_port_that_stays(
    tmp_path: Path,
) -> None:
    memory = Memory(name="x")
    first = await choose(UpOptions(data_dir=tmp_path), memory, tmp_path)
    second = await choose(UpOptions(data_dir=tmp_path), memory, tmp_path)
    assert first.simulator_port == second.simulator_port
    assert parse_upstreams(yaml.safe_load(first.file.read_text())).serves("anything")


def test_no_cluster_id_looks_like_an_option() -> None:
    """One random UUID in 64 begins with a dash in base64, and kafka-storage refused it."""
    names = {new_cluster_id() for _ in range(2_000)}
    assert len(names) == 2_000
    assert not [name for name in names if name.startswith("-")]
