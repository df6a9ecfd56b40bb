"""`transport`: a vector for another base model, with a measure of whether it does there what it did here."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from tauspan import models
from tauspan.core.arguments import checked
from tauspan.core.choices import SplitName
from tauspan.core.errors import MismatchError, UsageError, listed, nearest
from tauspan.core.params import require_same
from tauspan.core.reading import Reading
from tauspan.core.records import LIVE
from tauspan.core.report import Cell, Report, Table, noted, provenance
from tauspan.core.results import Result
from tauspan.models import Batch, Classifier, Encoder
from tauspan.tangent import linearize
from tauspan.tasks import Task, build_head
from tauspan.tasks.batches import batches
from tauspan.tasks.reference import TaskTargets
from tauspan.vector import TaskVector

Method: TypeAlias = Literal["same", "shift", "sign", "procrustes"]
Deltas: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Transported(Result):
    """A vector for another base, and how far J tau agrees there with what it was.

    Args:
        vector: for the new base.
        method: how it was made.
        task: on whose rows the two are compared, each under its own base's head.
        cosine: of the two changes of logits, over all rows; of classes without what shifts all logits of a row.
        ratio: their sizes, new over old.
        least: the cosine that was asked for.
        count: how many rows were compared.
    """

    vector: TaskVector = field(repr=False, metadata=LIVE)
    method: str
    task: str
    cosine: float
    ratio: float
    least: float
    count: int

    @property
    def carries(self) -> bool:
        """Whether the cosine is as large as was asked for."""
        return self.cosine >= self.least

    @property
    def verdict(self) -> str:
        """Whether the vector does on the new base what it did on the old one."""
        said = f"cosine {self.cosine:.2f} and {self.ratio:.2f} times the size on {self.count} rows of {self.task}"
        if self.carries:
            return f"The vector carries over: its change of logits has {said}."
        return f"The vector does not carry over: its change of logits has {said}. Fine-tune the new base instead."

    def report(self) -> Report:
        """One row."""
        cells: dict[str, Cell] = {
            "method": self.method, "task": self.task, "rows": self.count, "cosine": self.cosine, "ratio": self.ratio,
        }  # fmt: skip
        note = "of J tau on the new base with J tau on the old one, logits under each base's own head"
        return Report(
            "Transport", [Table("Transport", [cells], note)], dict(self.provenance), verdict=self.verdict
        )


@noted
@checked
def transport(
    vector: TaskVector,
    old: Encoder,
    new: Encoder,
    task: Task,
    method: Method = "procrustes",
    *,
    least: float = 0.5,
    strict: bool = True,
    split: SplitName = "validation",
    reading: Reading = Reading(),
) -> Transported:
    """Make a vector for another base of the same architecture, and compare what it does on both.

    - `"same"`: the numbers as they are.
    - `"shift"`: without the part along the way between the bases, tau - <tau, d> d / |d|^2 per tensor, d = new - old.
    - `"sign"`: entries that lower the task's loss on the new base to first order, sign(tau) = -sign(gradient), the others
      0 (GradFix, ICLR 2026). It reads labels.
    - `"procrustes"`: for each linear layer T_out^T dW T_in, T the orthogonal maps that bring the old base's inputs and
      outputs on the task's training rows nearest to the new one's (Theseus, ICML 2026); other tensors as they are.

    No formula knows whether a vector means the same elsewhere, so that is measured: J tau on the new base against J tau
    on the old one, on rows of the task. Labels are not read for it.

    Args:
        vector: of the old base; read in the tangent model.
        old: the base that it starts from.
        new: another base with the same tensors.
        task: whose training rows the methods read, and whose rows of `split` decide.
        method: see above.
        least: the cosine from which on a vector carries over.
        strict: raise an error below that; False returns the result all the same, and its verdict says so.
        split: whose rows are compared.
        reading: batches, and where texts are cut.

    Raises:
        MismatchError: the bases have other tensors than one another.
        UsageError: the vector does not carry over and `strict` is set; a task without logits; no such method.

    Cost:
        A tangent pass over the rows on each base; `"sign"` a backward pass, `"procrustes"` two forward passes over the
        training rows and an SVD of each layer's width.

    Example:
        >>> import torch, tauspan as ts
        >>> x, y = torch.eye(4).repeat(4, 1), torch.arange(4).repeat(4) % 2
        >>> task = ts.Task.from_tensors("parity", ["even", "odd"], train=(x, y), validation=(x, y), test=(x, y))
        >>> old, new = ts.load(torch.nn.Linear(4, 3)), ts.load(torch.nn.Linear(4, 3))
        >>> tau = ts.closed_form(old, task, ridge=1.0).vector
        >>> transport(tau, old, new, task, "same", strict=False).vector.base == models.fingerprint_of(new)
        True
    """
    if method not in get_args(Method):
        raise UsageError(f"method={method!r}. {nearest(str(method), get_args(Method))}")
    if task.objective.headless:
        raise UsageError(
            f"{task.name!r} has no logits ({task.objective.word}), and changes of logits are compared."
        )
    deltas = dict(vector.fitted(old, tangent=True).deltas)
    first, second = (dict(one.backbone.named_parameters()) for one in (old, new))
    for name in deltas:
        if name not in second:
            raise MismatchError(
                f"{name!r} moves, and {new.source} has no such tensor: the bases differ in kind."
            )
    require_same({n: first[n] for n in deltas}, {n: second[n] for n in deltas}, old.source, new.source)
    moved = _METHODS[method](deltas, old, new, task, reading)
    before, after = (
        _change(one, taus, task, split, reading) for one, taus in ((old, deltas), (new, moved))
    )  # fmt: skip
    sizes = float(before.norm()), float(after.norm())
    cosine = float((before * after).sum()) / max(sizes[0] * sizes[1], 1e-300)
    facts = {"method": method, "from": vector.base, "task": task.name, "cosine": cosine}
    stored = models.names_of(new).to_files({name: delta.float() for name, delta in moved.items()})
    made = replace(
        vector, deltas=stored, base=models.fingerprint_of(new), space=None,
        info={**vector.info, **new.facts, "transported": facts},
    )  # fmt: skip
    found = Transported(
        vector=made, method=method, task=task.name, cosine=cosine, ratio=sizes[1] / max(sizes[0], 1e-300),
        least=least, count=len(before), provenance=provenance(**facts),
    )  # fmt: skip
    if strict and not found.carries:
        raise UsageError(f"{found.verdict} strict=False returns it all the same.")
    return found


def _change(encoder: Encoder, deltas: Deltas, task: Task, split: str, reading: Reading) -> Tensor:
    """J tau of the logits on the rows of a split, shape (N, C), float64, without what the objective does not see."""
    classifier = Classifier(encoder, build_head(task, encoder, max_tokens=reading.max_tokens))
    tangent = linearize(classifier, list(deltas), "logits")
    order: list[int] = []
    parts = []
    for places, batch in _read(encoder, task, split, reading):
        _, moved = tangent.tangent(batch, vectors=[deltas])
        order += places
        parts.append(moved[0].double().cpu())
    return task.objective.seen(torch.cat(parts)[torch.tensor(order).argsort()])


def _read(encoder: Encoder, task: Task, split: str, reading: Reading) -> Any:
    """The batches of a split with the indices of their rows."""
    cut = task.tokens(reading.max_tokens)
    return batches(encoder, task.split(split), cut, reading.batch_size, task.objective)


# -- methods -----------------------------------------------------------------------------------------------------


def _same(deltas: Deltas, old: Encoder, new: Encoder, task: Task, reading: Reading) -> Deltas:
    return deltas


def _shifted(deltas: Deltas, old: Encoder, new: Encoder, task: Task, reading: Reading) -> Deltas:
    first, second = (dict(one.backbone.named_parameters()) for one in (old, new))
    found = {}
    for name, delta in deltas.items():
        way = (second[name].detach().cpu().double() - first[name].detach().cpu().double()).to(delta)
        size = float(way.double().square().sum())
        found[name] = delta - (float((delta * way).double().sum()) / size) * way if size else delta
    return found


def _signed(deltas: Deltas, old: Encoder, new: Encoder, task: Task, reading: Reading) -> Deltas:
    classifier = Classifier(new, build_head(task, new, max_tokens=reading.max_tokens))
    targets = TaskTargets(task, new, reading.max_tokens)
    known = dict(new.backbone.named_parameters())
    total = {name: torch.zeros_like(known[name]) for name in deltas}
    with models.eval_mode(classifier), _asking(known, list(deltas)):
        for places, batch in _read(new, task, "train", reading):
            logits = classifier(batch)
            loss = task.objective.total(logits, targets("train", places).to(logits.device))
            grads = torch.autograd.grad(loss, [known[name] for name in deltas], allow_unused=True)
            for name, grad in zip(deltas, grads, strict=True):
                if grad is not None:
                    total[name] += grad
    return {
        name: torch.where(
            delta.sign() == -total[name].detach().sign().to(delta), delta, torch.zeros_like(delta)
        )
        for name, delta in deltas.items()
    }


@contextmanager
def _asking(known: Mapping[str, Tensor], names: list[str]) -> Iterator[None]:
    """Inside the block these parameters have gradients."""
    before = {name: known[name].requires_grad for name in names}
    for name in names:
        known[name].requires_grad_()
    try:
        yield
    finally:
        for name, asked in before.items():
            known[name].requires_grad_(asked)


def _turned(deltas: Deltas, old: Encoder, new: Encoder, task: Task, reading: Reading) -> Deltas:
    layers = [
        name for name, one in old.backbone.named_modules()
        if isinstance(one, nn.Linear) and any(f"{name}.{part}".lstrip(".") in deltas for part in ("weight", "bias"))
    ]  # fmt: skip
    if not layers:
        raise UsageError("method='procrustes': no linear layer moves. Take 'same', 'shift' or 'sign'.")
    products: dict[tuple[str, str], Tensor] = {}
    for (_, mine), (_, theirs) in zip(
        _read(old, task, "train", reading), _read(new, task, "train", reading), strict=True
    ):
        before, after = _seen(old, mine, layers), _seen(new, theirs, layers)
        for key, here in before.items():
            product = here.T @ after[key]
            products[key] = products[key] + product if key in products else product
    turns = {key: _orthogonal(product) for key, product in products.items()}
    found = dict(deltas)
    for name in layers:
        weight, bias = f"{name}.weight".lstrip("."), f"{name}.bias".lstrip(".")
        inside, outside = turns[name, "in"], turns[name, "out"]
        if weight in found:
            found[weight] = (outside.T @ found[weight].double().cpu() @ inside).to(deltas[weight])
        if bias in found:
            found[bias] = (outside.T @ found[bias].double().cpu()).to(deltas[bias])
    return found


@torch.no_grad()
def _seen(encoder: Encoder, batch: Batch, layers: list[str]) -> dict[tuple[str, str], Tensor]:
    """Inputs and outputs of the layers, a row for each position, float64."""
    found: dict[tuple[str, str], Tensor] = {}
    known = dict(encoder.backbone.named_modules())

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, output: Tensor) -> None:
            for key, value in (("in", given[0]), ("out", output)):
                found[name, key] = value.detach().double().cpu().flatten(0, -2)

        return hook

    handles = [known[name].register_forward_hook(keep(name)) for name in layers]
    try:
        with models.eval_mode(encoder):
            encoder(batch)
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name in layers if (name, "in") not in found]
    if missing:
        raise UsageError(
            f"method='procrustes': the layers {listed(missing)} are not called. Take another method."
        )
    return found


def _orthogonal(product: Tensor) -> Tensor:
    """T with X T nearest to Y, from X^T Y; where the rows do not decide it, nearest to the identity."""
    scale = float(product.diagonal().abs().mean()) or 1.0
    u, _, vt = torch.linalg.svd(product + 1e-9 * scale * torch.eye(len(product), dtype=product.dtype))
    turn: Tensor = u @ vt
    return turn


_METHODS: Mapping[str, Callable[[Deltas, Encoder, Encoder, Task, Reading], Deltas]] = {
    "same": _same, "shift": _shifted, "sign": _signed, "procrustes": _turned,
}  # fmt: skip
