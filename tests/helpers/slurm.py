"""A Slurm of one node on this machine, with accounting, for tests: the real daemons, in a folder.

submitit asks the accounting what became of a job, so a Slurm without it never says that one died.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmdbd", "sacctmgr", "mariadbd", "mariadb-install-db")
CPUS = 2
CLUSTER = """ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
ACCOUNTS = """DbdHost=localhost
DbdAddr=127.0.0.1
AuthType=auth/munge
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={port}
StorageUser=slurm
StoragePass=slurm
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
"""
USERS = "".join(
    f"create user 'slurm'@'{host}' identified by 'slurm';\ngrant all on slurm_acct_db.* to 'slurm'@'{host}';\n"
    for host in ("localhost", "127.0.0.1")
)


def missing() -> str | None:
    """Why there can be no Slurm here, in words."""
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    if lacking:
        return f"no {', '.join(lacking)}; on Debian: apt-get install slurm-wlm slurmdbd munge mariadb-server"
    return None if os.geteuid() == 0 else "slurmd needs to be root"


@contextmanager
def slurm(folder: Path) -> Iterator[Path]:
    """Inside the block the daemons run, and the block gets the configuration, for `SLURM_CONF`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    host = socket.gethostname().partition(".")[0]
    config = folder / "slurm.conf"
    config.write_text(CLUSTER.format(folder=folder, host=host, cpus=CPUS), encoding="utf-8")
    accounts = folder / "slurmdbd.conf"
    accounts.write_text(ACCOUNTS.format(folder=folder, port=port), encoding="utf-8")
    accounts.chmod(0o600)
    there = os.environ | {"SLURM_CONF": str(config)}
    with ExitStack() as stack:
        _munge(stack)
        _database(stack, folder, port)
        stack.enter_context(_daemon(["slurmdbd", "-D"], there))
        _until(lambda: _says(["sacctmgr", "-i", "add", "cluster", "tests"], there) != "")
        for name in ("slurmctld", "slurmd"):
            stack.enter_context(_daemon([name, "-D"], there))
        _until(lambda: _says(["sinfo", "--noheader", "--format=%t"], there) == "idle")
        yield config


def _munge(stack: ExitStack) -> None:
    """The daemon that signs Slurm's messages, as the user of its package; one that runs already is taken."""
    if _says(["munge", "-n"], dict(os.environ)):
        return
    for place in ("/run/munge", "/var/log/munge", "/var/lib/munge"):
        Path(place).mkdir(exist_ok=True)
        shutil.chown(place, "munge", "munge")
    as_munge = ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged", "--foreground"]
    stack.enter_context(_daemon(as_munge, dict(os.environ)))
    _until(lambda: _says(["munge", "-n"], dict(os.environ)) != "")


def _database(stack: ExitStack, folder: Path, port: int) -> None:
    data, users = folder / "database", folder / "users.sql"
    users.write_text(USERS, encoding="utf-8")
    made = [
        "mariadb-install-db",
        "--user=root",
        f"--datadir={data}",
        "--auth-root-authentication-method=normal",
    ]
    subprocess.run(made, check=True, capture_output=True)
    served = ["mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={folder}/sql.sock",
              f"--port={port}", "--bind-address=127.0.0.1", f"--init-file={users}"]  # fmt: skip
    stack.enter_context(_daemon(served, dict(os.environ)))


@contextmanager
def _daemon(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    daemon = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        daemon.terminate()
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _says(command: list[str], environment: dict[str, str]) -> str:
    """What a program prints; nothing if it fails."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _until(true: Callable[[], bool]) -> None:
    for _ in range(120):
        if true():
            return
        time.sleep(0.5)
    raise TimeoutError("Slurm does not come up; its logs are in the test's folder")
