"""The intake task: streams a batch's input file through domain.intake and stores the plan.

Before the first line that may name a stored prompt, it waits until it knows at least those that
the gateway knew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog
import uuid_utils

from schemas.errors import ValidationCode
from schemas.records import BatchError, BatchRejected, BatchValidated, IntakeTask, ObjectRef
from streams.domain import keys
from streams.domain.intake.intake import Accepted, Intake, Refused, Rules, too_large
from streams.domain.intake.lines import ENDPOINTS
from streams.domain.intake.prompts import Resolve, may_name_one
from streams.file_worker.patience import Patience
from streams.kafka.failpoint import reach
from streams.ports.object_store import ObjectNotFoundError, ObjectStore, ObjectStoreError

log = structlog.get_logger(__name__)

#: A store that fails for longer fails the batch: its caller waits, and may create it again.
STORE_BUDGET_S = 180.0
#: What is read and checked between two turns of the event loop: about 3 ms of work.
_CHUNK_BYTES = 1 << 20
#: As long as what may_name_one() looks for, or longer.
_WORD_BYTES = 16


#: Whether the price book lets a batch use the model: model, endpoint, Unix milliseconds.
Priced = Callable[[str, str, int], bool]


def _nothing_is_priced(_model: str, _endpoint: str, _at_ms: int) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of an input file: lines, and bytes of a line and of the file."""

    max_lines: int
    max_line_bytes: int
    max_file_bytes: int


class Prompts(Protocol):
    """The stored prompts of all tenants."""

    async def read_all(self, batch_id: str) -> None:
        """Returns once everything is known that their topic holds at the time of asking."""
        ...

    def of(self, tenant: str) -> Resolve:
        """Looks up one tenant's."""
        ...


class IntakeRunner:
    """Runs intake tasks. Never raises because of a file or a store; both become BatchRejected."""

    def __init__(
        self,
        store: ObjectStore,
        serves: Callable[[str], bool],
        limits: Limits,
        patience: Patience,
        prompts: Prompts,
        priced: Priced = _nothing_is_priced,
    ) -> None:
        self._store = store
        self._prompts = prompts
        self._priced = priced
        self._serves = serves
        self._limits = limits
        self._patience = patience

    async def run(self, task: IntakeTask) -> BatchValidated | BatchRejected:
        """The event that answers the task."""
        try:
            verdict = await self._check(task)
            if isinstance(verdict, Refused):
                return self._rejected(task, *verdict.errors)
            return await self._validated(task, verdict)
        except ObjectNotFoundError:
            return self._rejected(task, _not_found(task))
        except ObjectStoreError as error:
            log.error(
                "Gave up validating: the object store keeps failing.",
                action="intake_gave_up",
                batch_id=task.batch_id,
                error=str(error),
            )
            return self._rejected(task, internal_error())

    async def _check(self, task: IntakeTask) -> Accepted | Refused:
        if task.endpoint not in ENDPOINTS:
            message = "This endpoint is not supported by the Batch API."
            return _refused(ValidationCode.INVALID_REQUEST, message, "endpoint")
        if task.input.size_bytes > self._limits.max_file_bytes:
            message = too_large(self._limits.max_file_bytes)
            return _refused(ValidationCode.FILE_TOO_LARGE, message)
        rules = Rules(
            task.endpoint,
            self._serves,
            self._prompts.of(task.tenant),
            self._limits.max_lines,
            self._limits.max_line_bytes,
            self._limits.max_file_bytes,
            lambda model: self._priced(model, task.endpoint, task.at_ms),
        )
        intake = Intake(rules)
        await self._read(task, intake)
        return intake.finish()

    async def _read(self, task: IntakeTask, intake: Intake) -> None:
        """Feeds the whole file, and goes on where it was when the store fails in the middle."""
        trouble = self._patience.trouble(STORE_BUDGET_S, batch_id=task.batch_id, task="intake")
        prompts = _AwaitedPrompts(self._prompts, task)
        offset = 0
        while True:
            try:
                async for chunk in self._store.stream(task.input.key, offset, None, _CHUNK_BYTES):
                    await prompts.known_for(chunk)
                    for _ in intake.steps(chunk):
                        await asyncio.sleep(0)
                    if intake.stopped:
                        return
                    offset += len(chunk)
                    trouble.over()
                    await asyncio.sleep(0)
            except ObjectNotFoundError:
                raise
            except ObjectStoreError as error:
                await trouble.wait_after(error)
            else:
                return

    async def _validated(self, task: IntakeTask, accepted: Accepted) -> BatchValidated:
        key = keys.plan(task.batch_id, uuid_utils.uuid7().hex)
        await self._patience.keep_trying(
            lambda: self._store.put(key, accepted.plan),
            STORE_BUDGET_S,
            batch_id=task.batch_id,
            task="intake",
        )
        reach("file_worker.plan_stored")
        return BatchValidated(
            task_id=task.task_id,
            batch_id=task.batch_id,
            tenant=task.tenant,
            at_ms=self._patience.clock.now_ms(),
            plan=ObjectRef(key=key, size_bytes=len(accepted.plan)),
            total=accepted.total,
            models=accepted.models,
            estimated_input_tokens=accepted.estimated_input_tokens,
            prompts=accepted.prompts,
            unused_variables=accepted.unused_variables,
        )

    def _rejected(self, task: IntakeTask, *errors: BatchError) -> BatchRejected:
        return rejected(task, self._patience.clock.now_ms(), *errors)


class _AwaitedPrompts:
    """Waits for the prompts before the first bytes that may need them; most files have none."""

    def __init__(self, prompts: Prompts, task: IntakeTask) -> None:
        self._prompts = prompts
        self._task = task
        self._known = False
        #: The end of what came before: the word may be cut.
        self._end = b""

    async def known_for(self, chunk: bytes) -> None:
        """Returns when the lines that end in the chunk can be checked."""
        if self._known:
            return
        data = self._end + chunk
        if may_name_one(data):
            await self._prompts.read_all(self._task.batch_id)
            self._known = True
        self._end = data[-_WORD_BYTES:]


def rejected(task: IntakeTask, at_ms: int, *errors: BatchError) -> BatchRejected:
    """The event that fails the task's batch."""
    return BatchRejected(
        task_id=task.task_id,
        batch_id=task.batch_id,
        tenant=task.tenant,
        at_ms=at_ms,
        errors=errors,
    )


def internal_error() -> BatchError:
    """The error for a file that could not be checked."""
    message = "The input file could not be checked because of an internal error. Try again."
    return BatchError(code=ValidationCode.INTERNAL_ERROR, message=message)


def _refused(code: ValidationCode, message: str, param: str | None = None) -> Refused:
    return Refused((BatchError(code=code, message=message, param=param),))


def _not_found(task: IntakeTask) -> BatchError:
    file_id = task.input.key.rsplit("/", 1)[-1]
    message = (
        f"Cannot find file {file_id}, or organization {task.tenant} does not have access to it."
    )
    return BatchError(code=ValidationCode.INVALID_REQUEST, message=message, param="file_id")
