"""Statistics of a fine-tuned model on its task: Fisher information, and Gram matrices of layer inputs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tauspan import models
from tauspan.core.choices import EditRegime, SplitName
from tauspan.core.errors import UsageError, listed, nearest
from tauspan.core.measure import progress
from tauspan.core.reading import Reading
from tauspan.editing.model.edit import apply
from tauspan.editing.model.kinds import model_kind
from tauspan.editing.model.regime import edit_regime, point_of
from tauspan.merge.data.statistics_file import Statistics
from tauspan.models import Batch, Classifier, Encoder
from tauspan.tangent import linearize
from tauspan.tasks import Split, Task, build_head
from tauspan.tasks.batches import batches
from tauspan.vector import TaskVector

Over = Literal["model", "labels"]


def fisher_information(
    encoder: Encoder,
    vector: TaskVector,
    task: Task,
    *,
    over: Over = "model",
    rows: int = 256,
    split: SplitName = "train",
    regime: EditRegime | None = None,
    reading: Reading = Reading(),
    seed: int = 0,
) -> Statistics:
    """The diagonal of the Fisher information of the edited model, one number for each entry of the vector.

    F = mean_n sum_k p_k (d log p_k / d theta)^2 with p = softmax f(x_n; theta0 + tau) under the task's frozen head, as
    in arXiv 2111.09832: the expectation is over the model's own classes, exactly, and needs no labels. In the
    tangent regimes the model is f_lin(x; tau) and the derivative is by tau: d f_lin / d tau = J(x), the Jacobian at
    theta0, so only the probabilities depend on tau.

    Args:
        encoder: the pre-trained encoder.
        vector: the task's vector.
        task: whose rows are read.
        over: `"model"`, or `"labels"` for the empirical variant (d log p_y / d theta)^2, one backward pass per row.
        rows: at most so many rows of the split, drawn by a permutation keyed by `seed`.
        split: which rows.
        regime: `"standard"`, `"posthoc"` or `"linear"`; None takes the vector's own.
        seed: of the draw.
        reading: where texts are cut, and the point of the tangent model; rows are read one by one.

    Raises:
        UsageError: an unknown choice, no rows, or a vector that moves what is no parameter.
        BaseMismatchError: the vector starts from another model.

    Cost:
        One forward and, for each class, one backward of a single row; memory three times the vector.

    Example:
        >>> import tauspan as ts
        >>> x, y = torch.eye(2), torch.arange(2)
        >>> task = Task.from_tensors("t", ["a", "b"], train=(x, y), validation=(x, y), test=(x, y))
        >>> base = ts.load(nn.Linear(2, 2, bias=False))
        >>> tau = TaskVector({"weight": torch.ones(2, 2)}, models.fingerprint_of(base), "standard")
        >>> fisher_information(base, tau, task)
        Statistics(fisher of 'tau' on 2 train rows of 't', 1 tensors)
    """
    if over not in ("model", "labels"):
        raise UsageError(f"over={over!r}. {nearest(str(over), ('model', 'labels'))}")
    chosen = edit_regime(vector, regime)
    own = vector.fitted(encoder, tangent=True)
    drawn = drawn_rows(task, split, rows, seed)
    classifier = Classifier(encoder, build_head(task, encoder, max_tokens=reading.max_tokens))
    logits, leaves = _differentiable(classifier, own, chosen, point_of([vector], reading.point))
    total = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    with models.eval_mode(encoder), progress(f"Fisher information of {task.name}", len(drawn)) as advance:
        for places, batch in batches(encoder, drawn, task.tokens(reading.max_tokens), 1):
            logp = F.log_softmax(logits(batch)[0], -1)
            classes = range(len(logp)) if over == "model" else drawn.labels[places].tolist()
            for k in classes:
                share = float(logp[k].detach().exp()) if over == "model" else 1.0
                found = torch.autograd.grad(
                    logp[k], list(leaves.values()), retain_graph=True, allow_unused=True
                )
                for name, gradient in zip(leaves, found, strict=True):
                    if gradient is not None:
                        total[name].addcmul_(gradient, gradient, value=share / len(drawn))
            advance(1, "")
    facts = {"over": over, "seed": seed, "point": reading.point, "task_checksum": task.checksum()}
    total = models.names_of(encoder).to_files(total)
    return _statistics("fisher", total, vector, task, split, len(drawn), chosen, facts)


def _differentiable(
    classifier: Classifier, vector: TaskVector, regime: EditRegime, point: Any
) -> tuple[Callable[[Batch], Tensor], dict[str, Tensor]]:
    """The edited model's logits, and the tensors with respect to which they are differentiated."""
    edits_tangent = model_kind(regime).tangent
    tangent = linearize(classifier, list(vector.deltas), point if edits_tangent else "logits")
    if edits_tangent:
        tangent.load_task_vector(vector)
        return tangent, tangent.tau
    theta = {n: vector.moved(n, base, 1.0).requires_grad_() for n, base in tangent.theta0().items()}
    return lambda batch: tangent.function(batch)(theta), theta


def gram_matrices(
    encoder: Encoder,
    vector: TaskVector,
    task: Task,
    *,
    rows: int = 256,
    split: SplitName = "train",
    regime: EditRegime | None = None,
    seed: int = 0,
    reading: Reading = Reading(),
) -> Statistics:
    """The mean of x x^T over the inputs x of each linear layer of the edited model: X^T X / rows of X.

    Only `nn.Linear` layers whose weight the vector changes are included. Each token is a row of X; padding is left out.
    In the tangent regimes the model is linear in tau at theta0, so the inputs are those of the pre-trained model: a
    layer's part of J(x) tau is (df/dy) tau_W x0.

    Args:
        encoder: the pre-trained encoder.
        vector: the task's vector.
        task: whose rows are read; no labels are needed.
        rows: at most so many rows of the split, drawn by a permutation keyed by `seed`.
        split: which rows.
        regime: `"standard"`, `"posthoc"` or `"linear"`; None takes the vector's own.
        seed: of the draw.
        reading: batches, and where texts are cut; the inputs of layers are the same at either point.

    Raises:
        UsageError: no rows, or no linear layer is moved.
        BaseMismatchError: the vector starts from another model.

    Cost:
        A forward pass of each row, and columns^2 numbers per layer: for wide layers more than the weights.

    Example:
        >>> import tauspan as ts
        >>> x, y = torch.eye(2), torch.arange(2)
        >>> task = Task.from_tensors("t", ["a", "b"], train=(x, y), validation=(x, y), test=(x, y))
        >>> base = ts.load(nn.Linear(2, 2, bias=False))
        >>> tau = TaskVector({"weight": torch.ones(2, 2)}, models.fingerprint_of(base), "standard")
        >>> gram_matrices(base, tau, task).tensors["weight"]
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])
    """
    chosen = edit_regime(vector, regime)
    own = vector.fitted(encoder)
    drawn = drawn_rows(task, split, rows, seed)
    edited = encoder if model_kind(chosen).tangent else apply(encoder, vector)
    inner, _ = models.core(edited)
    layers = linear_layers(inner, own)
    if not layers:
        raise UsageError(
            f"the vector {vector.label!r} moves no weight of a linear layer ({listed(vector.deltas)}), so there is no "
            "Gram matrix to gather: merge by another method."
        )
    found = Products()
    prepared = batches(encoder, drawn, task.tokens(reading.max_tokens), reading.batch_size, task.objective)
    with (
        models.eval_mode(edited),
        torch.no_grad(),
        progress(f"Gram matrices of {task.name}", len(drawn)) as advance,
    ):
        for places, batch in prepared:
            with found.watching(layers, batch):
                edited(batch)
            advance(len(places), "")
    facts = {"seed": seed, "task_checksum": task.checksum()}
    names = models.names_of(encoder)
    means = {stored: mean for name, mean in found.means().items() for stored in names.files_of([name])}
    return _statistics("gram", means, vector, task, split, len(drawn), chosen, facts)


def linear_layers(module: nn.Module, vector: TaskVector) -> list[tuple[str, nn.Linear]]:
    """The linear layers whose weight the vector moves, each with the weight's name.

    A weight that something else uses too, such as a tied embedding, is left out: its inputs are not all seen.
    """
    names = {
        id(tensor): name for name, tensor in models.named_unique(module).items() if name in vector.deltas
    }
    found, shared = [], set()
    for layer in module.modules():
        for tensor in layer._parameters.values():
            name = names.get(id(tensor))
            if name is None:
                continue
            if isinstance(layer, nn.Linear) and tensor is layer.weight:
                found.append((name, layer))
            else:
                shared.add(name)
    return [(name, layer) for name, layer in found if name not in shared]


class Products:
    """Sums of x x^T over the inputs of linear layers, in float32 or wider."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._rows: dict[str, int] = {}

    @contextmanager
    def watching(self, layers: list[tuple[str, nn.Linear]], batch: Batch) -> Iterator[None]:
        """Inside the block, every call of a layer adds its inputs to the sums, except those at the batch's padding."""
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        handles: list[RemovableHandle] = []
        try:
            for name, layer in layers:
                handles.append(layer.register_forward_hook(self._hook(name, mask)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str, mask: Tensor | None) -> Callable[[nn.Module, Any, Any], None]:
        def add(_: nn.Module, inputs: tuple[Tensor, ...], __: Any) -> None:
            x = inputs[0].detach()
            if mask is not None and x.shape[:-1] == mask.shape:
                x = x[mask.bool()]
            x = x.reshape(-1, x.shape[-1])
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            product = x.T @ x
            self._sums[name] = self._sums[name] + product if name in self._sums else product
            self._rows[name] = self._rows.get(name, 0) + len(x)

        return add

    def means(self) -> dict[str, Tensor]:
        """The sums divided by the number of rows in each."""
        return {name: total / max(self._rows[name], 1) for name, total in self._sums.items()}


def drawn_rows(task: Task, split: SplitName, rows: int, seed: int) -> Split:
    """At most so many rows of a split, drawn by a permutation keyed by the seed."""
    task.split(split)  # raises for an unknown split
    counts: dict[str, Any] = {split: rows}
    return task.subset(seed=seed, **counts).split(split)


def _statistics(
    kind: Literal["fisher", "gram"], tensors: Mapping[str, Tensor], vector: TaskVector, task: Task, split: str, rows: int,
    regime: str, info: dict[str, Any],
) -> Statistics:  # fmt: skip
    found = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    return Statistics(kind, found, vector.base, regime, vector.label, task.name, split, rows, info)
