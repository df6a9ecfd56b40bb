"""When linear fine-tuning helps task arithmetic: one study over training length, learning rate, point and data."""

from tauspan.study.cells import study
from tauspan.study.plan import Plan

__all__ = ["Plan", "study"]
