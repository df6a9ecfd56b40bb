"""The tangent kernel: the operator, its solvers, and what it says about tasks before they are merged."""

from tauspan.kernel.cg import solve_cg
from tauspan.kernel.flow import Modes
from tauspan.kernel.hinge import solve_hinge
from tauspan.kernel.interference import Interference, Joint, interference, joint
from tauspan.kernel.newton import solve_cross_entropy
from tauspan.kernel.operator import TangentKernel
from tauspan.kernel.protocol import DenseKernel, Kernel
from tauspan.kernel.regression import choose_ridge, leave_one_out, solve_ridge
from tauspan.kernel.unlearning import RidgeFit
from tauspan.kernel.vectors import Fitted, closed_form

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
