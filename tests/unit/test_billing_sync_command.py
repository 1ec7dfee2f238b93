"""`backhaul billing sync`: what it shows, asks and ends with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from api.cli import billing_sync
from api.cli.main import app
from api.up.plan import shared_settings
from streams.adapters.billing_catalogue_fake import FakeBillingCatalogue
from streams.adapters.meter_fake import Fault
from streams.domain.billing.prices.catalogue import ProductThere
from streams.settings import Settings

_BOOK = """
currency: usd
models:
  m: {input: "0.15", output: "0.60"}
"""
_INPUT = "backhaul_batch_input_tokens_m_24h_1970-01-01"


@pytest.fixture
def catalogue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeBillingCatalogue:
    """What the command finds at Stripe; the price book is `_BOOK`."""
    book = tmp_path / "prices.yaml"
    book.write_text(_BOOK)
    monkeypatch.setenv("BACKHAUL_PRICES_FILE", str(book))
    monkeypatch.setenv("BACKHAUL_STRIPE_KEY", "sk_test_1")
    monkeypatch.chdir(tmp_path)
    made = FakeBillingCatalogue()
    monkeypatch.setattr(billing_sync, "_catalogue", lambda _: made)
    return made


def _sync(*options: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(app, ["billing", "sync", *options], input=answer)


def test_it_shows_the_plan_and_with_a_yes_changes_things_once(
    catalogue: FakeBillingCatalogue,
) -> None:
    first = _sync("--yes")
    assert first.exit_code == 0, first.output
    assert f"create   price    {_INPUT}: 0.075 usd per million tokens" in first.stdout
    assert "0 stay as they are, 18 change." in first.stdout
    assert "_realtime_input_tokens_m_1970-01-01: 0.15 usd per million tokens" in first.stdout
    assert "Stripe agrees with the price book." in first.stdout
    second = _sync()
    assert second.exit_code == 0
    assert second.stdout == "18 stay as they are, 0 change.\n"
    assert len(catalogue.done) == 18


def test_a_dry_run_changes_nothing_and_says_by_its_exit_code_whether_there_is_a_difference(
    catalogue: FakeBillingCatalogue,
) -> None:
    found = _sync("--dry-run")
    assert found.exit_code == 1
    assert "18 change." in found.stdout
    assert catalogue.done == []
    _sync("--yes")
    assert _sync("--dry-run", "--yes").exit_code == 0


def test_where_nobody_can_answer_nothing_is_changed_without_yes(
    catalogue: FakeBillingCatalogue,
) -> None:
    found = _sync()
    assert found.exit_code == 2
    assert "--yes" in found.stderr
    assert catalogue.done == []


@pytest.mark.parametrize(("answer", "done", "code"), [("y\n", 18, 0), ("n\n", 0, 1)])
def test_a_person_is_asked(
    catalogue: FakeBillingCatalogue,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    done: int,
    code: int,
) -> None:
    monkeypatch.setattr(billing_sync, "_somebody_answers", lambda: True)
    found = _sync(answer=answer)
    assert "Make these 18 changes at Stripe?" in found.stderr
    assert found.exit_code == code
    assert len(catalogue.done) == done


def test_what_only_a_person_can_mend_is_named_with_its_remedy_and_the_rest_is_done(
    catalogue: FakeBillingCatalogue,
) -> None:
    catalogue.products[_INPUT] = ProductThere(_INPUT, True, None)
    found = _sync("--yes")
    assert found.exit_code == 1
    assert f"differs  product  {_INPUT}" in found.stdout
    assert "metadata" in found.stderr
    assert len(catalogue.done) == 15


def test_json_has_the_plan_and_each_step_that_was_done(catalogue: FakeBillingCatalogue) -> None:
    plan, *done = map(json.loads, _sync("--yes", "--json").stdout.splitlines())
    assert plan["kept"] == 0
    assert plan["steps"][2] == {
        "action": "create",
        "object": "price",
        "meter": _INPUT,
        "id": None,
        "name": "m, input tokens, batch 24h",
        "currency": "usd",
        "unit_amount_decimal": "0.0000075",
    }
    assert [one["done"] for one in done] == plan["steps"]


def test_a_run_that_breaks_says_what_is_done_and_the_next_one_goes_on(
    catalogue: FakeBillingCatalogue,
) -> None:
    coming = iter([Fault.NONE] * 5 + [Fault.ANSWER_LOST])
    catalogue.fault = lambda: next(coming, Fault.NONE)
    broken = _sync("--yes")
    assert broken.exit_code == 1
    assert "Done before it: 4; left: 14." in " ".join(broken.stderr.split())
    assert "Run it again" in broken.stderr
    assert _sync("--yes").exit_code == 0
    assert len(catalogue.prices) == 6


def test_stripe_that_can_not_be_reached_is_told_apart(catalogue: FakeBillingCatalogue) -> None:
    catalogue.fault = lambda: Fault.TIMEOUT
    found = _sync("--yes")
    assert found.exit_code == 3
    assert "Nothing was changed" in found.stderr


def test_it_finds_the_price_book_and_the_windows_of_a_running_up(
    catalogue: FakeBillingCatalogue, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    running = Settings(prices_file=Path("prices.yaml"), completion_windows={"7d": 604_800})
    data = tmp_path / "data"
    data.mkdir()
    told = {"settings": shared_settings(running)}
    (data / "endpoint.json").write_text(json.dumps(told))
    monkeypatch.delenv("BACKHAUL_PRICES_FILE")
    monkeypatch.delenv("BACKHAUL_KAFKA", raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert _sync("--yes").exit_code == 2
    found = _sync("--yes", "--data", str(data))
    assert found.exit_code == 0, found.output
    assert "backhaul_batch_input_tokens_m_7d_1970-01-01" in found.stdout
    assert "_24h_" not in found.stdout


@pytest.mark.parametrize("name", ["BACKHAUL_PRICES_FILE", "BACKHAUL_STRIPE_KEY"])
def test_without_a_price_book_or_a_key_it_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    book = tmp_path / "prices.yaml"
    book.write_text(_BOOK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BACKHAUL_PRICES_FILE", str(book))
    monkeypatch.setenv("BACKHAUL_STRIPE_KEY", "sk_test_1")
    monkeypatch.delenv(name)
    found = _sync("--yes")
    assert found.exit_code == 2
    assert name in found.stderr
