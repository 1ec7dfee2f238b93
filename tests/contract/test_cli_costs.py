"""What the commands say of costs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from api.cli.main import app
from tests.support.fake_gateway import API_KEY, FakeGateway, a_batch, running_gateway

_COST = {"list": "2.500000", "discount": "1.250000", "billed": "1.250000", "currency": "usd"}


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeGateway]:
    with running_gateway() as fake:
        monkeypatch.setenv("BACKHAUL_BASE_URL", fake.base_url)
        monkeypatch.setenv("BACKHAUL_API_KEY", API_KEY)
        monkeypatch.setenv("BACKHAUL_DATA_DIR", str(tmp_path / "data"))
        yield fake


def backhaul(*args: str) -> Result:
    return CliRunner().invoke(app, list(args), prog_name="backhaul")


def test_get_says_what_a_running_batch_has_cost_so_far(gateway: FakeGateway) -> None:
    gateway.add_batch(a_batch("batch_1", cost={**_COST, "status": "estimate"}))
    shown = backhaul("get", "batch_1").stdout
    assert "cost:        1.250000 usd (2.500000 at list price), so far\n" in shown


def test_watch_ends_with_the_cost(gateway: FakeGateway) -> None:
    gateway.add_batch(
        a_batch("batch_1", "completed", counts=(1, 1, 0), cost={**_COST, "status": "confirmed"})
    )
    assert "cost: 1.250000 usd (2.500000 at list price)\n" in backhaul("watch", "batch_1").stdout


def test_a_server_that_prices_nothing_says_nothing_of_costs(gateway: FakeGateway) -> None:
    gateway.add_batch(a_batch("batch_1", "completed", counts=(1, 1, 0), cost=None))
    assert "cost" not in backhaul("get", "batch_1").stdout
