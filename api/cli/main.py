"""The command `backhaul`. A command's module is imported when that command is asked for."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from api.cli.failure import EXIT_CODES_HELP, Exit, Failure, Interrupted
from api.cli.terminal import console, out, printable


@dataclass(frozen=True, slots=True)
class Place:
    """Where a command is: `module:name` of a plain function, or of a typer.Typer with commands.

    help: its line in `backhaul --help`, which so needs none of the modules.
    raw: it reads its arguments itself.
    """

    where: str
    help: str
    raw: bool = False


COMMANDS = {
    "up": Place("api.cli.up:up", "Run Backhaul on this machine, until Ctrl-C."),
    "demo": Place("api.cli.demo:demo", "Start everything, run a sample batch, and stop."),
    "submit": Place("api.cli.submit:submit", "Upload a file and create a batch on it."),
    "watch": Place("api.cli.watch:watch", "Show a batch's progress until it has ended."),
    "list": Place("api.cli.batches:list_batches", "List batches, newest first."),
    "get": Place("api.cli.batches:get", "Show one batch."),
    "pause": Place("api.cli.control:pause", "Let a batch release no new line."),
    "resume": Place("api.cli.control:resume", "Go on with a paused batch."),
    "change": Place("api.cli.control:change", "Change a batch's priority or its deadline."),
    "retry": Place("api.cli.retry:retry", "Run a batch's failed lines again, as a new batch."),
    "cancel": Place("api.cli.batches:cancel", "Cancel a batch."),
    "download": Place("api.cli.download:download", "Download a batch's output and error file."),
    "usage": Place("api.cli.usage:usage", "What your batches have used and cost."),
    "prompts": Place("api.cli.prompts:app", "Stored prompts: make, change, show, publish."),
    "webhooks": Place("api.cli.webhooks:app", "Webhooks: make, change, test, replay."),
    "keys": Place("api.cli.keys:app", "API keys of tenants: create, list, revoke."),
    "tenants": Place("api.cli.tenants:app", "What tenants may have enqueued: set, list."),
    "billing": Place("api.cli.billing:app", "Billing: customers, what was billed, what waits."),
    "topics": Place("api.cli.topics:app", "Kafka topics: create them, show drift."),
    "simulate": Place("api.cli.simulate:simulate", "Run a simulated model server.", raw=True),
}


class Commands(TyperGroup):
    """The commands, imported on demand; turns a Failure into a message and its exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in with the command's name and help, for lists of commands."""
        place = COMMANDS.get(cmd_name)
        return None if place is None else TyperCommand(cmd_name, help=place.help)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command itself, for running and for completion."""
        name, stand_in, rest = super().resolve_command(ctx, args)
        return name, stand_in and load(str(name)), rest

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except Failure as failure:
            raise typer.Exit(_tell(failure)) from failure
        except KeyboardInterrupt:
            raise typer.Exit(_tell(Interrupted("Stopped."))) from None


def load(name: str) -> Any:
    """Imports a command of the table."""
    place = COMMANDS[name]
    module, _, attribute = place.where.partition(":")
    found = getattr(import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        # --help included: such a command shows its own.
        raw = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
        only = typer.Typer(add_completion=False)
        only.command(name, context_settings=raw if place.raw else None)(found)
        found = only
    command = typer.main.get_command(found)
    command.name = name
    return command


def _tell(failure: Failure) -> Exit:
    """Says on stderr what went wrong and what may be done; the exit code."""
    to = console(stderr=True)
    if failure.message:
        stopped = failure.exit_code is Exit.INTERRUPTED
        # A server's words may be in it.
        said = printable(failure.message, lines=True)
        text = said if stopped else f"Error: {said}"
        to.print(text, style="" if stopped else "red", markup=False, soft_wrap=True)
    if failure.remedy:
        to.print(printable(failure.remedy, lines=True), markup=False, soft_wrap=True)
    return failure.exit_code


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        out(f"backhaul {version('backhaul')}")
        raise typer.Exit


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    epilog=EXIT_CODES_HELP,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


@app.callback()
def backhaul(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """A self-hosted, OpenAI-compatible Batch API on Kafka.

    `backhaul demo` shows it at work, `backhaul up` runs it, `backhaul submit FILE --wait` uses it.
    """


def main() -> None:
    """The entry point of the command `backhaul`."""
    try:
        app(prog_name="backhaul")
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)
