"""Who may ask the server: this machine's browser on the server's own page, with its token. Everything else is refused."""

import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

PAGES = ("/", "/page.js", "/page.css")  # what holds nothing of the run, and so needs no token
LONGEST = 65536  # bytes of a body
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass
class Bucket:
    """At most `size` requests at once, and `rate` a second in the long run."""

    rate: float = 50.0
    size: float = 100.0
    clock: Callable[[], float] = time.monotonic
    _left: float = field(default=-1.0)
    _last: float = field(default=0.0)

    def take(self) -> bool:
        """Whether one more request may pass."""
        now = self.clock()
        before = self.size if self._left < 0 else self._left
        self._left = min(self.size, before + (now - self._last) * self.rate)
        self._last = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Guard:
    """An ASGI application in front of another, which lets requests through that pass every test.

    In this order: the Host is this server's (a foreign name may lead here by DNS rebinding); an Origin, where there is
    one, is the server's own, and a request that changes anything has one; a browser does not say that another site asks;
    there are not too many requests; the token, compared in constant time, unless the bare page is asked for; the length
    of the body.

    Args:
        app: what is guarded.
        hosts: what `Host` may be, such as `127.0.0.1:8000`.
        token: the secret.
        bucket: the limit of requests.
    """

    def __init__(self, app: App, hosts: tuple[str, ...], token: str, bucket: Bucket | None = None) -> None:
        self.app, self.hosts, self.token = app, hosts, token
        self.origins = tuple(f"http://{host}" for host in hosts)
        self.bucket = bucket or Bucket()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # websockets: there are none
            return
        refused = self._refused(scope)
        if refused is not None:
            await _answer(send, *refused)
            return
        from starlette.exceptions import HTTPException

        length = 0

        async def limited() -> MutableMapping[str, Any]:
            nonlocal length
            message = await receive()
            length += len(message.get("body", b""))
            if length > LONGEST:
                raise HTTPException(413, f"the body is longer than {LONGEST} bytes.")
            return message

        async def dressed(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_encoded()]
            await send(message)

        await self.app(scope, limited, dressed)

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason, if a request is refused."""
        pairs = [
            (name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]
        ]
        headers = dict(pairs)
        hosts = [value for name, value in pairs if name == "host"]
        if len(hosts) != 1 or hosts[0] not in self.hosts:
            return 403, "this server answers under its own address alone."
        changes = scope["method"] not in ("GET", "HEAD")
        origin = headers.get("origin")
        if (origin is None and changes) or (origin is not None and origin not in self.origins):
            return (
                403,
                "another site asks: only the server's own page may, and its requests carry its Origin.",
            )
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403, "another site asks: only the server's own page may."
        if not self.bucket.take():
            return 429, "too many requests: wait a second."
        bare = scope["path"] in PAGES and not changes
        given = headers.get("authorization", "").encode()
        if not bare and not secrets.compare_digest(given, f"Bearer {self.token}".encode()):
            return 401, "the token is missing or wrong: open the address that the server printed, whole."
        return None


def _encoded() -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in _HEADERS.items()]


async def _answer(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close"), *_encoded()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{text}\n".encode()})
