"""Runs a command that must not outlive the process that wanted it: `leash.py PARENT_PID COMMAND…`.

The command replaces this process, so its pid is the one that the parent sees. On Linux the
kernel kills it when the parent dies, also by kill -9, and the setting survives the exec. Where
the kernel has no such thing, a small guard process looks at both every half second.

It runs as a script with `python -I -S`: an exec of its own rather than `preexec_fn`, which is not
safe in a process with threads, and nothing imported that would cost a start-up.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1
_GUARD_PERIOD_S = 0.5
#: What a shell answers for a command that can't be run.
_EXIT_CANNOT_RUN = 127


def _die_with_parent() -> bool:
    """Asks the kernel to kill us with our parent; False where it can't."""
    if not sys.platform.startswith("linux") or os.environ.get("BACKHAUL_LEASH") == "guard":
        return False
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return bool(prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0)


def _guard(parent: int, child: int) -> None:
    """Kills `child` once `parent` is gone; ends when `child`, its own parent, ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.getppid() == child:
        try:
            os.kill(parent, 0)
        except ProcessLookupError:
            os.kill(child, signal.SIGKILL)
            return
        time.sleep(_GUARD_PERIOD_S)


def main(arguments: list[str]) -> int:
    """Puts the leash on and becomes the command."""
    parent, command = int(arguments[0]), arguments[1:]
    if not _die_with_parent():
        me = os.getpid()
        if os.fork() == 0:
            _guard(parent, me)
            return 0
    if os.getppid() != parent:  # it died before the leash was on
        return _EXIT_CANNOT_RUN
    try:
        os.execvp(command[0], command)  # noqa: S606 - that is what it is for
    except OSError as error:
        sys.stderr.write(f"Cannot run {command[0]}: {error.strerror}.\n")
        return _EXIT_CANNOT_RUN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
