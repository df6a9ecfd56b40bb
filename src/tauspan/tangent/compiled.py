"""A tangent model under `torch.compile`: one call that Dynamo does not look into, and that AOTAutograd traces.

Dynamo cannot follow dual tensors, and need not: the graph is what their rules do to ordinary tensors. Import this
module only while something is compiled, since Dynamo takes seconds to load.
"""

from typing import Any

import torch
from torch import Tensor

from tauspan.core.params import Params


@torch._dynamo.nonstrict_trace
def traced(tangent: Any, tau: Params, held: Params, inputs: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
    """`(f, J tau)` of a `Linearized`.

    All tensors are arguments, so that the graph reads them where they are and keeps no copies.
    """
    found: tuple[Tensor, Tensor] = tangent.as_traced(tau, held, inputs, kwargs)
    return found
