"""Fixtures of the runs, and the clusters of this machine."""

from helpers.clusters import dask, queue, ray  # noqa: F401
from helpers.small_runs import recipe  # noqa: F401
