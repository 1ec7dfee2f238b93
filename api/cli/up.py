"""`backhaul up`: everything on one machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys
from pathlib import Path
from typing import Annotated

import structlog
import typer
from pydantic import ValidationError
from rich.console import Console

from api.cli.failure import Failure, Misuse
from api.cli.terminal import out_json
from api.up.board import Board, QuietBoard, TerminalBoard
from api.up.broker import BrokerError
from api.up.lock import FolderInUseError
from api.up.options import UpError, UpOptions
from api.up.session import EXIT_INTERRUPTED, Body, run_on_top
from api.up.supervisor import Running
from streams.domain.upstreams import UpstreamTableError
from streams.kafka.errors import KafkaBaseError

#: What a person can do something about; anything else is a bug and shows its traceback.
EXPECTED = (FolderInUseError, UpError, BrokerError, KafkaBaseError, UpstreamTableError)

DataOption = Annotated[
    Path,
    typer.Option(
        "--data",
        envvar="BACKHAUL_DATA_DIR",
        file_okay=False,
        help="The folder for everything that is kept.",
    ),
]
KafkaOption = Annotated[
    str | None,
    typer.Option(
        envvar="BACKHAUL_KAFKA",
        metavar="HOST:PORT",
        help="An existing Kafka cluster. Without it one is started here.",
    ),
]
WorkersOption = Annotated[int, typer.Option(min=1, max=64, help="How many batch-workers run.")]


def up(
    data: DataOption = Path("backhaul-data"),
    upstream: Annotated[
        str | None,
        typer.Option(metavar="URL", help="An OpenAI-style server, such as http://127.0.0.1:8000."),
    ] = None,
    upstreams: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="An upstream table (YAML) of your own."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            envvar="BACKHAUL_PORT",
            min=0,
            max=65535,
            help="Where the gateway listens; 0: any free port. Without it: as last time, or 8080.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(envvar="BACKHAUL_HOST", help="The address the gateway listens on.")
    ] = "127.0.0.1",
    workers: WorkersOption = 1,
    kafka: KafkaOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON line when everything is ready.")
    ] = False,
) -> None:
    """Run Backhaul on this machine: a broker, every role and the gateway, until Ctrl-C.

    Without --upstream or --upstreams a simulated model server is started, too. A second run on
    the same folder goes on where the first one ended, also after a crash.
    """
    if upstream is not None and upstreams is not None:
        raise typer.BadParameter("Give --upstream or --upstreams, not both.")
    options = UpOptions(
        data_dir=data,
        host=host,
        port=port,
        workers=workers,
        kafka=kafka,
        upstream=upstream,
        upstreams=upstreams,
    )
    raise typer.Exit(_run_as_script(options) if as_json else _run_for_people(options))


def run(options: UpOptions, board: Board, body: Body) -> int:
    """`run_on_top` as a command. Raises Failure with what went wrong, in a sentence."""
    _hush_libraries()
    try:
        return asyncio.run(run_on_top(options, board, body))
    except EXPECTED as error:
        raise Failure(str(error)) from error
    except ValidationError as error:
        wrong = "; ".join(
            f"BACKHAUL_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors()
        )
        raise Misuse(f"The settings are wrong: {wrong}.") from None


def _hush_libraries() -> None:
    """What happens is said on the board and in the roles' logs; stdout is for results."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _run_as_script(options: UpOptions) -> int:
    async def announce(running: Running) -> int:
        out_json(running.as_dict())
        return await _forever()

    return _stopped_on_purpose(run(options, QuietBoard(), announce))


def _run_for_people(options: UpOptions) -> int:
    console = Console(highlight=False)
    board = TerminalBoard(console)

    async def greet(running: Running) -> int:
        board.finish()
        _print_welcome(console, running)
        return await _forever()

    with board:
        return _stopped_on_purpose(run(options, board, greet))


async def _forever() -> int:
    await asyncio.Event().wait()
    return 0


def _stopped_on_purpose(code: int) -> int:
    """Ctrl-C is how `up` ends, not a failure."""
    return 0 if code == EXIT_INTERRUPTED else code


def _print_welcome(console: Console, running: Running) -> None:
    console.print()
    console.print("Backhaul is ready.", style="bold green")
    for name, value in (
        ("base URL", running.base_url),
        ("API key", running.api_key),
        ("models", _where_models_are(running)),
        ("Kafka", f"{running.kafka} ({running.broker})"),
        ("data", running.data_dir),
    ):
        console.print(f"  {name:<9} {value}", markup=False, soft_wrap=True)
    console.print("\nTry it:", style="bold")
    for command in copyable_commands(running):
        console.print(f"\n{command}", markup=False, soft_wrap=True)
    console.print("\nCtrl-C stops it; the same command goes on with the same data.", style="dim")


def _where_models_are(running: Running) -> str:
    if running.upstream == "simulator":
        return "a simulated server (answers with made-up text); use --upstream URL for a real one"
    return running.upstream


def program(name: str) -> str:
    """How to call a program of this installation from the present folder, PATH or not."""
    beside = Path(sys.executable).with_name(name)
    if not beside.exists() or shutil.which(name) == str(beside):
        return name
    here = Path.cwd()
    return str(beside.relative_to(here) if beside.is_relative_to(here) else beside)


def copyable_commands(running: Running, batch_id: str | None = None) -> list[str]:
    """The same question three ways: curl, the openai SDK and `backhaul`."""
    url, key = running.base_url, running.api_key
    what = f"/{batch_id}" if batch_id else ""
    call = f'batches.retrieve("{batch_id}")' if batch_id else "batches.list()"
    python = f'from openai import OpenAI; print(OpenAI(base_url="{url}", api_key="{key}").{call})'
    return [
        f"curl -s {url}/batches{what} -H 'Authorization: Bearer {key}'",
        f"{program('python')} -c '{python}'",
        f"BACKHAUL_BASE_URL={url} BACKHAUL_API_KEY={key} "
        + f"{program('backhaul')} "
        + (f"get {batch_id}" if batch_id else "list"),
    ]
