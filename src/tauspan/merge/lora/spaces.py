"""A vector of a small space as an adapter that PEFT reads."""

import logging
from pathlib import Path

from torch import Tensor

from tauspan import models
from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError
from tauspan.merge.lora.adapters import save_adapter
from tauspan.merge.lora.lowrank import FactorLayout, LowRank, Term
from tauspan.models.bases import Basis
from tauspan.models.thin import DELTA
from tauspan.vector import TaskVector

log = logging.getLogger(__name__)


@checked
def save_as_adapter(
    vector: TaskVector,
    encoder: models.Encoder,
    path: str | Path,
    *,
    scale: float = 1.0,
    overwrite: bool = False,
) -> Path:
    """Write scale * vector, of a small space, as a directory that `peft.PeftModel.from_pretrained` loads over the base.

    A LoRA vector has its delta as B and the frozen A; one along singular directions U diag(delta) as B and V^T as A.
    PEFT's model is f(x; theta0 + scale tau), so of a vector of the linear regime it is another function than the tangent
    model, which a warning says.

    Args:
        vector: of a space that `restrict` or `Settings(space=...)` made.
        encoder: the encoder that it starts from. The adapter has the names of its backbone; of a language model those
            of the whole model, transformers' `AutoModelForCausalLM`.
        path: the directory.
        scale: the coefficient.
        overwrite: replace what is at `path`.

    Raises:
        UsageError: the vector holds whole tensors, or moves one that an adapter cannot.
        BaseMismatchError: it starts from another model.
        StoreError: something is at `path`, or writing failed.

    Example:
        >>> import tempfile, torch
        >>> from torch import nn
        >>> from tauspan.merge import AdapterSource
        >>> encoder = models.Encoder(nn.Sequential(nn.Linear(4, 3)))
        >>> small = models.restrict(encoder, "lora:2")
        >>> deltas = {"0.weight_delta": torch.ones(3, 2)}
        >>> tau = TaskVector(deltas, models.fingerprint_of(small), "standard", space=small.space)
        >>> path = save_as_adapter(tau, encoder, Path(tempfile.mkdtemp()) / "adapter")
        >>> torch.allclose(AdapterSource(path).low.dense("0.weight"), tau.dense(encoder).deltas["0.weight"])
        True
    """
    if vector.space is None:
        raise UsageError(
            f"{vector.label!r} holds whole tensors, and an adapter thin factors: train in a space, "
            "`Settings(space='lora:8')`, or write it as an adapter of a rank by `merge_files` with `output: adapter`."
        )
    vector.require_base(models.fingerprint_of(encoder))
    bases = vector.space.at(encoder)
    whole = "" if encoder.language is None else f"{getattr(encoder.backbone, 'base_model_prefix', '')}."
    terms = {
        f"{whole.removeprefix('.')}{name}": (_term(name, basis, vector.deltas[name + DELTA], scale),)
        for name, basis in bases.items()
    }
    if vector.regime == "linear":
        log.warning(
            "%r was made in the tangent space, and PEFT's model f(x; theta0 + tau) is another function: evaluate it "
            "before you use it", vector.label,
        )  # fmt: skip
    return save_adapter(LowRank(terms, vector.label), path, overwrite=overwrite)


def _term(name: str, basis: Basis, delta: Tensor, scale: float) -> Term:
    """One tensor's product as PEFT has it."""
    products = basis.products(delta)
    if products is None:
        raise UsageError(
            f"{name!r} moves along whole tensors, which are no thin product: make the vector whole, "
            "`vector.dense(encoder)`, and save that."
        )
    left, right = (part.to(delta.dtype).contiguous() for part in products)
    kernel = basis.form.shape[2:]
    layout: FactorLayout = "convolution" if kernel else "transposed" if basis.form.turned else "linear"
    if kernel:
        left, right = left.view(*left.shape, *[1] * len(kernel)), right.view(-1, *basis.form.shape[1:])
    return Term(right, left, scale, layout)
