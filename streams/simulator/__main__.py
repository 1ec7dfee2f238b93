"""`python -m streams.simulator`, and what `backhaul simulate` runs."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streams.simulator.conduct import Conduct, ConductError, Fault
from streams.simulator.server import Simulator, SimulatorOptions

_EPILOG = """\
Faults: {faults}

Which request is which is told by the request key: the body's "user", or its
"metadata": {{"key": ...}}. Errors, faults and latencies depend on nothing but
(seed, key, attempt). "metadata": {{"sim": "503*2,cut,ok"}} scripts the attempts
of one key: each step is a status (429:3 says Retry-After: 3), a fault or ok.

Usage: prompt tokens are the prompt's characters / 4; completion tokens are
LOW + characters % (HIGH - LOW + 1), at most what the request allows.

While it runs: GET /sim/requests, POST /sim/reset, GET and POST /sim/config.

Examples:
  simulate --port 9100 --latency lognormal:0.4,0.6 --slots 64
  simulate --error 503=0.05 --fault cut=0.02 --max-failures 2 --log served.jsonl
  simulate --engine --completion-tokens 100000 --model gpt-oss-120b
  simulate --model good --model bad --model-config 'bad={{"hang": true}}'
"""


def parser(prog: str) -> argparse.ArgumentParser:
    """The command line; every option of Conduct has one."""
    p = argparse.ArgumentParser(
        prog=prog,
        description="An OpenAI-style model server with latency, slots, errors and seeded faults.",
        epilog=_EPILOG.format(faults=textwrap.fill(", ".join(Fault), 70)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    server = p.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1")
    server.add_argument("--port", type=int, default=0, help="0 (the default) picks a free one")
    server.add_argument(
        "--model", action="append", default=[], metavar="NAME", help="serve only these; else any"
    )
    server.add_argument("--api-key", help="refuse calls without this bearer token")
    server.add_argument(
        "--log", type=Path, metavar="FILE", help="append a JSON line for each request served"
    )
    server.add_argument(
        "--bodies",
        type=Path,
        metavar="FILE",
        help="append every request's body as it came: number, key, attempt, path, body; "
        "this is callers' content",
    )
    server.add_argument(
        "--max-keys", type=int, default=200_000, help="request keys to keep counts of (%(default)s)"
    )
    server.add_argument("--json", action="store_true", help="print one JSON line when listening")
    _add_conduct(p)
    return p


def _add_conduct(p: argparse.ArgumentParser) -> None:
    d = Conduct()
    c = p.add_argument_group("conduct of all models")
    c.add_argument("--seed", type=int, default=0, help="of errors, faults and latencies (0)")
    c.add_argument(
        "--latency",
        metavar="SECONDS",
        help="to the first token: a number, uniform:LOW,HIGH, exp:MEAN or lognormal:MEDIAN,SIGMA",
    )
    c.add_argument("--token-time-s", type=float, metavar="S", help="for each later token (0)")
    c.add_argument("--slots", type=int, help="calls at once; 0 (the default) is any number")
    c.add_argument(
        "--queue", type=int, help=f"calls that may wait for a slot ({d.queue}), then 429"
    )
    c.add_argument(
        "--error", action="append", default=[], metavar="STATUS=SHARE", help="such as 503=0.05"
    )
    c.add_argument(
        "--fault", action="append", default=[], metavar="FAULT=SHARE", help="such as cut=0.02"
    )
    c.add_argument(
        "--max-failures", type=int, metavar="N", help="a key fails N times at most; 0: no limit"
    )
    c.add_argument("--rate-limit", type=float, metavar="RPS", help="beyond it 429; 0: no limit")
    c.add_argument("--burst", type=int, help=f"requests at once under the rate limit ({d.burst})")
    c.add_argument(
        "--retry-after-s", type=float, metavar="S", help=f"of 429, 503 ({d.retry_after_s:g})"
    )
    c.add_argument("--hang", action="store_true", default=None, help="never answer")
    c.add_argument(
        "--drip-s", type=float, metavar="S", help=f"length of a slow drip ({d.drip_s:g})"
    )
    c.add_argument("--huge-bytes", type=int, metavar="N", help=f"of a huge answer ({d.huge_bytes})")
    c.add_argument(
        "--completion-tokens", metavar="N|LOW-HIGH", help=f"of an answer ({d.completion_tokens})"
    )
    c.add_argument(
        "--engine",
        nargs="?",
        const="{}",
        metavar="JSON",
        help="a continuous-batching engine decides when tokens come (calibrated to gpt-oss-120b on "
        'one A100); with JSON another one: {"max_num_seqs": 64, "speed": 10, "priority": true}',
    )
    c.add_argument(
        "--model-config",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="one model's own options, with the names of POST /sim/config",
    )


def options_from(args: argparse.Namespace) -> SimulatorOptions:
    """The server's options. Raises ConductError with the option's name."""
    fields = vars(args)
    config: dict[str, Any] = {
        name: fields[name] for name in Conduct.__struct_fields__ if fields.get(name) is not None
    }
    config["seed"] = args.seed
    if args.engine is not None:
        config["engine"] = _engine(args.engine)
    config["errors"] = _shares("--error", args.error)
    config["faults"] = _shares("--fault", args.fault)
    config["models"] = dict(_model_config(text) for text in args.model_config)
    return SimulatorOptions(
        host=args.host,
        port=args.port,
        models=tuple(args.model),
        api_key=args.api_key,
        log=args.log,
        bodies=args.bodies,
        max_keys=args.max_keys,
        config=config,
    )


def _shares(option: str, texts: Sequence[str]) -> dict[str, float]:
    shares = {}
    for text in texts:
        name, _, share = text.partition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            raise ConductError(f"{option} {text!r} is not NAME=SHARE.") from None
    return shares


def _engine(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ConductError(f"--engine {text!r} is not JSON.") from None


def _model_config(text: str) -> tuple[str, Any]:
    name, _, options = text.partition("=")
    try:
        return name, json.loads(options)
    except ValueError:
        raise ConductError(f"--model-config {text!r} is not NAME=JSON.") from None


async def _serve(simulator: Simulator, *, as_json: bool) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with simulator:
        if as_json:
            line = {"base_url": simulator.base_url, "port": simulator.port, "pid": os.getpid()}
            text = json.dumps(line)
        else:
            text = f"Simulated model server at {simulator.base_url} (Ctrl-C stops it)"
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
        await stopped.wait()


def main(argv: Sequence[str] | None = None, prog: str = "python -m streams.simulator") -> int:
    """Runs the server until SIGTERM or Ctrl-C; the exit code."""
    arguments = parser(prog)
    args = arguments.parse_args(argv)
    try:
        simulator = Simulator(options_from(args))
    except (ConductError, OSError) as error:
        arguments.error(str(error))
    try:
        import uvloop  # noqa: PLC0415 - optional: not on every platform
    except ImportError:
        run = asyncio.run
    else:
        run = uvloop.run
    try:
        run(_serve(simulator, as_json=args.json))
    except OSError as error:
        sys.stderr.write(f"Can't listen on {args.host}:{args.port}: {error.strerror}.\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
