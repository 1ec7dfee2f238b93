"""Runs something on top of a whole Backhaul, and stops everything whatever happens to it.

The first Ctrl-C or SIGTERM stops in order; a second one ends everything at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable

from api.up.board import Board
from api.up.lock import FolderLock
from api.up.options import UpOptions
from api.up.supervisor import Running, Supervisor

#: What a shell shows for a process that Ctrl-C ended.
EXIT_INTERRUPTED = 130

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Body = Callable[[Running], Awaitable[int]]


class _Signals:
    """Turns the first stop signal into a cancellation, the second into the end."""

    def __init__(self, task: asyncio.Task[int], supervisor: Supervisor, board: Board) -> None:
        self._task = task
        self._supervisor = supervisor
        self._board = board
        self.seen = 0

    def __call__(self) -> None:
        self.seen += 1
        if self.seen == 1:
            self._board.say("Stopping. (Once more to end everything at once.)")
            self._task.cancel()
            return
        self._board.say("Stopping at once.")
        self._supervisor.kill()
        os._exit(EXIT_INTERRUPTED)


async def run_on_top(options: UpOptions, board: Board, body: Body) -> int:
    """Starts everything, awaits `body`, stops everything; body's exit code, 130 if interrupted.

    Raises FolderInUseError, UpError, BrokerError, KafkaBaseError, UpstreamTableError, and what
    `body` raises.
    """
    with FolderLock(options.data_dir):
        supervisor = Supervisor(options, board)
        task = asyncio.create_task(_watched(supervisor, body))
        signals = _Signals(task, supervisor, board)
        loop = asyncio.get_running_loop()
        for number in _STOPS:
            loop.add_signal_handler(number, signals)
        try:
            return await task
        except asyncio.CancelledError:
            if not signals.seen:
                raise
            return EXIT_INTERRUPTED
        finally:
            await supervisor.stop()
            for number in _STOPS:
                loop.remove_signal_handler(number)


async def _watched(supervisor: Supervisor, body: Body) -> int:
    """`body` on a started Backhaul; ends with its result or with the supervisor's failure."""
    running = await supervisor.start()
    work = asyncio.ensure_future(body(running))
    watch = asyncio.create_task(supervisor.watch())
    try:
        await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
        if watch.done() and not work.done():
            watch.result()
        return await work
    finally:
        for one in (work, watch):
            one.cancel()
        await asyncio.gather(work, watch, return_exceptions=True)
