"""Avro single-object encoding of our records, without a schema registry.

    C3 01 | CRC-64-AVRO of the writer's schema, 8 bytes little-endian | Avro body

Several record types may share a topic: the fingerprint says which one a value is and which
version wrote it. All versions ever written are kept under `schemas/avro/<Record>/v<N>.avsc`;
the highest is what this process writes, and readers resolve any older one to it. A newer
writer's fingerprint is unknown here, which is why readers are upgraded first (docs/operations.md).
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from io import BytesIO
from typing import Any, TypeVar

import fastavro
import msgspec
from fastavro.schema import fingerprint, to_parsing_canonical_form

from schemas.records import RECORDS, Record

_MAGIC = b"\xc3\x01"
_HEADER_BYTES = 10
T = TypeVar("T", bound=Record)


class DecodeError(ValueError):
    """This value is not one of our records, or a newer version wrote it than this process knows."""


@dataclass(frozen=True, slots=True)
class SchemaVersion:
    """One version of one record's schema.

    fingerprint: the 8 bytes that stand in a value's header.
    raw: the schema as parsed JSON; parsed: the same, prepared for fastavro.
    """

    record: str
    version: int
    fingerprint: bytes
    raw: dict[str, Any]
    parsed: Any


@dataclass(frozen=True, slots=True)
class _Reader:
    writer: SchemaVersion
    current: SchemaVersion
    type: type[Record]


@lru_cache(maxsize=1)
def schema_versions() -> dict[str, tuple[SchemaVersion, ...]]:
    """Every kept schema version by record name, oldest first."""
    root = resources.files("schemas") / "avro"
    found: dict[str, list[SchemaVersion]] = {}
    for folder in root.iterdir():
        if not folder.is_dir():
            continue
        for file in folder.iterdir():
            if file.name.endswith(".avsc"):
                version = int(file.name.removeprefix("v").removesuffix(".avsc"))
                found.setdefault(folder.name, []).append(
                    _load(folder.name, version, json.loads(file.read_text("utf-8")))
                )
    return {name: tuple(sorted(v, key=lambda s: s.version)) for name, v in found.items()}


def _load(record: str, version: int, raw: dict[str, Any]) -> SchemaVersion:
    crc = fingerprint(to_parsing_canonical_form(raw), "CRC-64-AVRO")
    # fastavro gives the CRC as the hex of its little-endian bytes, which is the header's order.
    return SchemaVersion(record, version, bytes.fromhex(crc), raw, fastavro.parse_schema(raw))


@lru_cache(maxsize=1)
def _writers() -> dict[type, tuple[bytes, Any]]:
    versions = schema_versions()
    return {
        t: (_MAGIC + versions[t.__name__][-1].fingerprint, versions[t.__name__][-1].parsed)
        for t in RECORDS
    }


@lru_cache(maxsize=1)
def _readers() -> dict[bytes, _Reader]:
    types = {t.__name__: t for t in RECORDS}
    return {
        v.fingerprint: _Reader(v, versions[-1], types[name])
        for name, versions in schema_versions().items()
        for v in versions
    }


def encode(record: Record) -> bytes:
    """The record's wire form, written with the newest version of its schema."""
    header, parsed = _writers()[type(record)]
    out = BytesIO()
    out.write(header)
    fastavro.schemaless_writer(out, parsed, msgspec.to_builtins(record, builtin_types=(bytes,)))
    return out.getvalue()


def decode(value: bytes) -> Record:
    """The record in `value`. Raises DecodeError for anything that is not one of ours."""
    reader = _readers().get(value[2:_HEADER_BYTES]) if value[:2] == _MAGIC else None
    if reader is None:
        raise DecodeError("unknown schema fingerprint or not single-object encoded")
    body = BytesIO(value)
    body.seek(_HEADER_BYTES)
    try:
        if reader.writer is reader.current:
            data = fastavro.schemaless_reader(body, reader.writer.parsed, None)
        else:
            data = fastavro.schemaless_reader(body, reader.writer.parsed, reader.current.parsed)
        return msgspec.convert(data, reader.type)
    # fastavro raises many kinds on hostile bytes; whatever it is, the record can't be read.
    except (
        EOFError,
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        OverflowError,
        MemoryError,
        RecursionError,
        struct.error,
    ) as error:
        raise DecodeError(f"{reader.type.__name__}: {type(error).__name__}") from error


def decode_as(value: bytes, expected: type[T]) -> T:
    """decode(), and a DecodeError if it is another type of record."""
    record = decode(value)
    if not isinstance(record, expected):
        raise DecodeError(f"expected {expected.__name__}, found {type(record).__name__}")
    return record
