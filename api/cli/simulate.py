"""`backhaul simulate`: the simulated model server, with its own options."""

from __future__ import annotations

import typer


def simulate(ctx: typer.Context) -> None:
    """Run a simulated OpenAI-style model server, to try things out and to test against.

    `backhaul simulate --help` shows its own options.
    """
    from streams.simulator.__main__ import main

    raise typer.Exit(main(ctx.args, prog="backhaul simulate"))
