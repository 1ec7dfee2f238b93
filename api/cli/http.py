"""One kept-alive HTTP connection to the server, with retries, and OpenAI's errors made ours.

The standard library's client: the commands are synchronous, and it is there at once.
"""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec

from api.cli.failure import Failure, NotAuthorised, ServerRefused, ServerUnreachable

#: Longest silence of the server within one request.
TIMEOUT_S = 60.0
#: Tries of a request that may be sent twice.
TRIES = 4
_FIRST_PAUSE_S = 0.25
#: A longer Retry-After is not waited for.
_MAX_PAUSE_S = 30.0
_MAX_JSON_BYTES = 64 << 20
_RETRIED = frozenset({429, 500, 502, 503, 504})
_MAX_TEXT = 200

Json = dict[str, Any]
Body = bytes | Iterable[bytes] | None


class _Error(msgspec.Struct):
    message: str = ""
    code: str | None = None
    param: str | None = None


class _Envelope(msgspec.Struct):
    error: _Error


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer, whole. headers: by lower-case name."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HTTP:
    """Requests to one server. Not for several threads."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        *,
        timeout_s: float = TIMEOUT_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.base_url = base_url
        self._url = urlsplit(base_url)
        self._has_key = api_key is not None
        self._headers = {"Accept": "application/json", "User-Agent": "backhaul-cli"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._connection: http.client.HTTPConnection | None = None

    def close(self) -> None:
        """Closes the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def json(
        self, method: str, path: str, body: Json | None = None, headers: Mapping[str, str] = {}
    ) -> Json:
        """A request that may be sent again if it gets lost; the answer's JSON object.

        Raises ServerUnreachable, NotAuthorised, ServerRefused.
        """
        return self.judged(self.ask(method, path, body, headers))

    def json_once(self, method: str, path: str, body: Json) -> Json:
        """A request that is never sent again, because a repeat would do more. Raises as json()."""
        data = msgspec.json.encode(body)
        try:
            answer = self.send(method, path, data, {"Content-Type": "application/json"})
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self.unreachable(error) from error
        return self.judged(answer)

    def ask(
        self, method: str, path: str, body: Json | None = None, headers: Mapping[str, str] = {}
    ) -> Answer:
        """The same, with the answer as it came, good or not. Raises ServerUnreachable."""
        data = None if body is None else msgspec.json.encode(body)
        extra = {**headers, "Content-Type": "application/json"} if data is not None else headers
        for remaining in range(TRIES - 1, -1, -1):
            pause = _FIRST_PAUSE_S * 2 ** (TRIES - 1 - remaining)
            try:
                answer = self.send(method, path, data, extra)
            # A refused connection is certain, and a time-out was waited for long enough.
            except (ConnectionRefusedError, TimeoutError) as error:
                self.close()
                raise self.unreachable(error) from error
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if not remaining:
                    raise self.unreachable(error) from error
            else:
                retry_in = _retry_in(answer, pause)
                if not remaining or retry_in is None:
                    return answer
                pause = retry_in
            self._sleep(pause)
        raise AssertionError("unreachable")  # the last try returns or raises

    def send(
        self, method: str, path: str, body: Body = None, headers: Mapping[str, str] = {}
    ) -> Answer:
        """One request, once. Raises OSError or http.client.HTTPException."""
        with self.response(method, path, body, headers) as response:
            data = response.read(_MAX_JSON_BYTES)
            lowered = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, lowered, data)

    @contextlib.contextmanager
    def response(
        self, method: str, path: str, body: Body = None, headers: Mapping[str, str] = {}
    ) -> Iterator[http.client.HTTPResponse]:
        """One request, once, whose answer's body is still to be read."""
        connection = self._connected()
        target = f"{self._url.path}{path}"
        try:
            try:
                connection.request(method, target, body, {**self._headers, **headers})
            except (BrokenPipeError, ConnectionResetError):
                # A server may refuse an upload before it has read it all; then its answer waits.
                if body is None:
                    raise
            response = connection.getresponse()
            yield response
        except BaseException:
            self.close()
            raise
        if not response.isclosed() or response.will_close:
            self.close()

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is None:
            kind = (
                http.client.HTTPSConnection
                if self._url.scheme == "https"
                else http.client.HTTPConnection
            )
            try:
                self._connection = kind(self._url.netloc, timeout=self._timeout_s)
            except http.client.InvalidURL as error:
                raise ServerUnreachable(f"{self.base_url} is not a server's address.") from error
        return self._connection

    def judged(self, answer: Answer) -> Json:
        """The answer's JSON object, or the failure that it means."""
        if answer.status >= http.client.BAD_REQUEST:
            raise self.refusal(answer.status, answer.body)
        try:
            return msgspec.json.decode(answer.body, type=Json)
        except msgspec.DecodeError:
            raise self._not_ours() from None

    def refusal(self, status: int, body: bytes) -> Failure:
        """What an error answer means."""
        if status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
            what = "does not accept this API key" if self._has_key else "asks for an API key"
            return NotAuthorised(
                f"The server at {self.base_url} {what}.",
                "Set BACKHAUL_API_KEY or --api-key; `backhaul keys create` makes a key.",
            )
        try:
            error = msgspec.json.decode(body, type=_Envelope).error
        except msgspec.DecodeError:
            if status < http.client.INTERNAL_SERVER_ERROR:
                return self._not_ours()
            return ServerRefused(f"The server failed (HTTP {status}).", status=status)
        message = error.message or f"The server answered HTTP {status}."
        return ServerRefused(message, status=status, code=error.code, param=error.param)

    def unreachable(self, error: Exception) -> ServerUnreachable:
        """The failure to raise when no answer came."""
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return ServerUnreachable(
            f"No server answers at {self.base_url} ({str(reason)[:_MAX_TEXT]}).",
            "Start one with `backhaul up`, or name yours with --base-url or BACKHAUL_BASE_URL.",
        )

    def _not_ours(self) -> ServerUnreachable:
        return ServerUnreachable(
            f"What answers at {self.base_url} does not look like Backhaul.",
            "Check the address: --base-url or BACKHAUL_BASE_URL, such as http://host:8080/v1.",
        )


def _retry_in(answer: Answer, pause: float) -> float | None:
    """Seconds to wait before the request is worth another try; None if it isn't."""
    if answer.status not in _RETRIED or answer.headers.get("x-should-retry") == "false":
        return None
    try:
        asked = float(answer.headers.get("retry-after", pause))
    except ValueError:
        asked = pause
    return asked if 0 <= asked <= _MAX_PAUSE_S else None
