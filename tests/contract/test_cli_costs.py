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


def _used(day: str, **fields: object) -> dict[str, object]:
    tokens = {"input_tokens": 1_234_567, "output_tokens": 89}
    return {"day": day, "model": None, "batches": 2, "usage": tokens, "cost": None, **fields}


def test_usage_is_a_table_of_all_pages(gateway: FakeGateway) -> None:
    cost = {**_COST, "status": "estimate"}
    gateway.usage = [
        {"data": [_used("2026-11-28", cost=cost)], "has_more": True, "next_page": "2026-11-28"},
        {"data": [_used("2026-11-27")], "has_more": False, "next_page": None},
    ]
    result = backhaul("usage", "--since", "2026-11-01", "--until", "2026-11-28")
    assert result.stdout.splitlines() == [
        "DAY         BATCHES       TOKENS IN             OUT  COST",
        "2026-11-28        2       1,234,567              89  1.250000 usd, so far",
        "2026-11-27        2       1,234,567              89  -",
    ]
    first = "/v1/usage?group_by=day&start_time=1793491200&end_time=1795910400"
    assert gateway.requests == [("GET", first), ("GET", f"{first}&after=2026-11-28")]


def test_usage_of_real_time_requests_is_a_report_of_its_own(gateway: FakeGateway) -> None:
    gateway.usage = [{"data": [_used("2026-11-28")], "has_more": False}]
    assert backhaul("usage", "--realtime").stdout.splitlines() == [
        "DAY              TOKENS IN             OUT  COST",
        "2026-11-28       1,234,567              89  -",
    ]
    assert gateway.requests == [("GET", "/v1/usage/realtime?group_by=day")]
    refused = backhaul("usage", "--realtime", "--by", "batch")
    assert (refused.exit_code, "day, model" in refused.stderr) == (2, True)


def test_usage_as_csv_is_what_the_server_sends(gateway: FakeGateway) -> None:
    result = backhaul("usage", "--by", "day", "--by", "model", "--csv")
    assert result.stdout.splitlines() == ["day,model", "2026-11-28,m1"]
    assert gateway.requests == [("GET", "/v1/usage?group_by=day%2Cmodel&format=csv")]


def test_usage_as_json_is_a_row_a_line(gateway: FakeGateway) -> None:
    gateway.usage = [{"data": [_used("2026-11-28"), _used("2026-11-27")], "has_more": False}]
    lines = backhaul("usage", "--json").stdout.splitlines()
    assert [json.loads(line)["day"] for line in lines] == ["2026-11-28", "2026-11-27"]


def test_no_usage_is_said(gateway: FakeGateway) -> None:
    gateway.usage = [{"data": [], "has_more": False}]
    assert "No usage" in backhaul("usage").stderr


def test_usage_by_key_shows_each_keys_id_and_name(gateway: FakeGateway) -> None:
    key_id = f"key_{'0' * 32}"
    named = _used("", api_key_id=key_id, api_key_name="nightly\x1b")
    gateway.usage = [{"data": [named, _used("", api_key_id=None)], "has_more": False}]
    result = backhaul("usage", "--by", "key")
    assert "group_by=key" in str(gateway.requests[-1])
    lines = result.stdout.splitlines()
    assert lines[0].startswith("KEY ")
    assert lines[1].startswith(f"{key_id} nightly")
    assert "\x1b" not in result.stdout
    assert lines[2].startswith("none ")


@pytest.mark.parametrize("option", [("--by", "colour"), ("--since", "yesterday")])
def test_a_report_of_what_there_is_not_is_wrong_usage(
    gateway: FakeGateway, option: tuple[str, str]
) -> None:
    assert backhaul("usage", *option).exit_code == 2
    assert gateway.requests == []
