"""Data sets of the paper: descriptions, opening as tasks, split manifests and the search for leaks.

Each data set is one YAML file in `sets`; adding one needs no code. `open_task` reads it from the hub or from a
folder, `manifest` records which rows it has, and `find_leaks` finds rows that are in two splits.
"""

from tauspan.tasks.data.catalog import CONTROL, EIGHT, FOURTEEN, TWENTY, DataSet, catalog, find_set
from tauspan.tasks.data.leaks import Leak, Leaks, find_leaks, seen_elsewhere
from tauspan.tasks.data.manifest import check_manifest, manifest, write_manifest
from tauspan.tasks.data.opening import open_task

__all__ = [
    "CONTROL", "EIGHT", "FOURTEEN", "TWENTY", "DataSet", "Leak", "Leaks", "catalog", "check_manifest",
    "find_leaks", "find_set", "manifest", "open_task", "seen_elsewhere", "write_manifest",
]  # fmt: skip
