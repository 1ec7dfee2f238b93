"""`backhaul topics` and `backhaul keys` on a real broker."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from typer.testing import CliRunner, Result

from api.cli.main import app
from streams.settings import Settings

pytestmark = pytest.mark.kafka


@pytest.fixture(autouse=True)
def environment(kafka_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BASE_URL", "API_KEY", "KAFKA"):
        monkeypatch.delenv(f"BACKHAUL_{name}", raising=False)
    monkeypatch.setenv("BACKHAUL_DATA_DIR", str(kafka_settings.data_dir))
    monkeypatch.setenv("COLUMNS", "80")
    shared = {
        "kafka": kafka_settings.kafka,
        "kafka_replicas": kafka_settings.kafka_replicas,
        "kafka_idempotence": kafka_settings.kafka_idempotence,
        "topic_prefix": kafka_settings.topic_prefix,
    }
    left_by_up = {"base_url": "http://127.0.0.1:1/v1", "api_key": "k", "settings": shared}
    (Path(kafka_settings.data_dir) / "endpoint.json").write_text(json.dumps(left_by_up))


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """The commands quieten logging for their process, which here is the tests'."""
    level = logging.getLogger("aiokafka").level
    yield
    logging.getLogger("aiokafka").setLevel(level)
    structlog.reset_defaults()


def backhaul(*args: str) -> Result:
    return CliRunner().invoke(app, list(args), prog_name="backhaul")


def test_topics_are_shown_missing_then_created_then_shown_well() -> None:
    missing = backhaul("topics", "show")
    assert missing.exit_code == 1
    assert "missing" in missing.stdout
    applied = backhaul("topics", "apply")
    assert applied.exit_code == 0, applied.output
    assert "created" in applied.stdout
    again = backhaul("topics", "apply", "--json")
    assert json.loads(again.stdout) == {"changes": []}
    shown = backhaul("topics", "show")
    assert shown.exit_code == 0, shown.output
    assert max(map(len, shown.stdout.splitlines())) <= 80


def test_a_key_is_made_listed_and_revoked() -> None:
    assert backhaul("topics", "apply").exit_code == 0
    made = backhaul("keys", "create", "acme", "--name", "of the tests")
    assert made.exit_code == 0, made.output
    secret = made.stdout.strip()
    assert secret.startswith("bh_")
    other = json.loads(backhaul("keys", "create", "other", "--json").stdout)
    listed = backhaul("keys", "list")
    assert "acme" in listed.stdout
    assert secret not in listed.stdout
    assert max(map(len, listed.stdout.splitlines())) <= 80
    assert backhaul("keys", "revoke", other["key_id"]).exit_code == 0
    states = [json.loads(line) for line in backhaul("keys", "list", "--json").stdout.splitlines()]
    assert {key["tenant"]: key["revoked_at"] is None for key in states} == {
        "acme": True,
        "other": False,
    }
    unknown = backhaul("keys", "revoke", "key_nope")
    assert unknown.exit_code == 1
    assert "keys list" in unknown.stderr
    assert backhaul("keys", "revoke", "key_").exit_code == 1, "two keys begin so"


def test_a_tenant_s_limits_are_set_listed_and_taken_away_one_by_one() -> None:
    assert backhaul("topics", "apply").exit_code == 0
    assert backhaul("keys", "create", "acme").exit_code == 0
    assert backhaul("tenants", "set", "big", "--max-enqueued-lines", "100000").exit_code == 0
    assert backhaul("tenants", "set", "big", "--max-enqueued-tokens", "5000").exit_code == 0
    listed = backhaul("tenants", "list").stdout.splitlines()
    assert [line.split() for line in listed[1:]] == [
        ["acme", "none", "none", "none", "1"],
        ["big", "100,000", "5,000", "none", "0"],
    ]
    assert max(map(len, listed)) <= 80
    assert backhaul("tenants", "set", "big", "--max-enqueued-lines", "none").exit_code == 0
    _, big = map(json.loads, backhaul("tenants", "list", "--json").stdout.splitlines())
    assert (big["max_enqueued_lines"], big["max_enqueued_tokens"]) == (None, 5000)


def test_budgets_are_set_for_a_tenant_and_a_key_and_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backhaul("topics", "apply").exit_code == 0
    key = json.loads(backhaul("keys", "create", "acme", "--json").stdout)["key_id"]
    refused = backhaul("tenants", "set", "acme", "--budget", "100")
    assert refused.exit_code == 1
    assert "BACKHAUL_PRICES_FILE" in refused.stderr
    prices = tmp_path / "prices.yaml"
    prices.write_text('currency: usd\ndefault: {input: "1", output: "2"}\n')
    monkeypatch.setenv("BACKHAUL_PRICES_FILE", str(prices))
    budget = ("--budget", "100", "--budget-period", "month")
    assert backhaul("tenants", "set", "acme", *budget).exit_code == 0
    assert backhaul("tenants", "set", "acme", "--max-enqueued-lines", "5").exit_code == 0
    assert "100.00/month" in backhaul("tenants", "list").stdout
    assert backhaul("keys", "set", key, "--budget", "0.000001").exit_code == 0
    listed = json.loads(backhaul("keys", "list", "--json").stdout)
    assert listed["budget"] == {"amount": "0.000001", "period": "total"}
    assert ", budget 0.000001" in backhaul("keys", "list").stdout
    monkeypatch.delenv("BACKHAUL_PRICES_FILE")
    assert backhaul("tenants", "set", "acme", "--budget", "none").exit_code == 0
    (acme,) = map(json.loads, backhaul("tenants", "list", "--json").stdout.splitlines())
    assert (acme["budget"], acme["max_enqueued_lines"]) == (None, 5)


@pytest.mark.parametrize(
    "args",
    [
        ("keys", "create", "a/b"),
        ("tenants", "set", "a/b", "--max-enqueued-lines", "5"),
        ("tenants", "set", "a"),
        ("tenants", "set", "a", "--max-enqueued-lines", "0"),
        ("tenants", "set", "a", "--max-enqueued-tokens", "many"),
        ("tenants", "set", "a", "--budget", "1.2345678"),
        ("tenants", "set", "a", "--budget", "1", "--budget-period", "year"),
        ("keys", "set", "key_1"),
    ],
)
def test_what_can_not_be_a_tenant_or_a_limit_exits_2(args: tuple[str, ...]) -> None:
    assert backhaul(*args).exit_code == 2


def test_no_broker_exits_3() -> None:
    result = backhaul("topics", "show", "--kafka", "127.0.0.1:1")
    assert result.exit_code == 3
    assert "BACKHAUL_KAFKA" in result.stderr
