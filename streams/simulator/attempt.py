"""Serving one call: wait for its tokens, then deliver what fate has for it, and settle it once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import web

from streams.simulator import wire
from streams.simulator.answers import absurd_usage_json, answer_body, error_body
from streams.simulator.behaviour import RefusedError
from streams.simulator.call import BadRequestError, Call, Endpoint
from streams.simulator.conduct import Fault
from streams.simulator.fate import Fate, fate_of
from streams.simulator.fleet import Engine
from streams.simulator.ledger import GONE, Ledger
from streams.simulator.stream import stream_answer

#: Errors that a server gives before it starts to work on a request.
_AT_ONCE = frozenset({429, 503})
_GARBAGE = b"\x00\xff<<< this is not JSON >>>\x80"
_HTML = b"<html><body><h1>502 Bad Gateway</h1></body></html>"


class Attempt:
    """One call from its start to its end, which it tells the ledger exactly once.

    A good answer is settled before its last byte leaves: what a caller has, the log has.
    """

    def __init__(
        self, request: web.BaseRequest, call: Call, engine: Engine, ledger: Ledger, seed: int
    ) -> None:
        self._request = request
        self._call = call
        self._engine = engine
        self._ledger = ledger
        self._seed = seed
        self._settled = False

    def _settle(self, outcome: str, *, ok: bool = False, usage: bool = True) -> None:
        if not self._settled:
            self._settled = True
            self._ledger.end(self._call, outcome, ok=ok, usage=usage)

    def _settle_good(self) -> None:
        self._settle("200", ok=True)

    async def serve(self) -> web.StreamResponse:
        """Answers as the engine and fate will have it."""
        conduct, behaviour = self._engine.conduct, self._engine.behaviour
        try:
            fate = fate_of(self._call, conduct, self._seed)
            if fate.status in _AT_ONCE:
                return self._error(fate)
            if behaviour.instant and not self._call.stream:
                return await self._deliver(fate)
            async with aclosing(behaviour.tokens(self._call)) as tokens:
                if self._call.stream and fate in (Fate(), Fate(fault=Fault.CUT_MID)):
                    return await self._stream(tokens, fate)
                async for _ in tokens:
                    pass
                return await self._deliver(fate)
        except BadRequestError as error:
            self._settle("400")
            return wire.write_answer(self._request, 400, error_body(str(error), param=error.param))
        except RefusedError as error:
            return self._error(Fate(status=429, retry_after_s=error.retry_after_s), str(error))
        finally:
            self._settle(GONE)

    def _error(
        self, fate: Fate, message: str = "The simulated server fails here."
    ) -> web.StreamResponse:
        """An HTTP error with OpenAI's envelope, and Retry-After where it belongs."""
        status = fate.status or 500
        headers = b""
        if status in _AT_ONCE:
            wait = fate.retry_after_s
            headers = wire.retry_after(self._engine.conduct.retry_after_s if wait is None else wait)
        wire.check_open(self._request)
        self._settle(str(status))
        body = error_body(message, *_kind_and_code(status))
        return wire.write_answer(self._request, status, body, headers=headers)

    async def _stream(self, tokens: AsyncGenerator[int, None], fate: Fate) -> web.StreamResponse:
        if fate.fault is None:
            return await stream_answer(self._request, self._call, tokens, self._settle_good)
        half = max(1, self._call.completion_tokens // 2)
        response = await stream_answer(
            self._request, self._call, tokens, self._settle_good, cut_at_token=half
        )
        self._settle(Fault.CUT_MID)
        return response

    async def _deliver(self, fate: Fate) -> web.StreamResponse:
        request, call, conduct = self._request, self._call, self._engine.conduct
        wire.check_open(request)
        if fate.status is not None:
            return self._error(fate)
        match fate.fault:
            case None:
                self._settle_good()
                return wire.write_answer(request, 200, answer_body(call))
            case Fault.NO_USAGE:
                self._settle("200", ok=True, usage=False)
                return wire.write_answer(request, 200, answer_body(call, b""))
            case Fault.ABSURD_USAGE:
                self._settle("200", ok=True, usage=False)
                return wire.write_answer(request, 200, answer_body(call, absurd_usage_json(call)))
            case Fault.DRIP:
                body = answer_body(call)
                return await wire.drip(request, body, conduct.drip_s, self._settle_good)
            case Fault.HUGE:
                marker = b'"embedding":[' if call.endpoint is Endpoint.EMBEDDINGS else b"word"
                return await wire.write_huge(
                    request, answer_body(call), marker, conduct.huge_bytes, self._settle_good
                )
            case _:
                return await self._break(fate.fault)

    async def _break(self, fault: Fault) -> web.StreamResponse:
        """Answers that no caller can use; settled first, as nothing is given away."""
        request, call = self._request, self._call
        if fault is Fault.HANG:
            await asyncio.Event().wait()
        self._settle(fault)
        match fault:
            case Fault.CUT_MID:
                return wire.cut_in_the_middle(request, answer_body(call))
            case Fault.GARBAGE:
                return wire.write_answer(request, 200, _GARBAGE)
            case Fault.TRUNCATED:
                body = answer_body(call)
                return wire.write_answer(request, 200, body[: len(body) // 2])
            case Fault.EMPTY:
                return wire.write_answer(request, 200, b"")
            case Fault.HTML:
                return wire.write_answer(request, 502, _HTML, content_type=b"text/html")
            case _:
                return wire.cut(request)


def _kind_and_code(status: int) -> tuple[str, str | None]:
    """OpenAI's error type and code for a status."""
    match status:
        case 401:
            return "invalid_request_error", "invalid_api_key"
        case 404:
            return "invalid_request_error", "model_not_found"
        case 429:
            return "requests", "rate_limit_exceeded"
        case _:
            return ("server_error" if status >= 500 else "invalid_request_error"), None
