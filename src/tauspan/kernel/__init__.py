"""The tangent kernel: the operator, its solvers, and what it says about tasks before they are merged."""

from tauspan.kernel.operator.closed_form import Fitted, closed_form
from tauspan.kernel.operator.interference import Interference, Joint, interference, joint
from tauspan.kernel.operator.tangent import TangentKernel
from tauspan.kernel.operator.unlearning import RidgeFit
from tauspan.kernel.solvers.cg import solve_cg
from tauspan.kernel.solvers.flow import Modes
from tauspan.kernel.solvers.hinge import solve_hinge
from tauspan.kernel.solvers.newton import solve_cross_entropy
from tauspan.kernel.solvers.protocol import DenseKernel, Kernel
from tauspan.kernel.solvers.regression import choose_ridge, leave_one_out, solve_ridge

__all__ = [
    "DenseKernel",
    "Fitted",
    "Interference",
    "Joint",
    "Kernel",
    "Modes",
    "RidgeFit",
    "TangentKernel",
    "choose_ridge",
    "closed_form",
    "interference",
    "joint",
    "leave_one_out",
    "solve_cg",
    "solve_cross_entropy",
    "solve_hinge",
    "solve_ridge",
]
