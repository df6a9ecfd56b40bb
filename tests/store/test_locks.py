"""Locks: held by one, freed by death, and nothing of one system alone is imported."""

import errno
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tauspan.store import LOCK, locked

HOLDER = """
import sys
from contextlib import suppress
from pathlib import Path
from tauspan.store import locked
with locked(Path(sys.argv[1])) as free:
    print(free, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_lock_is_held_by_one_and_freed_when_its_process_dies(tmp_path: Path, kind: str) -> None:
    path = tmp_path if kind == "folder" else tmp_path / "one"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with locked(path) as free:
            assert not free
        holder.send_signal(signal.SIGKILL)
        with locked(path, wait=True) as free:  # it waits for the death
            assert free
    assert [file.name for file in tmp_path.iterdir()] == [LOCK if kind == "folder" else "one"]


def test_a_lock_is_held_by_one_within_a_process_and_after_an_error_it_is_free(tmp_path: Path) -> None:
    with locked(tmp_path) as first, locked(tmp_path) as second:
        assert (first, second) == (True, False)
    with suppress(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    with locked(tmp_path) as free:
        assert free


def test_a_file_system_without_locks_gives_none_and_other_errors_are_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(lock: object, timeout: float) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr("tauspan.store.places.FileLock.acquire", refuses)
    number = errno.ENOLCK
    with locked(tmp_path) as free:
        assert not free
    number = errno.EACCES
    with pytest.raises(PermissionError), locked(tmp_path):
        pass


WITHOUT = """
import pkgutil, sys
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None  # as on a system that lacks it
import filelock  # it looks for itself
import tauspan.store, tauspan.core.measure, tauspan.experiments.sweep, tauspan.merge.stream.stream, tauspan.cli.main
with tauspan.core.measure.measured() as cost:
    pass
assert cost.peak_mb >= 0
"""


def test_no_module_needs_what_one_system_alone_has() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
