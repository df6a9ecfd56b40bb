"""A model at one point of a training after another, on copies: the user's module is never changed."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tauspan import models
from tauspan.core import params
from tauspan.core.errors import MismatchError, UsageError, listed
from tauspan.core.params import Params
from tauspan.kernel import Outputs, TangentKernel
from tauspan.kernel.rows.data import AnyBatch
from tauspan.models.select import Selection
from tauspan.tangent import Linearized, linearize


class Standing:
    """A module at the start of a training, and what it gives at later points.

    Args:
        model: the module, at whatever parameters; or its linearisation, whose theta0 is the start.
        first: the tensors of the start by name.
        choice: the parameters that move, as in `linearize`.

    Raises:
        UsageError: a tangent model that is linearised before its head.
        MismatchError: tensors that the module does not have, or lacks.
    """

    def __init__(self, model: nn.Module, first: Params, choice: Selection) -> None:
        module, self.names = model, tuple[str, ...]()
        if isinstance(model, Linearized):
            if model.point == "encoder" and isinstance(model.base, models.Classifier):
                raise UsageError(
                    "this tangent model is linearised at its features, and a trajectory compares logits: give "
                    "`linearize(classifier, point='logits')`, or the classifier itself."
                )
            module, self.names = model.base, tuple(model.theta0())
        self.names = self.names or models.select(module, choice)
        self.prefix = models.core(module)[1]
        self._module = models.working_copy(module).eval()
        self._moving, self._others = self._parted(first, "the first point")
        _put(self._module, {**self._full(self._moving), **self._others})
        self.tangent = linearize(self._module, list(self.names))
        self.norm = params.norm(self.tangent.theta0())
        self.precision = max(torch.finfo(theta.dtype).eps for theta in self.tangent.theta0().values())

    def at(self, point: Params, step: int) -> dict[str, Tensor]:
        """The moving tensors of a point, in the module's dtypes and on its device.

        Raises:
            MismatchError: other names or shapes; or a tensor moved that the tangent model holds fixed.
            NonFiniteError: NaN or infinity.
        """
        about = f"the point at step {step}"
        moving, others = self._parted(point, about)
        for name, tensor in others.items():
            known = self._others.get(name)
            if known is not None and tensor.is_floating_point() and not torch.equal(tensor, known):
                raise MismatchError(
                    f"{name!r} of {about} is not that of the start, and the tangent model holds it fixed: its path "
                    "would lack what this tensor does. Name it among `params` if it is trained; if it is a running "
                    "mean, train with batch norm in eval mode."
                )
        pairs = params.zip_strict(self.tangent.theta0(), moving, "the start", about)
        found = {name: tensor.detach().to(theta) for name, theta, tensor in pairs}
        params.require_finite(found, about)
        return found

    def _parted(self, point: Params, about: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The moving tensors by their names in the core, and the others by those of the whole module."""
        known = self._module.state_dict(keep_vars=True)
        moving = {id(known[self.prefix + name]): name for name in self.names}
        tensors: dict[str, Tensor] = {}
        others: dict[str, Tensor] = {}
        strange: list[str] = []
        for name, tensor in point.items():
            full = name if name in known else self.prefix + name
            if full not in known:
                strange.append(name)
            elif id(known[full]) in moving:  # under any of its names, where it is tied
                tensors.setdefault(moving[id(known[full])], tensor)
            else:
                others[full] = tensor
        missing = [name for name in self.names if name not in tensors]
        if strange or missing:
            what = (
                f"lacks {listed(missing)}"
                if missing
                else f"holds {listed(strange)}, which the model does not"
            )
            raise MismatchError(
                f"{about} {what}: points are the model's own parameters by name, such as `model.state_dict()`, or a "
                "`Recorder` of it."
            )
        return tensors, others

    def _full(self, moving: Params) -> dict[str, Tensor]:
        return {self.prefix + name: tensor for name, tensor in moving.items()}

    def displacement(self, point: Params) -> dict[str, Tensor]:
        """theta_t - theta_0, formed in float64 and rounded once."""
        start = self.tangent.theta0()
        return {
            name: (point[name].double() - theta.double()).to(theta.dtype) for name, theta in start.items()
        }

    def outputs(self, batches: Sequence[AnyBatch], point: Params) -> Tensor:
        """f(x; theta_t) of all rows, shape (N, C), float64."""
        with torch.no_grad(), models.eval_mode(self.tangent.base):
            return _joined([self.tangent.function(batch)(dict(point)) for batch in batches])

    def linear(self, batches: Sequence[AnyBatch], tau: Params) -> Tensor:
        """f_0 + J tau of all rows, shape (N, C), float64."""
        found = []
        for batch in batches:
            inputs, named = self.tangent.inputs_of(batch)
            value, moved = self.tangent.tangent(*inputs, vectors=[tau], **named)
            found.append(value.double() + moved[0].double())
        return _joined(found)

    def kernel(
        self,
        batches: Sequence[AnyBatch],
        outputs: Outputs,
        point: Params | None = None,
        right: Sequence[AnyBatch] | None = None,
    ) -> TangentKernel:
        """The tangent kernel of some rows at the start, or at another point."""
        module = self._module
        if point is not None:
            module = models.working_copy(self._module)
            _put(module, self._full(point))
        others = None if right is None else list(right)
        return TangentKernel(module, list(batches), others, params=list(self.names), outputs=outputs)


@torch.no_grad()
def _put(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Set parameters and buffers in place."""
    known = module.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        if known[name].shape != tensor.shape:
            raise MismatchError(
                f"tensor {name!r} has shape {tuple(tensor.shape)} in the point and {tuple(known[name].shape)} in the "
                "module. Both must come from the same architecture."
            )
        known[name].copy_(tensor)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.detach().double().cpu() for part in parts])
