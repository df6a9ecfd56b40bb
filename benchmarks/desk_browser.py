"""A headless Chromium for the mixing desk's page: opened from disk, nothing of the network reachable."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
_BAD = ("error", "warning")
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def missing() -> str | None:
    """Why no browser can be driven here, or None."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed: pip install playwright"
    return None if CHROMIUM else "no chromium on the path: apt-get install chromium"


@contextmanager
def browser() -> Iterator[Any]:
    """A running browser; `new_context` makes windows of any size and colour scheme."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        running = play.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        try:
            yield running
        finally:
            running.close()


@contextmanager
def opened(running: Any, html: str, **options: Any) -> Iterator[Any]:
    """The page, opened from a file; what it asked for and complained about: `page.requests`, `page.complaints`."""
    context = running.new_context(**options)
    with tempfile.NamedTemporaryFile("w", suffix=".html", encoding="utf-8") as file:
        file.write(html)
        file.flush()
        page = context.new_page()
        page.requests, page.complaints = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on(
            "console",
            lambda message: (
                page.complaints.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(f"file://{file.name}")
        until(page, "performance.getEntriesByName('desk-ready').length > 0")
        try:
            yield page
        finally:
            context.close()


def until(page: Any, expression: str, seconds: float = 20.0) -> None:
    """Wait for something to be true; the driver's own waiting evaluates text inside the page, which its policy forbids.

    Raises:
        TimeoutError: it did not become true.
    """
    end = time.monotonic() + seconds
    while not page.evaluate(f"() => Boolean({expression})"):
        if time.monotonic() > end:
            raise TimeoutError(f"not true within {seconds:g} seconds: {expression}")
        page.wait_for_timeout(20)
