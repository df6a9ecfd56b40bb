"""Diagnostics of tasks and vectors by the tangent kernel: what it sees, where it acts, and whether it holds.

Each diagnostic is a pure function that returns a small frozen result, whose numbers are `Estimate`s with the estimator's
name, and a standard error where they are estimated. `kernel_report` and `diagnose` gather them.
"""

from tauspan.kernel.diagnose.alignment import (
    LabelAlignment,
    centred_alignment,
    cross_task_alignment,
    kernel_change,
    kernel_distance,
    kernel_target_alignment,
    kernel_velocity,
    label_gradient_alignment,
    principal_angles,
)
from tauspan.kernel.diagnose.energy import Eigenfunctions, LocalEnergy, local_energy
from tauspan.kernel.diagnose.gather import diagnose, kernel_report
from tauspan.kernel.diagnose.lazy import Gap, Path, lazy_coefficient, linearity, posthoc_gap
from tauspan.kernel.diagnose.spectra import Power, Ranks, cumulative_power, effective_ranks

__all__ = [
    "Eigenfunctions",
    "Gap",
    "LabelAlignment",
    "LocalEnergy",
    "Path",
    "Power",
    "Ranks",
    "centred_alignment",
    "cross_task_alignment",
    "cumulative_power",
    "diagnose",
    "effective_ranks",
    "kernel_change",
    "kernel_distance",
    "kernel_report",
    "kernel_target_alignment",
    "kernel_velocity",
    "label_gradient_alignment",
    "lazy_coefficient",
    "linearity",
    "local_energy",
    "posthoc_gap",
    "principal_angles",
]
