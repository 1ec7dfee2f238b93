"""What the commands say of costs."""

from __future__ import annotations

import json
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


_ESTIMATE = {
    "endpoint": "/v1/chat/completions",
    "lines": 1200,
    "unreadable_lines": 3,
    "input_tokens": 90_000,
    "output_tokens": 256_000,
    "cost": {"24h": _COST},
    "models": [
        {
            "model": "m1",
            "lines": 700,
            "input_tokens": 1,
            "output_tokens": 2,
            "cost": {"24h": _COST},
        },
        {"model": None, "lines": 500, "input_tokens": 3, "output_tokens": 4, "cost": None},
    ],
    "assumptions": {"output_tokens_without_limit": 256, "lines_without_limit": 1000},
}


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    path = tmp_path / "requests.jsonl"
    path.write_text('{"url": "/v1/chat/completions"}\n')
    return path


def test_an_estimate_is_printed_and_no_batch_is_created(
    gateway: FakeGateway, requests: Path
) -> None:
    gateway.estimate = _ESTIMATE
    result = backhaul("submit", str(requests), "--estimate")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "estimate: 1,200 lines, about 90,000 tokens in and 256,000 out: "
        "1.250000 usd (2.500000 at list price)",
        "m1: 700 lines, about 1 tokens in and 2 out: 1.250000 usd (2.500000 at list price)",
        "unknown model: 500 lines, about 3 tokens in and 4 out: no price",
        "assumed: 256 output tokens for each of 1,000 lines without limit",
        "warning: 3 lines can't be read; validation will refuse them",
    ]
    assert "--input-file-id file-1 --endpoint /v1/chat/completions" in " ".join(
        result.stderr.split()
    )
    assert (gateway.created, len(gateway.uploads)) == ([], 1)


def test_an_estimate_of_a_file_uploaded_before_for_another_window(gateway: FakeGateway) -> None:
    gateway.estimate = _ESTIMATE
    options = ("--input-file-id", "file-7", "--endpoint", "/v1/embeddings", "--window", "1h")
    result = backhaul("submit", *options, "--estimate", "--json")
    assert json.loads(result.stdout) == {"input_file_id": "file-7", **_ESTIMATE}
    assert gateway.estimated == [{"endpoint": "/v1/embeddings", "completion_window": "1h"}]
    assert gateway.created == []


def test_there_is_nothing_to_wait_for_after_an_estimate(
    gateway: FakeGateway, requests: Path
) -> None:
    result = backhaul("submit", str(requests), "--estimate", "--wait")
    assert result.exit_code == 2
    assert "--wait" in result.stderr
    assert gateway.uploads == []
