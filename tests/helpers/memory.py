"""The most anonymous memory of a process of its own; Linux says it, in /proc."""

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.runs import script_environment

on_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is Linux's")

_WATCHED = """
import re, sys, threading
from pathlib import Path
{prepared}
peak, status, over = [0], Path("/proc/self/status"), threading.Event()
def watch():
    while not over.wait(0.002):
        peak[0] = max(peak[0], int(re.search(r"RssAnon:\\s+(\\d+)", status.read_text())[1]))
watcher = threading.Thread(target=watch)
watcher.start()
{work}
over.set()
watcher.join()
print(peak[0])
"""


def peak_mb(prepared: str, work: str, *arguments: object) -> float:
    """MB at the peak of `work`, which finds the arguments in `sys.argv`; imports belong to `prepared`."""
    command = [
        sys.executable, "-c", _WATCHED.format(prepared=prepared, work=work), *map(str, arguments)
    ]  # fmt: skip
    done = subprocess.run(command, env=script_environment(), capture_output=True, check=True, text=True)
    return int(done.stdout.split()[-1]) / 1024
