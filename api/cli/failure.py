"""How a command ends: exit codes, and failures with a message and a remedy.

Failure                exit 1
├── Misuse             exit 2
├── ServerUnreachable  exit 3
├── NotAuthorised      exit 3
├── ServerRefused      exit 1   (carries the server's status, code and param)
├── TransferFailed     exit 1
├── Different          exit 1   (as `diff` ends; its other failures exit 2)
├── BatchEndedBadly    exit 4
├── BooksDiffer        exit 5
└── Interrupted        exit 130
"""

# ruff: noqa: N818 - each name is what went wrong

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of `backhaul`."""

    #: All went well.
    OK = 0
    #: The command failed; or, of `prompts diff`, the versions differ.
    FAILURE = 1
    #: The command line is wrong.
    USAGE = 2
    #: No server answers, or it doesn't accept the API key.
    NO_ACCESS = 3
    #: The batch failed, expired, was cancelled, or none of its lines succeeded.
    BATCH = 4
    #: `billing reconcile`: the books differ.
    BOOKS = 5
    #: Ctrl-C.
    INTERRUPTED = 130


#: For `backhaul --help`.
EXIT_CODES_HELP = (
    "Exit codes: 0 ok, 1 failure (of `prompts diff`: the versions differ), 2 wrong usage, "
    "3 server not reachable or API key not accepted, "
    "4 the batch ended badly (failed, expired, cancelled, or without one good line), "
    "5 the books differ (`billing reconcile`), 130 stopped by Ctrl-C."
)


class Failure(Exception):
    """A command can't do what it was asked. remedy: what the user may do about it."""

    exit_code = Exit.FAILURE

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class Misuse(Failure):
    """The command line, the environment or an input file is wrong."""

    exit_code = Exit.USAGE


class ServerUnreachable(Failure):
    """Nothing answers at the server's address, or something that is no Backhaul."""

    exit_code = Exit.NO_ACCESS


class NotAuthorised(Failure):
    """The server does not accept the API key, or there is none."""

    exit_code = Exit.NO_ACCESS


class ServerRefused(Failure):
    """The server answered with an error."""

    def __init__(
        self,
        message: str,
        remedy: str = "",
        *,
        status: int,
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message, remedy)
        self.status = status
        self.code = code
        self.param = param


class TransferFailed(Failure):
    """A file could not be sent or fetched whole."""


class Different(Failure):
    """What was compared differs; the differences were already shown."""


class BatchEndedBadly(Failure):
    """The batch ended, but not well; what is known about it was already shown."""

    exit_code = Exit.BATCH


class BooksDiffer(Failure):
    """What was counted in several places is not equal; the differences were already shown."""

    exit_code = Exit.BOOKS


class Interrupted(Failure):
    """Ctrl-C."""

    exit_code = Exit.INTERRUPTED
