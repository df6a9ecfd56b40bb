"""Several processes of one machine under torchrun, joined by gloo; one launch serves every test file."""

import functools
import socket
import subprocess
import sys
from pathlib import Path

from helpers.runs import script_environment

TRAIN = Path(__file__).parents[1] / "train"
SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {folder!r})
import test_processes, test_sharded
test_processes.as_one_of_several(Path(sys.argv[1]))
test_sharded.as_one_of_several(Path(sys.argv[1]))
"""


@functools.cache
def launched(folder: Path, processes: int) -> Path:
    """A folder with what so many processes made of both files' work; an error unless every process ends well."""
    sys.path.insert(0, str(TRAIN))
    import test_sharded

    sys.path.remove(str(TRAIN))
    here = folder / f"processes-{processes}"
    here.mkdir()
    test_sharded.before(here)
    file = here / "script.py"
    file.write_text(SCRIPT.format(folder=str(TRAIN)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", port]
    command = [sys.executable, *launcher, str(file), str(here)]
    done = subprocess.run(command, env=script_environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    return here
