"""Options of `backhaul submit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from api.cli.failure import Misuse

_PANEL = "A batch from a stored prompt, instead of FILE"

File = Annotated[Path | None, typer.Argument(metavar="[FILE]", help="A JSONL file of requests.")]
Wait = Annotated[bool, typer.Option("--wait", help="Watch the batch to its end.")]
Estimate = Annotated[
    bool,
    typer.Option("--estimate", help="Only say what it would cost: upload, but create no batch."),
]
BatchEndpoint = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        help="Default: the `url` of the file's first line; with --prompt /v1/chat/completions.",
    ),
]
Window = Annotated[
    str, typer.Option("--window", help="Time that the batch may take, as the server allows.")
]
Priority = Annotated[
    int | None,
    typer.Option(
        "--priority",
        metavar="N",
        help="-100 to 100, 0 by default: of your batches, higher ones go first.",
        min=-100,
        max=100,
    ),
]
Metadata = Annotated[
    list[str] | None,
    typer.Option("--metadata", metavar="KEY=VALUE", help="A note on the batch; repeatable."),
]
IdempotencyKey = Annotated[
    str | None,
    typer.Option(
        "--idempotency-key", help="With the same input file id: the same batch, not another."
    ),
]
InputFileID = Annotated[
    str | None,
    typer.Option("--input-file-id", help="Use a file that was uploaded before, not FILE."),
]
PromptSlug = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        metavar="SLUG",
        help="Make the lines: each names this prompt, with one row of --variables.",
        rich_help_panel=_PANEL,
    ),
]
Variables = Annotated[
    str | None,
    typer.Option(
        "--variables",
        metavar="ROWS",
        help="A file with a row a line: .jsonl, .json (an array) or .csv; - is stdin.",
        rich_help_panel=_PANEL,
    ),
]
RowsFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="jsonl, json or csv. Default: by the ending of ROWS.",
        rich_help_panel=_PANEL,
    ),
]
IDColumn = Annotated[
    str | None,
    typer.Option(
        "--id-column",
        metavar="NAME",
        help="The rows' ids, which become custom_ids. Default: row-000001 and so on.",
        rich_help_panel=_PANEL,
    ),
]
KeepID = Annotated[
    bool,
    typer.Option("--keep-id", help="The id is a variable, too.", rich_help_panel=_PANEL),
]
PromptVersion = Annotated[
    int | None,
    typer.Option(
        "--prompt-version",
        metavar="N",
        help="Default: the version published when the batch is validated.",
        min=1,
        rich_help_panel=_PANEL,
    ),
]
Model = Annotated[
    str | None,
    typer.Option("--model", help="Default: the prompt's model.", rich_help_panel=_PANEL),
]
Save = Annotated[
    Path | None,
    typer.Option("--save", metavar="FILE", help="Keep the file of lines.", rich_help_panel=_PANEL),
]


def metadata_of(pairs: list[str]) -> dict[str, str]:
    """The notes in `KEY=VALUE` options. Raises Misuse."""
    notes = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise Misuse(f"--metadata {pair!r} is not KEY=VALUE.")
        notes[name] = value
    return notes
