"""`backhaul demo`: a whole Backhaul with a simulated model server runs one sample batch."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from api.cli.client import Client
from api.cli.failure import Exit, Failure
from api.cli.fetch import fetch
from api.cli.up import (
    DataOption,
    KafkaOption,
    WorkersOption,
    copyable_commands,
    program,
    run,
)
from api.up.board import TerminalBoard
from api.up.options import UpOptions
from api.up.supervisor import Running

ENDED = ("completed", "failed", "expired", "cancelled")
_MODEL = "sim-chat"
_POLL_S = 0.2
#: Where there is no terminal a line of progress is printed this often.
_LINE_EVERY_S = 2.0
#: Slow enough to watch, with some requests refused for good and some that succeed later.
_SIMULATOR = (
    *("--latency", "lognormal:0.4,0.6", "--slots", "32", "--seed", "7"),
    *("--error", "400=0.04", "--error", "503=0.04"),
)
_TOPICS = ("the sea", "a bridge", "rain", "a lighthouse", "bread", "winter", "a clock", "moss")


def demo(
    data: DataOption = Path("backhaul-demo"),
    lines: Annotated[
        int, typer.Option(min=1, max=50_000, help="How many lines the sample has.")
    ] = 200,
    workers: WorkersOption = 1,
    kafka: KafkaOption = None,
) -> None:
    """See a batch complete: start everything, run a sample, show where the results are, stop."""
    console = Console(highlight=False)
    board = TerminalBoard(console)
    options = UpOptions(data_dir=data, port=0, workers=workers, kafka=kafka, simulator=_SIMULATOR)

    async def body(running: Running) -> int:
        board.finish()
        try:
            return await _Demo(console, running, data, lines).run()
        except Failure as failure:
            console.print(f"Error: {failure.message}", style="red", markup=False)
            return failure.exit_code

    with board:
        code = run(options, board, body)
    if code == Exit.INTERRUPTED:
        console.print("Stopped.")
    raise typer.Exit(code)


@dataclass(frozen=True, slots=True)
class _Results:
    """The files that came back; None where there was nothing to say."""

    output: Path | None
    error: Path | None

    @property
    def lines(self) -> int:
        """Lines in both."""
        return sum(_line_count(path) for path in (self.output, self.error) if path)


class _Demo:
    """The walk through upload, create, poll and download."""

    def __init__(self, console: Console, running: Running, folder: Path, lines: int) -> None:
        self._console = console
        self._running = running
        self._folder = folder
        self._lines = lines
        self._client = Client(running.base_url, running.api_key)

    async def run(self) -> int:
        """The exit code: 0 if every line came back."""
        self._console.print(f"\nBackhaul is ready at {self._running.base_url}", style="green")
        sample = self._folder / "sample.jsonl"
        await asyncio.to_thread(write_sample, sample, self._lines)
        file = await asyncio.to_thread(self._client.upload, sample)
        self._say(f"Uploaded {sample} ({self._lines} lines) as {file['id']}")
        batch = await asyncio.to_thread(self._create, file["id"])
        self._say(f"Created {batch['id']}")
        began = time.monotonic()
        batch = await self._watch(batch["id"])
        took_s = time.monotonic() - began
        results = await asyncio.to_thread(self._download, batch)
        self._show(batch, results, took_s)
        whole = batch["status"] == "completed" and results.lines == self._lines
        return Exit.OK if whole else Exit.BATCH

    def _create(self, file_id: str) -> dict[str, Any]:
        return self._client.create_batch(input_file_id=file_id, endpoint="/v1/chat/completions")

    async def _watch(self, batch_id: str) -> dict[str, Any]:
        meter = _Meter(self._console, self._lines)
        with meter:
            while True:
                batch = await asyncio.to_thread(self._client.get_batch, batch_id)
                meter.show(batch)
                if batch["status"] in ENDED:
                    return batch
                await asyncio.sleep(_POLL_S)

    def _download(self, batch: dict[str, Any]) -> _Results:
        return _Results(
            self._fetch(batch, "output_file_id", "output"),
            self._fetch(batch, "error_file_id", "error"),
        )

    def _fetch(self, batch: dict[str, Any], field: str, name: str) -> Path | None:
        if batch.get(field) is None:
            return None
        target = self._folder / "results" / f"{batch['id']}_{name}.jsonl"
        return fetch(self._client, batch[field], target, sleep=time.sleep).path

    def _show(self, batch: dict[str, Any], results: _Results, took_s: float) -> None:
        counts = batch["request_counts"]
        say = self._say
        say(
            f"\n{batch['status']}: {counts['completed']} completed, {counts['failed']} failed "
            f"of {counts['total']}, in {took_s:.1f} s"
        )
        for error in (batch.get("errors") or {}).get("data", []):
            say(f"  {error['code']}: {error['message']}")
        for what, path in (("output", results.output), ("errors", results.error)):
            if path is not None:
                say(f"  {what}  {path}  ({_line_count(path)} lines)")
        say("\nThis demo stops now. To go on with it:\n")
        say(f"{program('backhaul')} up --data {self._folder}")
        say("\nand then, in another terminal, any of")
        known = batch["id"] if self._running.durable else None
        for command in copyable_commands(self._running, known):
            say(f"\n{command}")
        say("")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


class _Meter:
    """Live progress: counts, lines a second, time left. Plain lines where there is no terminal."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]} failed"),
            TextColumn("{task.fields[rate]:.0f} lines/s"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("validating", total=total, failed=0, rate=0.0)
        self._began: float | None = None
        self._printed: tuple[str, float] = ("", 0.0)

    def __enter__(self) -> _Meter:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, batch: dict[str, Any]) -> None:
        """The batch as it is now."""
        counts = batch["request_counts"]
        done = counts["completed"] + counts["failed"]
        now = time.monotonic()
        if done and self._began is None:
            self._began = now
        rate = done / max(now - self._began, _POLL_S) if self._began is not None else 0.0
        self._progress.update(
            self._task,
            description=batch["status"],
            completed=done,
            failed=counts["failed"],
            rate=rate,
        )
        if not self._console.is_terminal:
            self._print(batch["status"], f"{done}/{self._progress.tasks[0].total:.0f}", rate, now)

    def _print(self, status: str, counts: str, rate: float, now: float) -> None:
        last_status, last_time = self._printed
        if status != last_status or now - last_time >= _LINE_EVERY_S:
            self._printed = (status, now)
            self._console.print(f"  {status}: {counts}, {rate:.0f} lines/s")


def write_sample(path: Path, count: int) -> None:
    """A batch input file with short questions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number in range(1, count + 1):
            file.write(json.dumps(_sample_line(number)) + "\n")


def _sample_line(number: int) -> dict[str, object]:
    question = f"In one sentence, number {number}: what is beautiful about {_topic(number)}?"
    return {
        "custom_id": f"request-{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": _MODEL,
            "user": f"sample-{number}",
            "messages": [{"role": "user", "content": question}],
        },
    }


def _topic(number: int) -> str:
    return _TOPICS[number % len(_TOPICS)]


def _line_count(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)
