"""When linear fine-tuning helps task arithmetic: one study over training length, learning rate, point and data."""

from benchmarks.study.cells import study
from benchmarks.study.plan import Plan

__all__ = ["Plan", "study"]
