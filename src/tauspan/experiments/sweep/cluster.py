"""Ray (the extra `ray`) as an executor."""

import importlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tauspan.core.errors import MissingExtraError, UsageError
from tauspan.experiments.sweep.pool import variables


class Ray:
    """Calls as Ray tasks, each with `threads` CPUs and, for `"cuda"`, a GPU.

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
        self._tasks: list[Any] = []
        self._ours = not self._ray.is_initialized()
        if self._ours:
            self._ray.init(log_to_driver=False)
        most = max(
            (int(node["Resources"].get("CPU", 0)) for node in self._ray.nodes() if node["Alive"]), default=0
        )
        if most < threads:
            self.shutdown()
            raise UsageError(
                f"threads={threads}, and the largest node of the Ray cluster has {most} CPUs: such a job would wait "
                f"for ever. Give threads={most} or less."
            )
        # Ray must not retry: the sweep itself starts a lost task again, and counts the attempts
        self._settings = {
            "num_cpus": threads, "num_gpus": int(device == "cuda"), "max_retries": 0,
            "runtime_env": {"env_vars": variables(threads, device)},
        }  # fmt: skip

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Any:
        """Hand the call to Ray, which chooses the node, and return a future of `concurrent.futures`."""
        task = self._ray.remote(**self._settings)(function).remote(*arguments)
        self._tasks.append(task)
        return task.future()

    def shutdown(self, wait: bool = False, cancel_futures: bool = True) -> None:
        """Cancel the tasks that are running, and end the cluster if it was started here."""
        for task in self._tasks:
            with suppress(self._ray.exceptions.RayError):
                self._ray.cancel(task, force=True)
        if self._ours:
            self._ray.shutdown()
