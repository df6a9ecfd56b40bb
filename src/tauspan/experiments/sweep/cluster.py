"""Jobs on a cluster, through Ray (the extra `ray`)."""

import importlib
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tauspan.core.errors import MissingExtraError, UsageError
from tauspan.experiments.sweep.job import Job
from tauspan.experiments.sweep.pool import Died, variables
from tauspan.experiments.sweep.worker import Outcome, perform


class Ray:
    """Jobs as Ray tasks, each with `threads` CPUs and, for `"cuda"`, a GPU.

    A program that has called `ray.init` uses its own cluster. Otherwise Ray looks for a cluster (the variable
    RAY_ADDRESS), and starts one on this machine if there is none. tauspan and the job's module must be installed on
    every node.

    Raises:
        MissingExtraError: ray is not installed.
        UsageError: no node has that many CPUs.
    """

    def __init__(self, threads: int, device: str | None = None) -> None:
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise MissingExtraError("backend='ray' needs ray: pip install 'tauspan[ray]'.") from error
        self._running: dict[str, Any] = {}
        self._ours = not self._ray.is_initialized()
        if self._ours:
            self._ray.init(log_to_driver=False)
        most = max(
            (int(node["Resources"].get("CPU", 0)) for node in self._ray.nodes() if node["Alive"]), default=0
        )
        if most < threads:
            self.close()
            raise UsageError(
                f"threads={threads}, and the largest node of the Ray cluster has {most} CPUs: such a job would wait "
                f"for ever. Give threads={most} or less."
            )
        # Ray must not retry: the sweep itself starts a lost task again, and counts the attempts
        settings = {
            "num_cpus": threads, "num_gpus": int(device == "cuda"), "max_retries": 0,
            "runtime_env": {"env_vars": variables(threads, device)},
        }  # fmt: skip
        self._perform = self._ray.remote(**settings)(perform)

    def start(self, job: Job, log: Path) -> str:
        """Hand the job to Ray, which chooses the node, and return `ray` as the worker's name."""
        self._running[job.name] = self._perform.remote(job.function, dict(job.arguments))
        return "ray"

    def wait(self, seconds: float) -> Mapping[str, Outcome | Died]:
        """The outcomes that have arrived, and `Died` for tasks whose worker or node was lost."""
        if not self._running:
            time.sleep(seconds)
            return {}
        ready, _ = self._ray.wait(list(self._running.values()), num_returns=1, timeout=seconds)
        done: dict[str, Outcome | Died] = {}
        for name in [name for name, task in self._running.items() if task in ready]:
            try:
                done[name] = self._ray.get(self._running.pop(name))
            except self._ray.exceptions.RayError as error:
                done[name] = Died(f"Ray lost it: {str(error).strip().splitlines()[0]}")
        return done

    def close(self) -> None:
        """Cancel the tasks that are running, and end the cluster if it was started here."""
        for task in self._running.values():
            with suppress(self._ray.exceptions.RayError):
                self._ray.cancel(task, force=True)
        if self._ours:
            self._ray.shutdown()
