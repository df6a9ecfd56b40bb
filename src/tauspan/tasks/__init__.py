"""Tasks: labelled rows in three splits, their readers and their frozen heads.

Rows are never repaired: a label outside the range, an empty split or a wrong checksum is an error that names
the row or the file.
"""

from tauspan.tasks.equiangular import with_orthogonal_heads
from tauspan.tasks.heads import build_head
from tauspan.tasks.people import Fact, Person, made_up_people, people_task
from tauspan.tasks.relative import RelativeHead, relative_features, relative_head
from tauspan.tasks.split import SPLITS, Split, permutation
from tauspan.tasks.task import Task

__all__ = [
    "SPLITS", "Fact", "Person", "RelativeHead", "Split", "Task", "build_head", "made_up_people", "people_task",
    "permutation", "relative_features", "relative_head", "with_orthogonal_heads",
]  # fmt: skip
