"""The pins of a batch: copies of the prompt versions that its lines use, at the end of its plan.

    magic 8 bytes | MessagePack array of [slug, version, messages, model_config]

Pin number n (from 1) is the n-th entry. The copies make a batch independent of what becomes of
its prompts once it was validated.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

#: Different prompt versions that one input file may use, and the bytes of all of them together.
MAX_PINS = 1000
MAX_PINS_BYTES = 4 << 20

_MAGIC = b"BHPINS1\x00"


class PinsError(ValueError):
    """These bytes are not pins."""


class Pin(msgspec.Struct, frozen=True, array_like=True):
    """One prompt version. messages, model_config: JSON, as in the PromptVersion record."""

    slug: str
    version: int
    messages: bytes
    model_config: bytes


_decoder = msgspec.msgpack.Decoder(tuple[Pin, ...])


def encode_pins(pins: Sequence[Pin]) -> bytes:
    """The pins as they stand in a plan; nothing where there are none."""
    return _MAGIC + msgspec.msgpack.encode(pins) if pins else b""


def decode_pins(data: bytes) -> tuple[Pin, ...]:
    """The pins in those bytes. Raises PinsError."""
    if not data:
        return ()
    if not data.startswith(_MAGIC):
        raise PinsError("not pins")
    try:
        return _decoder.decode(memoryview(data)[len(_MAGIC) :])
    except msgspec.DecodeError as error:
        raise PinsError("not pins") from error
