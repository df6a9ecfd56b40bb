"""Width: how a net's features move as it gets wider, which learning rates keep that, and an exact limit of wide nets."""

from tauspan.kernel.diagnose.width.coordinates import coordinate_check
from tauspan.kernel.diagnose.width.linear import LinearNet, linear_limit
from tauspan.kernel.diagnose.width.motion import CoordinateCheck, LayerMotion
from tauspan.kernel.diagnose.width.mup import Mup, mup
from tauspan.kernel.diagnose.width.parametrisation import Parametrisation
from tauspan.kernel.diagnose.width.roles import ParameterScale

__all__ = [
    "CoordinateCheck", "LayerMotion", "LinearNet", "Mup", "ParameterScale", "Parametrisation", "coordinate_check",
    "linear_limit", "mup",
]  # fmt: skip
