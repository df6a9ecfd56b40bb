"""Fixtures of the runs."""

from helpers.small_runs import recipe  # noqa: F401
