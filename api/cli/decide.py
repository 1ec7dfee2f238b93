"""`backhaul billing adjust` and `release`: what operators decide about single amounts."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.failure import Failure, Misuse
from api.cli.kafka import KafkaData, KafkaServers, kafka_settings, run
from api.cli.options import AsJSON
from api.cli.terminal import out, out_json

if TYPE_CHECKING:
    from schemas.records import BillingCommandKind, BillingDecision, MeterSend
    from streams.settings import Settings

#: What is said of a decision that was not carried out: why, and what may be done instead.
_REFUSED = {
    "unknown_amount": (
        "The meter no longer has this amount: its batch is more than 100 days old.",
        "Correct it with a credit note or an invoice item at Stripe.",
    ),
    "unknown_command": ("The meter is older than this command.", "Upgrade it, then try again."),
    "not_confirmed": (
        "It is not billed, so there is nothing to take back.",
        "`backhaul billing status` shows what became of it.",
    ),
    "too_late": (
        "It was sent more than 24 hours ago, and Stripe takes nothing back after that.",
        "Correct it at Stripe: with a credit note if it is invoiced, else with an invoice item.",
    ),
    "not_waiting": (
        "It waits for no decision: it is on its way, billed, taken back or written off.",
        "`backhaul billing reconcile` shows where amounts are; `adjust` takes back what is billed.",
    ),
    "goes_on_by_itself": (
        "It is sent by itself when what it waits for is there: see `backhaul billing status`.",
        "Or write it off with --drop.",
    ),
    "not_unclear": (
        "Only an amount that is parked as sums_unclear can be said to have arrived.",
        "",
    ),
}

Identifier = Annotated[
    str, typer.Argument(help="The amount, as `billing status` and `reconcile` show it.")
]
Reason = Annotated[str, typer.Option(help="Why; it stands in the books.")]
By = Annotated[str | None, typer.Option(help="Who decides it. Else the name of your account.")]
Within = Annotated[
    float, typer.Option("--wait", min=1, max=600, help="Seconds to wait for the meter's answer.")
]


def adjust(
    identifier: Identifier,
    reason: Reason,
    by: By = None,
    wait_s: Within = 30.0,
    as_json: AsJSON = False,
    kafka: KafkaServers = None,
    data_dir: KafkaData = None,
) -> None:
    """Take an amount back that was sent within the last 24 hours."""
    from schemas.records import BillingCommandKind

    settings = kafka_settings(kafka, data_dir)
    _decide(settings, identifier, BillingCommandKind.CANCEL, reason, by, wait_s, as_json)


def release(
    identifier: Identifier,
    reason: Reason,
    drop: Annotated[bool, typer.Option("--drop", help="Write it off: it is never billed.")] = False,
    arrived: Annotated[
        bool, typer.Option("--arrived", help="It is at Stripe: it was looked up (sums_unclear).")
    ] = False,
    by: By = None,
    wait_s: Within = 30.0,
    as_json: AsJSON = False,
    kafka: KafkaServers = None,
    data_dir: KafkaData = None,
) -> None:
    """Send an amount that waits for a decision, or write it off."""
    from schemas.records import BillingCommandKind

    if drop and arrived:
        raise Misuse("Give --drop or --arrived, not both.")
    kind = BillingCommandKind.WRITE_OFF if drop else BillingCommandKind.SEND
    if arrived:
        kind = BillingCommandKind.ARRIVED
    settings = kafka_settings(kafka, data_dir)
    _decide(settings, identifier, kind, reason, by, wait_s, as_json)


def _decide(
    settings: Settings,
    identifier: str,
    kind: BillingCommandKind,
    reason: str,
    by: str | None,
    wait_s: float,
    as_json: bool,
) -> None:
    from api.billing.commands import InvalidDecision, NotAnswered, UnknownAmount

    try:
        made, send = run(_command(settings, identifier, kind, reason, by or _account(), wait_s))
    except InvalidDecision as error:
        raise Misuse(str(error)) from error
    except UnknownAmount as error:
        raise Failure(
            str(error), "`backhaul billing status` and `backhaul billing reconcile` show them."
        ) from error
    except NotAnswered as error:
        raise Failure(
            f"No meter has answered within {wait_s:g} s; the amount is {error.state}.",
            "The command stays in the log and is carried out when a meter runs and the sink "
            "answers: don't repeat it, look with `backhaul billing reconcile`.",
        ) from error
    if as_json:
        out_json(_shown(made, send))
    if made.refusal:
        said, remedy = _REFUSED.get(made.refusal, (f"Stripe refused it: {made.refusal}.", ""))
        raise Failure(said, remedy)
    if not as_json:
        out(_done(made, send))


async def _command(
    settings: Settings,
    identifier: str,
    kind: BillingCommandKind,
    reason: str,
    by: str,
    within_s: float,
) -> tuple[BillingDecision, MeterSend]:
    from api.billing.commands import command
    from streams.domain.clock import SystemClock
    from streams.kafka.producer import RecordProducer
    from streams.kafka.reader import TopicReader

    producer = RecordProducer(settings)
    await producer.start()
    try:
        return await command(
            identifier,
            kind,
            reason=reason,
            by=by,
            producer=producer,
            readers=lambda topics: TopicReader(settings, topics),
            clock=SystemClock(),
            within_s=within_s,
        )
    finally:
        await producer.stop()


def _done(made: BillingDecision, send: MeterSend) -> str:
    from schemas.records import BillingCommandKind

    words = {
        BillingCommandKind.CANCEL: "taken back",
        BillingCommandKind.SEND: "released, and sent as soon as it can be",
        BillingCommandKind.WRITE_OFF: "written off",
        BillingCommandKind.ARRIVED: "taken for billed",
    }
    return (
        f"{made.tokens:,} {send.token_type} tokens of {send.tenant}, {send.batch_id}: "
        f"{words[made.command.kind]}. By {made.command.by}: {made.command.reason}"
    )


def _shown(made: BillingDecision, send: MeterSend) -> dict[str, Any]:
    return {
        "command_id": made.command.command_id,
        "identifier": made.command.identifier,
        "kind": made.command.kind.value,
        "done": made.done,
        "refusal": made.refusal or None,
        "tenant": send.tenant,
        "batch_id": send.batch_id,
        "token_type": send.token_type,
        "tokens": made.tokens,
        "by": made.command.by,
        "reason": made.command.reason,
        "at": made.at_ms // 1000,
    }


def _account() -> str:
    """The name of who runs this, which a container may not have."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
