"""The server's addresses, and running it."""

import asyncio
import json
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Any

from tauspan.core.errors import TauspanError, UsageError
from tauspan.models.extras import require_extra
from tauspan.serve.guard import App, Guard
from tauspan.serve.mixer import Mixer

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

WAITING = 4  # questions that may wait for the one being answered
_EVERY = 2.0  # seconds between two looks at the run's folder
_TYPES = {"page.html": "text/html", "page.js": "text/javascript", "page.css": "text/css"}


def application(mixer: Mixer, port: int, token: str) -> App:
    """The guarded ASGI application of a run.

    `GET /api/run` says what there is, `GET /api/progress` streams how far the run is, `POST /api/evaluate` and
    `POST /api/write` take a mix. Bodies are JSON; nothing in them is a path.
    """
    require_extra("starlette", "serve", "the server")
    from starlette.applications import Starlette
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import Route

    waiting = 0

    def told(
        content: Any, status: int = 200
    ) -> "Response":  # ASCII, since JSON may hold half a surrogate pair
        return Response(json.dumps(content), status, media_type="application/json")

    async def page(name: str, request: "Request") -> "Response":
        text = (resources.files("tauspan.serve") / name).read_text("utf-8")
        return Response(text, media_type=_TYPES[name])

    async def about(request: "Request") -> "Response":
        return told(mixer.about())

    async def progress(request: "Request") -> "Response":
        return StreamingResponse(_events(mixer, request), media_type="text/event-stream")

    async def answered(work: Callable[[Any], Any], request: "Request") -> "Response":
        nonlocal waiting
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return told({"error": "the body must be application/json."}, 415)
        try:
            plain = _parsed(await request.body())
            if waiting > WAITING:
                return told({"error": "busy: other questions are waiting."}, 429)
            waiting += 1
            try:
                return told(await asyncio.to_thread(work, plain))
            finally:
                waiting -= 1
        except TauspanError as error:
            return told({"error": str(error)}, 400 if isinstance(error, UsageError) else 409)

    def evaluate(plain: Any) -> Any:
        split = plain.pop("split", "validation") if isinstance(plain, dict) else ""
        return {"split": split, "rows": mixer.evaluate(mixer.mix(plain), split)}

    def write(plain: Any) -> Any:
        more = {key: plain.pop(key, None) for key in ("kind", "name")} if isinstance(plain, dict) else {}
        return {"written": mixer.write(mixer.mix(plain), **more).name}

    async def unexpected(request: "Request", error: Exception) -> "Response":
        return told({"error": "the server failed; its terminal says how."}, 500)

    routes = [
        Route("/", partial(page, "page.html")),
        Route("/page.js", partial(page, "page.js")),
        Route("/page.css", partial(page, "page.css")),
        Route("/api/run", about),
        Route("/api/progress", progress),
        Route("/api/evaluate", partial(answered, evaluate), methods=["POST"]),
        Route("/api/write", partial(answered, write), methods=["POST"]),
    ]
    app = Starlette(routes=routes, exception_handlers={Exception: unexpected})
    return Guard(app, (f"127.0.0.1:{port}", f"localhost:{port}"), token)


def serve(mixer: Mixer, port: int = 0, ready: Callable[[str], None] = lambda address: None) -> None:
    """Serve a run on 127.0.0.1 until the process ends.

    Args:
        mixer: the run.
        port: where; 0 takes a free one.
        ready: called with the address, whose fragment is the token; a browser never sends it on.

    Raises:
        UsageError: the port is taken.
        MissingExtraError: starlette or uvicorn is not installed.
    """
    uvicorn = require_extra("uvicorn", "serve", "the server")
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"port {port}: {error}. Take another, or leave it out for a free one."
            ) from error
        found, token = listening.getsockname()[1], secrets.token_urlsafe(32)
        config = uvicorn.Config(
            application(mixer, found, token), log_level="warning", access_log=False, server_header=False,
            limit_concurrency=32, timeout_keep_alive=5, timeout_graceful_shutdown=1, ws="none",
        )  # fmt: skip
        listening.listen()
        ready(f"http://127.0.0.1:{found}/#{token}")
        uvicorn.Server(config).run(sockets=[listening])


def _parsed(body: bytes) -> Any:
    """JSON without NaN, infinities, and keys that are there twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key is there twice")
        return found

    def refused(word: str) -> Any:
        raise ValueError(f"{word} is no number of JSON")

    try:
        return json.loads(body, object_pairs_hook=once, parse_constant=refused)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the body is not JSON: {error}.") from error


async def _events(mixer: Mixer, request: "Request") -> AsyncIterator[str]:
    """An event whenever the run is further, until it is done or the page is closed."""
    last = None
    while not await request.is_disconnected():
        now = await asyncio.to_thread(mixer.progress)
        if now != last:
            yield f"data: {json.dumps(now)}\n\n"
            last = now
        if now["done"] >= now["stages"]:
            return
        await asyncio.sleep(_EVERY)
