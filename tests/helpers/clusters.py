"""Real clusters on this machine, for tests: Dask's, Slurm's and Ray's; without one the tests that need it are skipped."""

from collections.abc import Iterator
from typing import Any

import pytest

from helpers import slurm
from helpers.sweeps import WHERE

CPUS = 2
# the libraries' own: files that they leave open, and what they will change
QUIET = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)


@pytest.fixture(scope="module")
def dask() -> Iterator[Any]:
    """A client of two workers, each a process under a nanny, which starts another one when it dies."""
    library = pytest.importorskip("distributed", reason="distributed is not installed: the extra `real`")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", WHERE)
        with (
            library.LocalCluster(
                n_workers=CPUS, threads_per_worker=1, processes=True, dashboard_address=None
            ) as cluster,
            library.Client(cluster) as client,
        ):
            yield client


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """submitit's executor on a Slurm of one node."""
    why = slurm.missing()
    if why:
        pytest.skip(why)
    library = pytest.importorskip("submitit", reason="submitit is not installed: the extra `real`")
    folder = tmp_path_factory.mktemp("slurm")
    with slurm.slurm(folder) as config, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(config))
        patch.setenv("PYTHONPATH", WHERE)
        executor = library.AutoExecutor(folder / "jobs", cluster="slurm")
        executor.update_parameters(timeout_min=2, cpus_per_task=1)
        yield executor


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A Ray that was there before the sweeps; its workers look only where every node does, so they are told where."""
    library = pytest.importorskip("ray", reason="ray is not installed: the extra `real`")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", WHERE)
        patch.setenv("RAY_worker_niceness", "0")  # its own 15 gives workers nothing beside other work
        library.init(num_cpus=CPUS, include_dashboard=False, log_to_driver=False)
        yield library
        library.shutdown()


def backend_of(cluster: Any) -> Any:
    """What a sweep is told of a cluster."""
    if getattr(cluster, "__name__", "") == "ray":
        return "ray"
    return cluster.get_executor() if hasattr(cluster, "get_executor") else cluster
