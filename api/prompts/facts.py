"""Compiles versions of stored prompts, and remembers what as many of them as fit read."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import NamedTuple

from schemas.records import PromptVersion
from streams.domain.prompts.prompt import Prompt, PromptError, compile_prompt

_CACHED = 1000
#: The largest templates take a good part of a second, which all requests would share.
_AT_ONCE = 2


class Facts(NamedTuple):
    """Names of variables, sorted: all that a version reads, and those that must be given."""

    variables: tuple[str, ...] = ()
    required: tuple[str, ...] = ()


class PromptFacts:
    """Facts by version id; a version never changes."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Facts] = OrderedDict()
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def compiled(self, messages: bytes, model_config: bytes) -> Prompt:
        """A version, compiled aside from other requests. Raises PromptError."""
        async with self._slots:
            return await asyncio.to_thread(compile_prompt, messages, model_config)

    async def of(self, text: PromptVersion) -> Facts:
        """The facts of a version."""
        known = self._known.get(text.version_id)
        if known is None:
            known = self._known[text.version_id] = await self._found(text)
            if len(self._known) > _CACHED:
                self._known.popitem(last=False)
        self._known.move_to_end(text.version_id)
        return known

    async def _found(self, text: PromptVersion) -> Facts:
        try:
            return facts_of(await self.compiled(text.messages, text.model_config))
        except PromptError:
            # Once it was good; it can still be read, and rendering it says what is wrong.
            return Facts()


def facts_of(prompt: Prompt) -> Facts:
    """The facts of a compiled version."""
    return Facts(tuple(sorted(prompt.variables)), tuple(sorted(prompt.required)))
