"""The tangent kernel: the operator, its solvers and approximations, and what it says about tasks before they are merged.

`Kernel` is the base class of all kernels: `TangentKernel` of a model, `UnionKernel` of several tasks, `DenseKernel` of a
matrix, `LowRankKernel` of a factor. The sub-packages `tauspan.kernel.diagnose` (diagnostics of tasks and vectors) and
`tauspan.kernel.analytic` (kernels of infinitely wide nets) are public too; all other modules are not.
"""

from tauspan.kernel.approximate.design import DRAWS, Design, design, enough
from tauspan.kernel.approximate.lowrank import Nystrom, determinantal, nystrom, pivoted_cholesky
from tauspan.kernel.approximate.reduced import Reduction, reduced
from tauspan.kernel.operator.budget import Budget, Descent, Flow
from tauspan.kernel.operator.closed_form import ClosedForm, closed_form, logits_at_base, task_vector
from tauspan.kernel.operator.factored import kronecker
from tauspan.kernel.operator.forecast import forecast
from tauspan.kernel.operator.ghosts import Ghosts
from tauspan.kernel.operator.interference import Interference, interference
from tauspan.kernel.operator.joint import Joint, joint
from tauspan.kernel.operator.losses import LOSSES, Loss, LossProblem, LossSolution
from tauspan.kernel.operator.pool import pool_kernel
from tauspan.kernel.operator.projection import Projection, project
from tauspan.kernel.operator.starts import Forecast, Outcome, Start
from tauspan.kernel.operator.superposed import Superposed, superpose
from tauspan.kernel.operator.tangent import TangentKernel
from tauspan.kernel.operator.union import UnionKernel
from tauspan.kernel.operator.unlearning import RidgeFit
from tauspan.kernel.rows.selector import Outputs
from tauspan.kernel.rows.tiles import Backend
from tauspan.kernel.solvers.base import Kernel
from tauspan.kernel.solvers.cg import solve_cg
from tauspan.kernel.solvers.eigenpairs import EigenPairs, eigenpairs
from tauspan.kernel.solvers.estimates import Estimate, participation_rank, squared_norm, trace
from tauspan.kernel.solvers.flow import Modes
from tauspan.kernel.solvers.hinge import Margins, margins, one_vs_rest, solve_hinge
from tauspan.kernel.solvers.kernels import DenseKernel, LowRankKernel
from tauspan.kernel.solvers.kronecker import KroneckerKernel
from tauspan.kernel.solvers.newton import solve_cross_entropy
from tauspan.kernel.solvers.quadrature import effective_dimension, logdet
from tauspan.kernel.solvers.regression import RidgeChoice, choose_ridge, leave_one_out, solve_ridge
from tauspan.kernel.solvers.solution import DualSolution
from tauspan.kernel.solvers.subgradient import Rate, dual_steps, primal_steps

__all__ = [
    "DRAWS",
    "LOSSES",
    "Backend",
    "Budget",
    "ClosedForm",
    "DenseKernel",
    "Descent",
    "Design",
    "DualSolution",
    "EigenPairs",
    "Estimate",
    "Flow",
    "Forecast",
    "Ghosts",
    "Interference",
    "Joint",
    "Kernel",
    "KroneckerKernel",
    "Loss",
    "LossProblem",
    "LossSolution",
    "LowRankKernel",
    "Margins",
    "Modes",
    "Nystrom",
    "Outcome",
    "Outputs",
    "Projection",
    "Rate",
    "Reduction",
    "RidgeChoice",
    "RidgeFit",
    "Start",
    "Superposed",
    "TangentKernel",
    "UnionKernel",
    "choose_ridge",
    "closed_form",
    "design",
    "determinantal",
    "dual_steps",
    "effective_dimension",
    "eigenpairs",
    "enough",
    "forecast",
    "interference",
    "joint",
    "kronecker",
    "leave_one_out",
    "logdet",
    "logits_at_base",
    "margins",
    "nystrom",
    "one_vs_rest",
    "participation_rank",
    "pivoted_cholesky",
    "pool_kernel",
    "primal_steps",
    "project",
    "reduced",
    "solve_cg",
    "solve_cross_entropy",
    "solve_hinge",
    "solve_ridge",
    "squared_norm",
    "superpose",
    "task_vector",
    "trace",
]
