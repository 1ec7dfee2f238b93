"""A public in-memory upstream for tests: it behaves as told and remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from streams.domain.outcome import Answer
from streams.ports.inference import (
    BadAnswerError,
    BlipError,
    TimedOutError,
    TooLargeError,
    UnreachableError,
)


@dataclass(frozen=True, slots=True)
class Reply:
    """Answers after `delay_s`."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Reset:
    """Cuts the connection before any byte of an answer."""


@dataclass(frozen=True, slots=True)
class CutOff:
    """Cuts the connection in the middle of an answer."""


@dataclass(frozen=True, slots=True)
class Hang:
    """Never answers."""


@dataclass(frozen=True, slots=True)
class Babble:
    """Answers something that is not HTTP."""


Behaviour = Reply | Reset | CutOff | Hang | Babble
Script = Callable[[str, bytes], Behaviour]


class FakeInferenceClient:
    """An InferenceClient whose upstream follows a script: (path, body) to a behaviour."""

    def __init__(
        self,
        script: Script,
        *,
        request_timeout_s: float = 600.0,
        max_response_bytes: int = 16 * 1024 * 1024,
    ) -> None:
        self._script = script
        self._request_timeout_s = request_timeout_s
        self._max_response_bytes = max_response_bytes
        #: Every request that was begun, in order.
        self.requests: list[tuple[str, bytes]] = []
        #: Calls that run now, and the most that ever ran at once.
        self.running = 0
        self.most_running = 0

    async def send(self, path: str, body: bytes) -> Answer:
        """See InferenceClient.send."""
        self.requests.append((path, body))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self._behave(self._script(path, body))
        finally:
            self.running -= 1

    async def close(self) -> None:
        """See InferenceClient.close."""

    async def _behave(self, behaviour: Behaviour) -> Answer:
        match behaviour:
            case Reply():
                return await self._reply(behaviour)
            case Reset():
                raise BlipError
            case CutOff():
                raise UnreachableError
            case Babble():
                raise BadAnswerError
            case Hang():
                await asyncio.sleep(self._request_timeout_s)
                raise TimedOutError

    async def _reply(self, reply: Reply) -> Answer:
        await asyncio.sleep(min(reply.delay_s, self._request_timeout_s))
        if reply.delay_s > self._request_timeout_s:
            raise TimedOutError
        if len(reply.body) > self._max_response_bytes:
            raise TooLargeError
        headers = {name.lower(): value for name, value in reply.headers.items()}
        if reply.status < 400:
            return Answer(reply.status, reply.body, headers.get("x-request-id", ""))
        return Answer(
            reply.status,
            reply.body,
            headers.get("x-request-id", ""),
            headers.get("retry-after", ""),
            headers.get("retry-after-ms", ""),
        )
