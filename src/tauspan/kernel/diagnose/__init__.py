"""Diagnostics of tasks and vectors by the tangent kernel: what it sees, where it acts, and whether it holds.

Each diagnostic is a pure function that returns a small frozen result, whose numbers are `Estimate`s with the estimator's
name, and a standard error where they are estimated. `kernel_report` and `diagnose` gather them in a `Diagnosis`.
"""

from tauspan.kernel.diagnose.alignment import (
    LabelAlignment,
    centred_alignment,
    cross_task_alignment,
    kernel_target_alignment,
    label_gradient_alignment,
    principal_angles,
)
from tauspan.kernel.diagnose.energy import Eigenfunctions, LocalEnergy, local_energy
from tauspan.kernel.diagnose.gather import Diagnosis, diagnose, kernel_report
from tauspan.kernel.diagnose.kernels import TaskPairs, TaskSpectrum, task_pairs, task_spectrum
from tauspan.kernel.diagnose.lazy import Linearity, PosthocGap, lazy_coefficient, linearity, posthoc_gap
from tauspan.kernel.diagnose.low_rank import low_rank_start
from tauspan.kernel.diagnose.motion import kernel_change, kernel_distance, kernel_velocity
from tauspan.kernel.diagnose.planning import KernelPlan, TaskPace, kernel_plan
from tauspan.kernel.diagnose.ranks import Alignment, MatrixRank, StartRanks, start_ranks, task_gradient
from tauspan.kernel.diagnose.rows import Findings, KernelOutputs, KernelSettings, TaskKernel, task_kernels
from tauspan.kernel.diagnose.spectra import (
    CumulativePower,
    EffectiveRanks,
    cumulative_power,
    effective_ranks,
)
from tauspan.kernel.diagnose.vectors import (
    TaskEnergy,
    TaskInterference,
    TaskPath,
    task_energies,
    task_interference,
    task_paths,
)

__all__ = [
    "Alignment", "CumulativePower", "Diagnosis", "EffectiveRanks", "Eigenfunctions", "Findings", "KernelOutputs",
    "KernelPlan", "KernelSettings", "LabelAlignment", "Linearity", "LocalEnergy", "MatrixRank", "PosthocGap",
    "StartRanks", "TaskEnergy", "TaskInterference", "TaskKernel", "TaskPace", "TaskPairs", "TaskPath",
    "TaskSpectrum", "centred_alignment", "cross_task_alignment", "cumulative_power", "diagnose", "effective_ranks",
    "kernel_change", "kernel_distance", "kernel_plan", "kernel_report", "kernel_target_alignment",
    "kernel_velocity", "label_gradient_alignment", "lazy_coefficient", "linearity", "local_energy",
    "low_rank_start", "posthoc_gap", "principal_angles", "start_ranks", "task_energies", "task_gradient",
    "task_interference", "task_kernels", "task_pairs", "task_paths", "task_spectrum",
]  # fmt: skip
