"""What `backhaul billing reconcile` prints, and how it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from msgspec.structs import replace
from pydantic import SecretStr
from typer.testing import CliRunner

from api.billing.reconcile.run import Report
from api.cli import reconcile as command
from api.cli.failure import Misuse
from api.cli.main import app
from schemas.records import BillingCommandKind
from streams.adapters.meter_file import FileMeterSink
from streams.adapters.meter_stripe import StripeMeterSink
from streams.settings import Settings
from tests.support.books import BooksWorld, used

_LINES = [("m", used(100 + n, 20 + n % 7, n % 50, n % 5)) for n in range(60)]


@pytest.fixture(autouse=True)
def _logs_go_where_they_went() -> Iterator[None]:
    yield
    structlog.reset_defaults()


async def _report(*, wrong_lines: int = 0, sink: bool = True) -> Report:
    world = BooksWorld()
    batch = await world.batch("batch_1", _LINES)
    await world.bill()
    usages = [usage for _, usage in _LINES]
    for number in range(wrong_lines):
        usages[number] = replace(usages[number], output_tokens=usages[number].output_tokens + 1)
    await world.write_output(batch, usages)
    return await world.reconcile(sink=sink)


def _run(report: Report, monkeypatch: pytest.MonkeyPatch, *options: str) -> tuple[int, str, str]:
    async def found(*_: object) -> Report:
        return report

    monkeypatch.setattr(command, "_reconcile", found)
    ran = CliRunner().invoke(app, ["billing", "reconcile", "--kafka", "localhost:1", *options])
    return ran.exit_code, ran.stdout, ran.stderr


def test_balanced_books_end_well(monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = _run(asyncio.run(_report()), monkeypatch)
    assert code == 0
    assert "Balanced: 1 batch," in err
    assert "DIFFERENT" not in out


def test_books_that_differ_have_an_exit_code_of_their_own_and_say_where(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, out, err = _run(asyncio.run(_report(wrong_lines=25)), monkeypatch)
    assert code == 5
    assert "DIFFERENT output_file_differs: batch_1 m output: " in out
    assert "usage_differs: line 20 of the input, line 20 of the output, batch_req_" in out
    assert "line 21 of the input" not in out
    assert "5 lines more" in err
    assert "secret-id" not in out + err


def test_json_is_one_object_a_line_with_every_line_that_differs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, out, _ = _run(asyncio.run(_report(wrong_lines=25)), monkeypatch, "--json")
    objects = [json.loads(line) for line in out.splitlines()]
    assert code == 5
    assert [o["object"] for o in objects].count("line") == 25
    assert objects[-1]["object"] == "summary"
    assert objects[-1]["balanced"] is False
    assert {o["cause"] for o in objects if o["object"] == "difference"} == {"output_file_differs"}


def test_what_was_taken_back_is_shown_with_who_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    async def adjusted() -> Report:
        world = BooksWorld()
        await world.batch("batch_1", [("m", used(10))])
        [send] = await world.bill()
        world.meter.order(send.identifier, BillingCommandKind.CANCEL)
        await world.bill()
        return await world.reconcile()

    report = asyncio.run(adjusted())
    code, out, _ = _run(report, monkeypatch)
    assert code == 0
    assert "ADJUSTED cancelled: batch_1:" in out
    assert "by ops at 20" in out
    assert "the customer asked for it" in out
    told = [json.loads(line) for line in _run(report, monkeypatch, "--json")[1].splitlines()]
    [shown] = [o for o in told if o["object"] == "adjustment"]
    assert (shown["tokens"], shown["state"], shown["by"]) == (10, "cancelled", "ops")


def test_many_batches_are_shown_as_sums_and_only_those_that_differ_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def several() -> Report:
        world = BooksWorld()
        for number in range(3):
            await world.batch(f"batch_{number}", [("m", used(10))])
        await world.bill()
        await world.store.delete("batches/batch_1/assembled/1")
        batch = await world.batch("batch_3", [("m", used(1000))])
        await world.write_output(batch, [used(1001)])
        return await world.reconcile()

    code, out, err = _run(asyncio.run(several()), monkeypatch)
    assert code == 5
    sums = out[out.index("ada, all batches, m") :].splitlines()[2].split()
    assert sums == ["input", "1,021", "1,030", "30", "1,000", "0", "0"]
    assert "ada, batch_3, m" in out
    assert "ada, batch_0, m" not in out
    assert "1 batch without an output file" in err
    assert "1,000 tokens are on their way." in err


def test_a_column_that_is_absent_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = _run(asyncio.run(_report(sink=False)), monkeypatch)
    assert code == 0
    assert "NOT COMPARED with what was billed" in err


def test_a_batch_that_is_unknown_or_a_day_beside_a_batch_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nothing = Report([], [])
    assert _run(nothing, monkeypatch, "--batch", "batch_x")[0] == 1
    assert _run(nothing, monkeypatch, "--batch", "batch_x", "--day", "2026-11-28")[0] == 2
    assert _run(nothing, monkeypatch, "--day", "yesterday")[0] == 2


async def test_what_is_billed_is_asked_where_the_settings_say_and_else_nowhere(
    tmp_path: Path,
) -> None:
    plain = Settings(data_dir=tmp_path)
    assert command._sink(plain) is None
    (tmp_path / "usage").mkdir()
    assert isinstance(command._sink(plain), FileMeterSink)
    sink = command._sink(Settings(data_dir=tmp_path, stripe_key=SecretStr("sk_test_1")))
    assert isinstance(sink, StripeMeterSink)
    await sink.close()


def test_a_folder_without_output_files_is_not_made_and_not_taken_for_one(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="no output files"):
        command._places(Settings(data_dir=tmp_path / "elsewhere"))
    assert not (tmp_path / "elsewhere").exists()
