"""The three ways to show a batch's progress: a live bar, plain lines, and JSON lines."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from api.cli.follow import Watcher
from api.cli.http import Json
from api.cli.pace import Pace
from api.cli.terminal import console, is_live, note, out_json
from api.cli.view import BatchView, duration, forecast_text, hold_text, priority_text, queue_text

if TYPE_CHECKING:
    from rich.progress import Progress

#: Between two plain lines where only the counts changed.
_LINE_EVERY_S = 5.0


def watcher_for(*, as_json: bool) -> Watcher:
    """The way that suits where the output goes."""
    if as_json:
        return JSONWatcher()
    return LiveWatcher() if is_live() else LineWatcher()


def pace_text(view: BatchView, pace: Pace, now: float) -> str:
    """`512 lines/s, 0:07 left`; empty while the lines don't run.

    The server's forecast, which knows what else runs, goes before what the pace alone says.
    """
    if view.hold:
        return hold_text(view)
    if view.state != "in_progress":
        return ""
    rate = pace.lines_per_s()
    words = []
    if rate is not None:
        words.append(f"{rate:,.0f} lines/s" if rate >= 10 else f"{rate:.1f} lines/s")
    left = pace.seconds_left(view.total - view.done)
    own = "" if rate is None or left is None else f"{duration(left)} left"
    words += [forecast_text(view, now) or own, queue_text(view)]
    return ", ".join(word for word in words if word)


class JSONWatcher:
    """Each change as the server's Batch object, a line each, on stdout."""

    def __init__(self) -> None:
        self._last: Json | None = None

    def show(self, view: BatchView, pace: Pace, batch: Json) -> None:
        """Prints the batch if it changed."""
        if batch != self._last:
            self._last = batch
            out_json(batch)

    def trouble(self, message: str) -> None:
        """Says it on stderr."""
        note(message)

    def close(self) -> None:
        """Nothing to end."""


class LineWatcher:
    """Plain lines on stderr, for logs and pipes: at a change of state, and now and then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._state: tuple[object, ...] = ()
        self._done = -1
        self._said_at = 0.0
        self._trouble = False

    def show(self, view: BatchView, pace: Pace, batch: Json) -> None:
        """Prints a line if there is something new to say."""
        now = self._clock()
        counted = view.done != self._done and now - self._said_at >= _LINE_EVERY_S
        state = (
            view.state,
            view.priority,
            view.expires_at,
            view.at_risk,
            view.queued,
            bool(view.hold),
        )
        if state == self._state and not counted and not self._trouble:
            return
        self._state, self._done, self._said_at, self._trouble = state, view.done, now, False
        words = [time.strftime("%H:%M:%S"), f"{view.state:<11}"]
        if view.total:
            words.append(f"{view.done:,}/{view.total:,} {100 * view.done // view.total}%")
        if view.failed:
            words.append(f"{view.failed:,} failed")
        if view.priority:
            words.append(priority_text(view))
        words.append(pace_text(view, pace, time.time()))
        note("  ".join(words).rstrip())

    def trouble(self, message: str) -> None:
        """Says it once."""
        if not self._trouble:
            self._trouble = True
            note(f"{message} Trying again ...")

    def close(self) -> None:
        """Nothing to end."""


class LiveWatcher:
    """A bar on the terminal."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def show(self, view: BatchView, pace: Pace, batch: Json) -> None:
        """Moves the bar; the last one stays."""
        if self._progress is None:
            self._progress = _bar()
            self._progress.add_task("batch", total=None, failed="", pace="")
            self._progress.start()
        self._update(view.state, view, pace_text(view, pace, time.time()) or priority_text(view))
        if view.ended:
            self.close()

    def _update(self, status: str, view: BatchView, pace: str) -> None:
        assert self._progress is not None  # noqa: S101 - show() made it
        self._progress.update(
            self._progress.task_ids[0],
            description=status,
            total=view.total or None,
            completed=view.done,
            failed=f"{view.failed:,} failed" if view.failed else "",
            pace=pace,
        )

    def trouble(self, message: str) -> None:
        """Shows it in place of the pace."""
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], pace="no answer, trying again")

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _bar() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", justify="left"),
        BarColumn(bar_width=14),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]}", style="red"),
        TextColumn("{task.fields[pace]}", style="dim"),
        console=console(stderr=True),
    )
