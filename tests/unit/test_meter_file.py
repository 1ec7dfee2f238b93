"""The file sink after crashes: whole lines, each identifier once."""

from __future__ import annotations

from pathlib import Path

import pytest

from streams.adapters.meter_file import FileMeterSink, read_entries
from streams.ports.meter_sink import MeterEvent, SinkUnavailable

_AT_MS = 1_700_000_000_000


def _event(number: int) -> MeterEvent:
    return MeterEvent(
        identifier=f"id-{number}",
        event_name="backhaul_batch_input_tokens",
        customer="acme",
        tokens=number,
        at_ms=_AT_MS,
    )


def _file(folder: Path) -> Path:
    return folder / "2023-11-14" / "acme.jsonl"


async def test_a_new_process_knows_what_the_one_before_has_written(tmp_path: Path) -> None:
    await FileMeterSink(tmp_path).send(_event(1))
    await FileMeterSink(tmp_path).send(_event(1))
    assert [entry.identifier for entry in read_entries(_file(tmp_path))] == ["id-1"]


async def test_a_process_sees_what_another_has_written_since(tmp_path: Path) -> None:
    here, there = FileMeterSink(tmp_path), FileMeterSink(tmp_path)
    await here.send(_event(1))
    await there.send(_event(2))
    await here.send(_event(2))
    assert [entry.identifier for entry in read_entries(_file(tmp_path))] == ["id-1", "id-2"]


@pytest.mark.parametrize("left", [1, 20, -1])
async def test_half_a_line_is_removed_and_written_whole(tmp_path: Path, left: int) -> None:
    sink = FileMeterSink(tmp_path)
    await sink.send(_event(1))
    whole = _file(tmp_path).read_bytes()
    _file(tmp_path).write_bytes(whole + whole[:left])
    await FileMeterSink(tmp_path).send(_event(2))
    await sink.send(_event(2))
    assert [entry.identifier for entry in read_entries(_file(tmp_path))] == ["id-1", "id-2"]


async def test_a_disk_that_fails_is_tried_again_later(tmp_path: Path) -> None:
    folder = tmp_path / "usage"
    folder.write_text("no folder")
    sink = FileMeterSink(folder)
    with pytest.raises(SinkUnavailable, match="disk"):
        await sink.send(_event(1))
    folder.unlink()
    await sink.send(_event(1))
    assert [entry.tokens for entry in read_entries(_file(folder))] == [1]
