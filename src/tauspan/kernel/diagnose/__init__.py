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
from tauspan.kernel.diagnose.checkpoints import checkpoint_trajectory
from tauspan.kernel.diagnose.concepts import ConceptFactorisation, ConceptPart, concept_factorisation
from tauspan.kernel.diagnose.departure import Departure, departure
from tauspan.kernel.diagnose.energy import Eigenfunctions, LocalEnergy, local_energy
from tauspan.kernel.diagnose.gather import Diagnosis, diagnose, kernel_report
from tauspan.kernel.diagnose.kernels import TaskPairs, TaskSpectrum, task_pairs, task_spectrum
from tauspan.kernel.diagnose.lazy import Linearity, PosthocGap, lazy_coefficient, linearity, posthoc_gap
from tauspan.kernel.diagnose.lazy_path import GradientDescent
from tauspan.kernel.diagnose.low_rank import low_rank_start
from tauspan.kernel.diagnose.motion import kernel_change, kernel_distance, kernel_velocity
from tauspan.kernel.diagnose.outlook import Outlook, TaskOutlook, outlook
from tauspan.kernel.diagnose.planning import KernelPlan, TaskPace, kernel_plan
from tauspan.kernel.diagnose.ranks import Alignment, MatrixRank, StartRanks, start_ranks, task_gradient
from tauspan.kernel.diagnose.recording import Recorder, spaced_steps
from tauspan.kernel.diagnose.relative import RelativeDrift, relative_drift
from tauspan.kernel.diagnose.rows import Findings, KernelOutputs, KernelSettings, TaskKernel, task_kernels
from tauspan.kernel.diagnose.spectra import CumulativePower, EffectiveRanks, cumulative_power, effective_ranks
from tauspan.kernel.diagnose.trajectory import Trajectory, trajectory
from tauspan.kernel.diagnose.vectors import (
    TaskEnergy,
    TaskInterference,
    TaskPath,
    task_energies,
    task_interference,
    task_paths,
)
from tauspan.kernel.diagnose.walk import PathPoint, PathScore
from tauspan.kernel.diagnose.width import (
    CoordinateCheck,
    LayerMotion,
    LinearNet,
    Mup,
    ParameterScale,
    Parametrisation,
    coordinate_check,
    linear_limit,
    mup,
)

__all__ = [
    "Alignment",
    "ConceptFactorisation",
    "ConceptPart",
    "CoordinateCheck",
    "CumulativePower",
    "Departure",
    "Diagnosis",
    "EffectiveRanks",
    "Eigenfunctions",
    "Findings",
    "GradientDescent",
    "KernelOutputs",
    "KernelPlan",
    "KernelSettings",
    "LabelAlignment",
    "LayerMotion",
    "LinearNet",
    "Linearity",
    "LocalEnergy",
    "MatrixRank",
    "Mup",
    "Outlook",
    "ParameterScale",
    "Parametrisation",
    "PathPoint",
    "PathScore",
    "PosthocGap",
    "Recorder",
    "RelativeDrift",
    "StartRanks",
    "TaskEnergy",
    "TaskInterference",
    "TaskKernel",
    "TaskOutlook",
    "TaskPace",
    "TaskPairs",
    "TaskPath",
    "TaskSpectrum",
    "Trajectory",
    "centred_alignment",
    "checkpoint_trajectory",
    "concept_factorisation",
    "coordinate_check",
    "cross_task_alignment",
    "cumulative_power",
    "departure",
    "diagnose",
    "effective_ranks",
    "kernel_change",
    "kernel_distance",
    "kernel_plan",
    "kernel_report",
    "kernel_target_alignment",
    "kernel_velocity",
    "label_gradient_alignment",
    "lazy_coefficient",
    "linear_limit",
    "linearity",
    "local_energy",
    "low_rank_start",
    "mup",
    "outlook",
    "posthoc_gap",
    "principal_angles",
    "relative_drift",
    "spaced_steps",
    "start_ranks",
    "task_energies",
    "task_gradient",
    "task_interference",
    "task_kernels",
    "task_pairs",
    "task_paths",
    "task_spectrum",
    "trajectory",
]  # fmt: skip
