"""The program of a worker process: it does jobs one after the other, until the sweep ends it or has itself ended.

The file is run as a program, not as a module of its package, and imports neither torch nor the package's other
modules: a worker starts at once and holds only what its jobs load.
"""

import importlib
import json
import math
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

from tauspan.core.errors import NonFiniteError, TauspanError, UsageError, nearest
from tauspan.core.notices import heard

Outcome: TypeAlias = dict[str, Any]


def function_of(spelt: str) -> Callable[..., Any]:
    """The function that `module:function` names.

    Raises:
        UsageError: the module cannot be imported, or has no such function.
    """
    module, _, name = spelt.partition(":")
    try:
        home = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a module may fail in any way when it is first run
        raise UsageError(
            f"the function {spelt!r} is not there: importing {module!r} failed ({_last_line(error)}). Workers import "
            "what this process can import: install the module, or put its folder on PYTHONPATH."
        ) from error
    function: Callable[..., Any] | None = getattr(home, name, None)
    if not callable(function):
        known = [key for key, value in vars(home).items() if callable(value) and not key.startswith("_")]
        what = "is not a function" if hasattr(home, name) else "is not there"
        raise UsageError(f"{module!r} is imported, but {name!r} {what} in it. {nearest(name, known)}")
    return function


def plain(value: Any, what: str) -> Any:
    """A value as JSON keeps it: tuples become lists; whatever would be lost or changed otherwise is refused.

    Raises:
        UsageError: a type that JSON does not have, a key that is no text, or a value that holds itself.
        NonFiniteError: NaN or infinity.
    """
    try:
        return _plain(value, what)
    except RecursionError as error:
        raise UsageError(f"{what} holds itself, or is nested too deeply for JSON.") from error


def _plain(value: Any, what: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise UsageError(f"{what} is {value!r}, which is no text that UTF-8 can hold.")
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NonFiniteError(f"{what} is {value}, which JSON does not have: give None or a text instead.")
        return float(value)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{what}[{place}]") for place, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise UsageError(
                    f"{what} has the key {key!r}, and JSON's keys are texts: write {str(key)!r}."
                )
        return {key: _plain(item, f"{what}.{key}") for key, item in value.items()}
    raise UsageError(
        f"{what} is a {type(value).__name__}, which JSON does not have: give numbers, texts, lists and mappings "
        "(a path as str(path), a tensor as a file's name)."
    )


def perform(function: str, arguments: Mapping[str, Any]) -> Outcome:
    """Call a function, and describe the outcome in plain values.

    Returns:
        `seconds` with `result`, or with `error`: `type` (the nearest class of `tauspan.core.errors`, or None), `text`,
        `line` (how Python ends the traceback, and where it was raised) and the whole `traceback`; and `warnings`, what
        tauspan warned of.
    """
    began = time.perf_counter()
    with heard() as warned:
        try:
            made: Outcome = {"result": plain(function_of(function)(**arguments), "its result")}
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a job may also call sys.exit
            made = {"error": _described(error)}
    return made | {"warnings": warned, "seconds": round(time.perf_counter() - began, 3)}


def _described(error: BaseException) -> dict[str, str | None]:
    kind = None
    if isinstance(error, TauspanError):
        kind = next(one.__name__ for one in type(error).__mro__ if one.__module__ == TauspanError.__module__)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    trace = "".join(traceback.format_exception(error))
    line = f"{_last_line(error)} ({os.path.basename(frame.filename)}, line {frame.lineno})"
    made = {"type": kind, "text": str(error), "line": line, "traceback": trace}
    # characters that cannot be encoded become escapes
    return {key: value and value.encode(errors="backslashreplace").decode() for key, value in made.items()}


def _last_line(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()


def main(handle: int) -> None:
    """Take jobs from the connection with that file descriptor, and answer each."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT
    connection = Connection(handle)
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()
    while (job := inbox.get()) is not None:
        _redirect(job["log"])
        outcome = perform(job["function"], job["arguments"])
        sys.stdout.flush()
        sys.stderr.flush()
        connection.send_bytes(json.dumps(outcome).encode())


def _listen(connection: Connection, inbox: "queue.SimpleQueue[Any]") -> None:
    """Pass messages on to the inbox; if the sweep's process has ended, kill this worker and what it started."""
    try:
        while True:
            inbox.put(json.loads(connection.recv_bytes()))
    except (EOFError, OSError):
        os.killpg(os.getpid(), signal.SIGKILL)  # with what the job started; a worker leads its own group


def _redirect(log: str) -> None:
    """From now on, append everything that is printed to a file, also by C code and child processes."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]))
    except KeyboardInterrupt:
        sys.exit(130)
