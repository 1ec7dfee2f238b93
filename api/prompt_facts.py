"""What the texts of stored prompts read, remembered for as many versions as fit."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import NamedTuple

from schemas.records import PromptVersion
from streams.domain.prompt import Prompt, PromptError, compile_prompt

_CACHED = 1000


class Facts(NamedTuple):
    """Names of variables, sorted: all that a version reads, and those that must be given."""

    variables: tuple[str, ...] = ()
    required: tuple[str, ...] = ()


class PromptFacts:
    """Facts by version id; a version never changes."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Facts] = OrderedDict()

    async def of(self, text: PromptVersion) -> Facts:
        """The facts of a version."""
        known = self._known.get(text.version_id)
        if known is None:
            known = self._known[text.version_id] = await _found(text)
            if len(self._known) > _CACHED:
                self._known.popitem(last=False)
        self._known.move_to_end(text.version_id)
        return known


def facts_of(prompt: Prompt) -> Facts:
    """The facts of a compiled version."""
    return Facts(tuple(sorted(prompt.variables)), tuple(sorted(prompt.required)))


async def _found(text: PromptVersion) -> Facts:
    try:
        # Large templates take milliseconds, which other requests share.
        return facts_of(await asyncio.to_thread(compile_prompt, text.messages, text.model_config))
    except PromptError:
        # Once it was good; it can still be read, and rendering it says what is wrong.
        return Facts()
