"""What a language model still knows of people after it was made to forget them: one study over all methods here."""

from benchmarks.unlearning.plan import Plan
from benchmarks.unlearning.study import study

__all__ = ["Plan", "study"]
