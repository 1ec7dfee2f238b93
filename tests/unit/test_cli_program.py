"""The commands that are printed to be copied work where they are printed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from api.cli.up import program


def test_a_program_that_is_not_on_the_path_is_named_by_where_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    named = program("backhaul")
    assert Path(named).is_absolute()
    command = [named, "--version"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert shown.stdout.startswith("backhaul ")


def test_inside_the_checkout_the_name_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    folder = Path(program("backhaul")).parent
    monkeypatch.chdir(folder.parent)
    assert program("backhaul") == f"{folder.name}/backhaul"


def test_a_program_on_the_path_is_named_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert program("backhaul") == "backhaul"
