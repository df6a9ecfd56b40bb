"""Which entries of a model move its outputs least: sparse vectors that disturb other tasks little (TaLoS).

Iurada, Ciccone and Tommasi, "Efficient Model Editing with Task-Localized Sparse Fine-tuning" (ICLR 2025).
"""

import torch
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import BaseMismatchError, UsageError
from tauspan.drift.blocks import Diagonal
from tauspan.drift.factors import Factors, viewed
from tauspan.kernel.rows.pieces import PART
from tauspan.models import Encoder, fingerprint_of


@checked
def least_sensitive(encoder: Encoder, found: Factors, share: float = 0.1) -> dict[str, Tensor]:
    """Masks of the entries with the smallest diagonal of G = E_x J(x)^T J(x), the same share of all of them together.

    Give the result to `tauspan.restrict`: the encoder then moves in these entries alone, and its vectors hold no others.
    Entries that no output depends on, such as a table's row for a token that no text has, are left out: their gradient is
    0, so they would learn nothing. The authors pick 10 % by a task's own rows, and find that tasks agree on them.

    Args:
        encoder: the encoder that the factors are of.
        found: factors of the kind `"diagonal"`, of the task's rows or of several tasks' (`merged`).
        share: of the entries that outputs depend on.

    Returns:
        Booleans by parameter; parameters without any entry are left out.

    Raises:
        BaseMismatchError: factors of another model.
        UsageError: factors of another kind, or a share outside (0, 1].

    Cost:
        A sort of all entries.

    Example:
        >>> import tauspan as ts
        >>> from tauspan.drift import factors, least_sensitive
        >>> x, y = torch.eye(4).repeat(4, 1), torch.arange(4).repeat(4) % 2
        >>> task = ts.Task.from_tensors("parity", ["even", "odd"], train=(x, y), validation=(x, y), test=(x, y))
        >>> encoder = ts.load(torch.nn.Linear(4, 3))
        >>> masks = least_sensitive(encoder, factors(encoder, task, kind="diagonal"), share=0.2)
        >>> sum(int(mask.sum()) for mask in masks.values())
        3
        >>> ts.finetune(ts.restrict(encoder, masks), task, ts.Settings(lr=0.1, max_steps=2)).task_vector.space.word
        'own'
    """
    if not 0 < share <= 1:
        raise UsageError(f"share={share}: above 0, at most 1.")
    if found.base != fingerprint_of(encoder):
        raise BaseMismatchError(
            f"{found!r} are of another model than {encoder.source}: compute them of this one."
        )
    blocks = {name: block for name, block in found.blocks.items() if isinstance(block, Diagonal)}
    if len(blocks) < len(found.blocks):
        raise UsageError(
            f"{found!r}: entries are picked by the diagonal. Compute factors with kind='diagonal' (`--kind diagonal`)."
        )
    sensitive = _by_parameter(encoder, blocks)
    flat = torch.cat([one.flatten() for one in sensitive.values()])
    candidates = (flat > 0).nonzero().flatten()
    if not len(candidates):
        raise UsageError(f"{found!r}: no output depends on any of these entries.")
    count = max(round(share * len(candidates)), 1)
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[candidates[flat[candidates].argsort(stable=True)[:count]]] = True
    parts = torch.split(chosen, [one.numel() for one in sensitive.values()])
    masks = {name: part.view_as(sensitive[name]) for name, part in zip(sensitive, parts, strict=True)}
    return {name: mask for name, mask in masks.items() if bool(mask.any())}


def _by_parameter(encoder: Encoder, blocks: dict[str, Diagonal]) -> dict[str, Tensor]:
    """The diagonal in the shape of each parameter, of which a block may be a view."""
    known = dict(encoder.backbone.named_parameters())
    total: dict[str, Tensor] = {}
    for name, block in blocks.items():
        owner = name.partition(PART)[0]
        places = viewed(name, torch.arange(known[owner].numel()).view(known[owner].shape)).flatten()
        own = total.setdefault(owner, torch.zeros(known[owner].numel(), dtype=torch.float64))
        if block.entries.numel():  # else no output depends on the parameter
            own.index_add_(0, places, block.entries.cpu().double())
    return {name: own.view(known[name].shape) for name, own in total.items()}
