"""`linearize`: the tangent model of a module."""

import warnings
from collections.abc import Sequence

from torch import nn

from tauspan import models
from tauspan.core.arguments import checked
from tauspan.core.computing import Check, way
from tauspan.core.computing import Engine as Name
from tauspan.core.errors import MismatchError, ModelError, UsageError, nearest
from tauspan.tangent.taylor import Linearized, Point

__all__ = ["Linearized", "Point", "linearize"]


@checked
def linearize(
    module: nn.Module,
    params: str | Sequence[str] = "all",
    point: Point | None = None,
    *,
    engine: Name | None = None,
    strict: bool = False,
    checkpointing: bool = False,
    check: Check | None = None,
) -> Linearized:
    """The tangent model of a module at its current parameters.

    Args:
        module: any `nn.Module` whose layers are deterministic in eval mode; an `Encoder` or a `Classifier`
            adds a choice of `point`.
        params: the trainable tangents: `"all"`, `"attention"`, `"last:k"`, a pattern or a list of names. The first three
            leave out what is frozen (`requires_grad=False`); where everything is, tau is empty, with a warning.
        point: where the model is linearised. `"logits"`: after the frozen head, so that logits are exactly
            affine in tau (default for a `Classifier`). `"encoder"`: at the features, before any
            normalisation, as the paper's code does. `"output"`: the output of a plain module.
        engine: which engine is tried first: `"onepass"`; `"reference"` (`torch.func.jvp`; slower, differentiable more
            than once and in the inputs); or `"backward"` (ordinary backward passes; slower still, for any module that
            ordinary autograd supports). All give the same numbers. If one fails, or fails the check, the next is tried.
            None takes the engine of `tauspan.computing`, else `"onepass"`.
        strict: raise where an operation has no tangent rule, instead of computing it by torch's forward mode with a
            warning.
        checkpointing: keep only each block's input for the backward and compute the rest again: less memory, one
            more forward, the same numbers. One-pass engine only.
        check: `"auto"` compares the first batch of each kind with ordinary autograd on the module itself (see
            `tauspan.tangent.engine.check`), on two rows if the module accepts them; `"off"` does not check. None as for
            `engine`.

    Raises:
        ModelError: active dropout, batch norm in training mode, tied memory that cannot be kept.
        UsageError: a choice that selects nothing, a point that the module does not have, or an unknown engine.

    Cost:
        Forward about 3 times the module's, a training step 5/3 of ordinary fine-tuning.

    Example:
        >>> import torch
        >>> lin = linearize(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)))
        >>> x = torch.ones(1, 2)
        >>> bool(torch.equal(lin(x), lin.base(x))), sorted(lin.state_dict())
        (True, ['0.bias', '0.weight', '2.bias', '2.weight'])
    """
    if isinstance(models.core(module)[0], Linearized):
        raise MismatchError("the module is linearised already.")
    models.require_deterministic(module)
    possible: dict[type[nn.Module], tuple[Point, ...]] = {
        models.Classifier: ("logits", "encoder"), models.Encoder: ("encoder",)
    }  # fmt: skip
    points = possible.get(type(module), ("output",))
    chosen = point or points[0]
    if chosen not in points:
        wanted = (
            "build a Classifier (encoder and head) first" if chosen == "logits" else nearest(chosen, points)
        )
        raise UsageError(f"{type(module).__name__} has no linearisation point {chosen!r}: {wanted}")
    _require_there(module)
    try:
        names = models.select(module, params)
    except models.FrozenError as error:
        warnings.warn(f"the tangent model has nothing to move: {error}", RuntimeWarning, stacklevel=2)
        names = ()
    return Linearized(module, names, chosen, way(engine, check), strict, checkpointing)


def _require_there(module: nn.Module) -> None:
    """Raise if parameters have no values yet, or values that autograd must not use."""
    for name, parameter in module.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ModelError(
                f"parameter {name!r} of {type(module).__name__} has no shape yet: it belongs to a lazy layer. Call the "
                "module once on a batch first."
            )
        models.require_values(module, {name: parameter})
        if parameter.is_inference():
            raise ModelError(
                f"parameter {name!r} of {type(module).__name__} was made under torch.inference_mode, and autograd may "
                "not use it. Make or load the module outside of it."
            )
