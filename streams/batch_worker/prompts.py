"""The pinned prompt versions of the batches that run here, compiled, the latest used ones kept.

    plan object ─ fetched once, however many lines wait ─► pins ─ compiled at first use ─► Prompt

A plan never changes, so neither does what is kept of it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from schemas.records import ClaimCheck
from streams.batch_worker.stored import read_claim
from streams.domain.clock import Clock
from streams.domain.prompts.pins import Pin, PinsError, decode_pins
from streams.domain.prompts.prompt import Prompt, PromptError, compile_prompt
from streams.ports.object_store import ObjectStore

#: Plans kept at most, and about how much memory their versions may take together.
MAX_PLANS = 256
MAX_BYTES = 64 << 20
#: What a version takes beside its texts; its texts as they are, compiled for each endpoint, count
#: so often; and each of its messages, parts and placeholders takes this in small objects.
_VERSION_BYTES, _COPIES, _PIECE_BYTES = 8192, 4, 1024
#: A larger version is compiled in a thread, so that lines of other prompts go on meanwhile.
_INLINE_BYTES = 4096


class PinnedPrompts:
    """The prompt versions of one plan."""

    def __init__(self, pins: Sequence[Pin]) -> None:
        self._pins = pins
        self._prompts: list[Prompt | None] = [None] * len(pins)
        self._broken: set[int] = set()
        self._compiling = asyncio.Lock()
        #: About what all of them take once they are compiled.
        self.size_bytes = sum(
            len(pin.messages + pin.model_config) * _COPIES
            + pin.messages.count(b"{") * _PIECE_BYTES
            + _VERSION_BYTES
            for pin in pins
        )

    def prompt(self, number: int) -> Prompt | None:
        """The version with this number, counted from 1, if it is compiled. Raises PinsError."""
        if not 1 <= number <= len(self._prompts):
            raise PinsError("a line names a pin that its plan doesn't have")
        return self._prompts[number - 1]

    async def compiled(self, number: int) -> Prompt:
        """The version with this number, counted from 1. Raises PinsError."""
        async with self._compiling:
            prompt = self.prompt(number)
            if prompt is None:
                prompt = self._prompts[number - 1] = await self._compiled(number)
            return prompt

    async def _compiled(self, number: int) -> Prompt:
        pin = self._pins[number - 1]
        texts = (pin.messages, pin.model_config)
        if number in self._broken:
            raise PinsError("a pinned version is not a prompt")
        try:
            if sum(map(len, texts)) > _INLINE_BYTES:
                return await asyncio.to_thread(compile_prompt, *texts)
            return compile_prompt(*texts)
        except PromptError:
            self._broken.add(number)
            # Without its cause, which quotes the text.
            raise PinsError("a pinned version is not a prompt") from None


class _Fetch:
    """A read that lines wait for; it ends when the last of them gives up."""

    __slots__ = ("task", "waiting")

    def __init__(self, task: asyncio.Task[PinnedPrompts | None]) -> None:
        self.task = task
        self.waiting = 0


class PromptCache:
    """The pinned prompts of plans, by the plan's object key."""

    def __init__(
        self,
        store: ObjectStore,
        clock: Clock,
        *,
        max_plans: int = MAX_PLANS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._store = store
        self._clock = clock
        self._max_plans = max_plans
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, PinnedPrompts] = OrderedDict()
        self._bytes = 0
        #: By the plan's key and the deadline, which may be moved while a read goes on.
        self._fetches: dict[tuple[str, int], _Fetch] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def kept(self, claim: ClaimCheck) -> PinnedPrompts | None:
        """The plan's prompts, if they are here."""
        found = self._kept.get(claim.key)
        if found is not None:
            self._kept.move_to_end(claim.key)
        return found

    async def fetched(self, claim: ClaimCheck, deadline_ms: int) -> PinnedPrompts | None:
        """The plan's prompts; None if the deadline came before them. Raises PinsError."""
        at = (claim.key, deadline_ms)
        fetch = self._fetches.get(at)
        if fetch is None:
            task = asyncio.create_task(self._fetch(claim, deadline_ms))
            fetch = self._fetches[at] = _Fetch(task)
        fetch.waiting += 1
        try:
            return await asyncio.shield(fetch.task)
        finally:
            fetch.waiting -= 1
            if not fetch.waiting:
                fetch.task.cancel()
                del self._fetches[at]

    async def _fetch(self, claim: ClaimCheck, deadline_ms: int) -> PinnedPrompts | None:
        data = await read_claim(self._store, claim, self._clock, deadline_ms)
        if data is None:
            return None
        if not data:
            raise PinsError("the plan is gone or cut")
        pinned = PinnedPrompts(decode_pins(data))
        self._keep(claim.key, pinned)
        return pinned

    def _keep(self, key: str, pinned: PinnedPrompts) -> None:
        before = self._kept.pop(key, None)
        self._kept[key] = pinned
        self._bytes += pinned.size_bytes - (0 if before is None else before.size_bytes)
        while len(self._kept) > 1 and (
            len(self._kept) > self._max_plans or self._bytes > self._max_bytes
        ):
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.size_bytes
