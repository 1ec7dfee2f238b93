"""What `backhaul up` shows while it works: on a terminal, in a log, or not at all."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text


class State(StrEnum):
    """How far a process is."""

    STARTING = "starting"
    READY = "ready"
    DIED = "died"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Board(Protocol):
    """Where the supervisor reports to."""

    def show(self, process: str, state: State, note: str = "") -> None:
        """A process's state changed."""

    def say(self, text: str) -> None:
        """Something that a person should know."""


class QuietBoard:
    """For scripts: says only what they can't do without, on stderr."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)

    def show(self, process: str, state: State, note: str = "") -> None:
        """Says nothing but deaths."""
        if state is State.DIED:
            self._console.print(f"{process} died: {note}", markup=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """On stderr."""
        self._console.print(text, markup=False, soft_wrap=True)


_STYLES = {State.READY: "green", State.DIED: "red", State.STOPPED: "dim"}


class TerminalBoard:
    """For people: a table that fills while everything starts, then lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rows: dict[str, tuple[State, str, float]] = {}
        self._since: dict[str, float] = {}
        self._live: Live | None = None

    def __enter__(self) -> TerminalBoard:
        """Begins the table; where there is no terminal there are lines only."""
        if self._console.is_terminal:
            self._live = Live(
                console=self._console, refresh_per_second=8, get_renderable=self._table
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def finish(self) -> None:
        """Ends the table; what comes later are lines."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(self, process: str, state: State, note: str = "") -> None:
        """A row of the table, or a line where it is worth one."""
        now = time.monotonic()
        began = self._since.setdefault(process, now)
        if state is State.STARTING:
            self._since[process] = began = now
        self._rows[process] = (state, note, now - began)
        if self._live is None and state in (State.READY, State.DIED):
            self._console.print(_line(process, state, note), soft_wrap=True)

    def say(self, text: str) -> None:
        """A line, above the table."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for process, (state, note, seconds) in self._rows.items():
            done = state is not State.STARTING
            mark = Text("✓" if state is State.READY else "✗") if done else Spinner("dots")
            if isinstance(mark, Text):
                mark.stylize(_STYLES.get(state, ""))
            took = f"{seconds:.1f} s" if done else ""
            table.add_row(mark, process, Text(note, "dim"), Text(took, "dim"))
        return table


def _line(process: str, state: State, note: str) -> Text:
    return Text.assemble((f"{process} ", "bold"), (str(state), _STYLES.get(state, "")), f" {note}")
