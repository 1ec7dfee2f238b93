"""A public in-memory upstream for tests: it behaves as told and remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from streams.domain.outcome.judge import Answer
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


@dataclass(frozen=True, slots=True)
class Events:
    """Answers chunk after chunk, `pause_s` before each; cut: ends in the middle of the answer."""

    chunks: tuple[bytes, ...]
    pause_s: float = 0.0
    cut: bool = False
    content_type: str = "text/event-stream"


Behaviour = Events | Reply | Reset | CutOff | Hang | Babble
Script = Callable[[str, bytes], Behaviour]


class FakeStream:
    """A Stream of a FakeInferenceClient."""

    def __init__(
        self,
        status: int,
        chunks: AsyncIterator[bytes],
        content_type: str = "application/json",
        *,
        retry_after: str = "",
        retry_after_ms: str = "",
    ) -> None:
        self.status = status
        self.content_type = content_type
        self.retry_after = retry_after
        self.retry_after_ms = retry_after_ms
        self._chunks = chunks

    def chunks(self) -> AsyncIterator[bytes]:
        """See Stream.chunks."""
        return self._chunks


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

    @asynccontextmanager
    async def open(self, path: str, body: bytes) -> AsyncIterator[FakeStream]:
        """See InferenceClient.open."""
        self.requests.append((path, body))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            behaviour = self._script(path, body)
            if isinstance(behaviour, Events):
                yield FakeStream(200, self._chunks(behaviour), behaviour.content_type)
            elif isinstance(behaviour, CutOff):
                # The headers are there before it is cut.
                yield FakeStream(200, self._chunks(Events((b"{",), cut=True)))
            else:
                answer = await self._behave(behaviour)
                chunks = self._chunks(Events((answer.body,) if answer.body else ()))
                yield FakeStream(
                    answer.status,
                    chunks,
                    retry_after=answer.retry_after,
                    retry_after_ms=answer.retry_after_ms,
                )
        finally:
            self.running -= 1

    async def close(self) -> None:
        """See InferenceClient.close."""

    async def _chunks(self, events: Events) -> AsyncIterator[bytes]:
        size = 0
        for chunk in events.chunks:
            await asyncio.sleep(events.pause_s)
            size += len(chunk)
            if size > self._max_response_bytes:
                raise TooLargeError
            yield chunk
        if events.cut:
            raise UnreachableError

    async def _behave(self, behaviour: Behaviour) -> Answer:
        match behaviour:
            case Reply():
                return await self._reply(behaviour)
            case Events():
                whole = b"".join([chunk async for chunk in self._chunks(behaviour)])
                return Answer(200, whole)
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
