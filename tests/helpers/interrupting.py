"""A fine-tuning that stops half way."""

from typing import Any


def interrupt(monkeypatch: Any, owner: Any, name: str, call: int, after: bool = False) -> None:
    """The user presses Ctrl-C just before, or just after, the given call (from 0) of a method."""
    plain, calls = getattr(owner, name), iter(range(10**6))

    def stopped(*args: Any, **kwargs: Any) -> Any:
        now = next(calls) == call
        if now and not after:
            raise KeyboardInterrupt
        result = plain(*args, **kwargs)
        if now:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, name, stopped)
