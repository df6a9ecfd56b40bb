"""`regmean_plus_plus`: RegMean in which each block's inputs come from the blocks that are merged already."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from tauspan import models
from tauspan.core.choices import SplitName
from tauspan.core.errors import ModelError, UsageError
from tauspan.core.measure import progress
from tauspan.core.params import Params
from tauspan.core.reading import Reading
from tauspan.editing.model.regime import edit_regime
from tauspan.merge.data.gather import Products, drawn_rows, gram_matrices, linear_layers
from tauspan.merge.data.statistics_file import statistics_of
from tauspan.merge.engine.memory import merge
from tauspan.models import Batch, Encoder
from tauspan.models.at import call_at
from tauspan.tasks import Task
from tauspan.tasks.batches import batches
from tauspan.vector import TaskVector, fitted


def regmean_plus_plus(
    encoder: Encoder,
    vectors: Mapping[Task, TaskVector],
    *,
    alpha: float = 0.95,
    weight: float | Sequence[float] = 1.0,
    rows: int = 256,
    split: SplitName = "train",
    seed: int = 0,
    reading: Reading = Reading(),
) -> TaskVector:
    """RegMean++ (arXiv 2508.03121): block by block, with the activations of the merged model so far.

    W = (sum_t w_t W_t G_t) (sum_t w_t G_t)^-1 for the linear layers of block l, as in `regmean`. But G_t is gathered
    from block l with task t's weights, whose inputs are the outputs of the *merged* blocks 0 ... l - 1 on task t's
    rows. All other tensors are averaged: biases, norms, and everything outside the longest stack of blocks. A model
    without a stack counts as one block, which is RegMean; so is a merge of vectors of the linear regime, where no
    layer's input depends on tau.

    Args:
        encoder: the pre-trained encoder.
        vectors: one vector per task.
        alpha: the factor of the entries off the diagonal of G_t; the authors' code has 0.95.
        weight: w_t, one number or one for each vector.
        rows: at most so many rows per task; no labels are needed.
        split: which rows.
        seed: of the draw.
        reading: batches, and where texts are cut; the inputs of layers are the same at either point.

    Raises:
        UsageError: no vector, or an option outside its range.
        BaseMismatchError: a vector starts from another model.

    Cost:
        Per task and block, a forward pass up to the block and one of the block; all batches of a task are held.

    Example:
        >>> import tauspan as ts
        >>> x, y = torch.eye(2), torch.arange(2)
        >>> base = ts.load(nn.Sequential(nn.Linear(2, 2, bias=False)))
        >>> key = models.fingerprint_of(base)
        >>> task = Task.from_tensors("t", ["a", "b"], train=(x, y), validation=(x, y), test=(x, y))
        >>> tau = TaskVector({"0.weight": torch.ones(2, 2)}, key, "standard")
        >>> bool(torch.equal(regmean_plus_plus(base, {task: tau}).deltas["0.weight"], tau.deltas["0.weight"]))
        True
    """
    if not vectors:
        raise UsageError("regmean_plus_plus needs at least one task and its vector.")
    taus = list(fitted(vectors, encoder).values())
    for vector in taus:
        taus[0].require_compatible(vector)
    given = {"alpha": alpha, "weight": weight}
    inner, _ = models.core(encoder)
    try:
        prefix, stack = models.blocks(inner, list(taus[0].deltas))
    except UsageError:  # no stack
        prefix, stack = "", {}
    if edit_regime(taus[0], None) == "linear" or not stack:
        known = [
            gram_matrices(
                encoder, vector, task, rows=rows, split=split, seed=seed, reading=reading)
            for task, vector in vectors.items()
        ]  # fmt: skip
        given_taus = list(vectors.values())
        found = merge(given_taus, "regmean", given, statistics=statistics_of(given_taus, known))
        return found.named("regmean++")
    prepared = [
        [
            batch
            for _, batch in batches(
                encoder, drawn_rows(task, split, rows, seed), task.tokens(reading.max_tokens), reading.batch_size,
                task.objective,
            )
        ]
        for task in vectors
    ]  # fmt: skip
    merging = _Merging(encoder, taus, given)
    paths = [f"{prefix}{block}" for block in stack]
    merging.average(
        [name for name in taus[0].deltas if not name.startswith(tuple(f"{path}." for path in paths))]
    )
    with progress("RegMean++", len(paths)) as advance:
        for path in paths:
            merging.block(path, prepared)
            advance(1, "")
    return merging.result(rows=rows, split=split, seed=seed)


class _Reached(Exception):  # noqa: N818 - it ends a forward pass early, and is no error
    """A block is about to run, with these inputs."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.args, self.kwargs = args, kwargs


class _Merging:
    """The merged model so far: a working copy, and the merged displacements of its tensors."""

    def __init__(self, encoder: Encoder, vectors: Sequence[TaskVector], options: Mapping[str, Any]) -> None:
        self._vectors, self._options = vectors, options
        self._origin, self._names = models.state_of(encoder), models.names_of(encoder)
        self._model = models.working_copy(encoder).eval()
        self._merged: dict[str, torch.Tensor] = {}

    def average(self, names: Sequence[str]) -> None:
        """Merge tensors that have no statistics, by the mean."""
        self._set(names, [{}] * len(self._vectors))

    @torch.no_grad()
    def block(self, path: str, prepared: Sequence[Sequence[Batch]]) -> None:
        """Merge one block, with the inputs that its layers have after the merged blocks before it."""
        inner, _ = models.core(self._model)
        block, start = inner.get_submodule(path), f"{path}."
        names = [name for name in self._vectors[0].deltas if name.startswith(start)]
        if not names:
            return
        grams = []
        for vector, batches_ in zip(self._vectors, prepared, strict=True):
            own = replace(vector, deltas={name: vector.deltas[name] for name in names})
            theta = {name.removeprefix(start): own.moved(name, self._origin[name], 1.0) for name in names}
            products, layers = Products(), linear_layers(inner, own)
            for batch in batches_:
                args, kwargs = self._inputs(path, block, batch)
                with products.watching(layers, batch):
                    call_at(block, theta, args, kwargs)
            grams.append(products.means())
        self._set(names, grams)

    def _inputs(self, path: str, block: nn.Module, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inputs with which the merged model so far calls the block; later blocks do not run."""

        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached(args, kwargs)

        handle = block.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self._model(batch)
        except _Reached as reached:
            return reached.args, reached.kwargs
        finally:
            handle.remove()
        raise ModelError(
            f"the model never calls its block {path!r}, so that its inputs cannot be read. Merge by `regmean` instead."
        )

    def _set(self, names: Sequence[str], grams: Sequence[Params]) -> None:
        if not names:  # every tensor belongs to a block
            return
        parts = [replace(v, deltas={name: v.deltas[name] for name in names}) for v in self._vectors]
        found = merge(parts, "regmean", self._options, statistics={"gram": grams})
        state = models.state_of(self._model)
        for name in names:
            state[name].copy_(found.moved(name, self._origin[name], 1.0))
        self._merged |= found.deltas

    def result(self, **facts: Any) -> TaskVector:
        """The merged vector."""
        first = self._vectors[0]
        deltas = self._names.to_files({name: self._merged[name] for name in first.deltas})
        labels = [vector.label for vector in self._vectors]
        done = {"method": "regmean++", "options": dict(self._options), "of": labels, **facts}
        return replace(first, deltas=deltas, label="regmean++", info={**first.info, "merge": done})
