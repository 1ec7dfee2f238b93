"""The command line of a role, as far as it gets without a broker."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from streams.__main__ import EXIT_USAGE, ROLES, main


@pytest.mark.parametrize("arguments", [[], ["nobody"], ["collector", "twice"]])
def test_a_wrong_command_line_says_which_roles_there_are(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == EXIT_USAGE
    said = capsys.readouterr().err
    assert all(role in said for role in ROLES)


def test_a_wrong_setting_is_named_as_its_variable() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "streams", "collector"],
        env=os.environ | {"BACKHAUL_SESSION_TIMEOUT_S": "0.1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == EXIT_USAGE
    assert done.stderr.startswith("BACKHAUL_SESSION_TIMEOUT_S: ")
    assert "Traceback" not in done.stderr
