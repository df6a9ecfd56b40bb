"""Jobs for the tests of the sweep; imported by its workers, so nothing heavy is imported here."""

import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tauspan.core.errors import BaseMismatchError, UsageError


class NarrowerError(UsageError):
    """An error that only this module knows."""


def double(number: float) -> float:
    return 2 * number


def shapes(**given: Any) -> Any:
    return {"given": given, "pair": (1, 2), "none": None, "text": "ä"}


def count(place: str, name: str, seconds: float = 0.0) -> str:
    """Leaves a file that can be made only once; a second execution fails."""
    Path(place, f"{name}.begun-{os.getpid()}").touch()
    os.close(os.open(Path(place, name), os.O_CREAT | os.O_EXCL))
    time.sleep(seconds)
    return name


def meet(place: str, name: str) -> str:
    """As `count`, and does not end before four processes have begun a job."""
    count(place, name)
    for _ in range(600):
        if len({path.suffix for path in Path(place).glob("*.begun-*")}) >= 4:
            return name
        time.sleep(0.05)
    raise TimeoutError("the work is not shared")


def devices(place: str, name: str, workers: int) -> list[str | None]:
    """What the worker knows of its device, once so many workers have begun a job."""
    Path(place, f"{name}.begun-{os.getpid()}").touch()
    for _ in range(600):
        if len({path.suffix for path in Path(place).glob("*.begun-*")}) >= workers:
            return [os.environ.get("TAUSPAN_DEVICE"), os.environ.get("CUDA_VISIBLE_DEVICES")]
        time.sleep(0.05)
    raise TimeoutError("too few workers")


def die_first(place: str, deaths: int, how: str = "kill") -> int:
    """Ends its own process the first few times."""
    before = len(list(Path(place).iterdir()))
    if before < deaths:
        Path(place, str(os.getpid())).touch()
        if how == "exit":
            os._exit(7)
        os.kill(os.getpid(), signal.SIGKILL)
    return before


def die_and_leave_a_child(place: str) -> str:
    """Its child outlives it, and holds every file it had open."""
    mark = Path(place, "child")
    if mark.exists():
        return mark.read_text()
    child = os.fork()
    if not child:
        time.sleep(60)
        Path(place, "outlived").touch()
        os._exit(0)
    mark.write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def fail(kind: str, text: str = "no") -> None:
    if kind == "mismatch":
        raise BaseMismatchError(text)
    if kind == "narrower":
        raise NarrowerError(text)
    if kind == "system":
        sys.exit(text)
    raise ZeroDivisionError(text)


def give(what: str) -> Any:
    return {"nan": float("nan"), "object": object(), "keys": {1: 2}, "set": {1}, "text": "\ud800"}[what]


def chatter(words: str) -> str:
    """Writes wherever a job could write."""
    sys.stdout.write(f"{words}\n")
    os.write(1, f"raw {words}\n".encode())
    os.system(f"echo child {words} >&2")
    return words


def scribble() -> None:
    """Writes into every connection it finds."""
    for descriptor in range(3, 30):
        try:
            os.write(descriptor, b"\0\0\0\x05{bad}")
        except OSError:
            continue
    time.sleep(60)


def environment() -> dict[str, Any]:
    return {
        "threads": [os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")],
        "device": os.environ.get("TAUSPAN_DEVICE"),
        "torch": "torch" in sys.modules,
        "pid": os.getpid(),
        "stdin": sys.stdin.read(),
    }


def draw(seed: int, size: int) -> dict[str, Any]:
    """Numbers of torch, whose last digits would show another way of computing."""
    import torch

    drawn = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return {
        "sum": float(drawn.sum()),
        "product": float(drawn.sin() @ drawn.cos()),
        "most": drawn.max().item(),
    }


def torch_threads() -> int:
    import torch

    return torch.get_num_threads()


def wait_here(place: str, name: str) -> None:
    """Says that it runs, and then does so until it is ended; a half-made file goes when it is interrupted."""
    half = Path(place, f"{name}.half")
    half.touch()
    Path(place, f"{name}.{os.getpid()}").touch()
    try:
        time.sleep(60)
    finally:
        half.unlink()


def warn(text: str) -> int:
    """As the library warns."""
    logging.getLogger("tauspan.tangent").warning("%s", text)
    return 1


def long_work(words: str) -> str:
    """Work that does not take its second step before its log tells of the first."""
    from tauspan.core import measure

    measure.SILENCE = 0.01
    log = Path(os.readlink("/proc/self/fd/2"))
    with measure.progress(words, 2) as advance:
        advance(1, "")
        for _ in range(600):
            if f"{words}: 1 of 2" in log.read_text():
                return words
            time.sleep(0.05)
    raise TimeoutError("nothing was told")
