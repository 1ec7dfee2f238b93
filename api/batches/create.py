"""Creates a batch: writes its command, and answers repeats with the batch that the first made."""

from __future__ import annotations

from api.batches.budgeted import estimated_cost
from api.batches.request import CreateRequest
from api.errors import Conflict, Unavailable
from api.gateway import Gateway
from api.read_model.schema import from_create
from schemas.records import BatchCreate, BatchSnapshot
from schemas.topics import BATCH_COMMAND
from streams.domain.ids import idempotent_batch_id, new_batch_id, new_command_id


async def create_batch(
    gateway: Gateway, tenant: str, asked: CreateRequest, request_hash: str | None = None
) -> BatchSnapshot:
    """A new batch, or the one that the same idempotency key created before.

    request_hash: what makes two requests the same, where it isn't what `asked` says (as its
    input file was made for this request). Raises Conflict, Unavailable, KafkaBaseError,
    TimeoutError.
    """
    request_hash = request_hash or asked.hash()
    if asked.idempotency_key is None:
        return await _create(gateway, tenant, asked, new_batch_id(), request_hash)
    batch = await created_before(gateway, tenant, asked.idempotency_key, request_hash)
    if batch is not None:
        return batch
    batch_id = idempotent_batch_id(tenant, asked.idempotency_key)
    return _same(await _create(gateway, tenant, asked, batch_id, request_hash), request_hash)


async def created_before(
    gateway: Gateway, tenant: str, idempotency_key: str, request_hash: str
) -> BatchSnapshot | None:
    """The batch that this key created, as far as this gateway has read. Raises Conflict."""
    batch_id = idempotent_batch_id(tenant, idempotency_key)
    batch = await gateway.queries.batch(tenant, batch_id)
    return None if batch is None else _same(batch, request_hash)


def _same(batch: BatchSnapshot, request_hash: str) -> BatchSnapshot:
    if batch.request_hash != request_hash:
        raise Conflict(
            "Idempotency conflict: this key was used before, for a request that differs.",
            param="idempotency_key",
            code="idempotency_conflict",
        )
    return batch


async def _create(
    gateway: Gateway, tenant: str, asked: CreateRequest, batch_id: str, request_hash: str
) -> BatchSnapshot:
    file = await gateway.file(tenant, asked.input_file_id)
    command = BatchCreate(
        command_id=new_command_id(),
        batch_id=batch_id,
        tenant=tenant,
        at_ms=gateway.clock.now_ms(),
        endpoint=asked.endpoint,
        input_file_id=asked.input_file_id,
        # An unknown file is no error here: the batch fails validation.
        input=None if file is None else file.object,
        input_purpose=None if file is None else file.purpose,
        completion_window=asked.completion_window,
        window_s=asked.window_s,
        metadata=asked.metadata,
        output_expires_after_s=asked.output_expires_after_s,
        request_hash=request_hash,
        priority=asked.priority,
        origin_batch_id=asked.origin_batch_id,
        key_id=asked.key_id,
        estimated_cost_micros=await estimated_cost(gateway, asked, file),
    )
    read_back = await gateway.publish(BATCH_COMMAND, batch_id, command)
    if asked.idempotency_key is None:
        return from_create(command)
    if not read_back:
        # Only the log knows whether this create was the first; asking again is safe.
        raise Unavailable("The server is not able to answer just now.", code="unavailable")
    return await gateway.queries.batch(tenant, batch_id) or from_create(command)
