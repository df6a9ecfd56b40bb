"""`transport`: a vector for another base model, with a measure of whether it does there what it did here."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tauspan import models
from tauspan.core.arguments import checked
from tauspan.core.choices import TRANSPORTS, SplitName, Transport
from tauspan.core.errors import MismatchError, UsageError, nearest
from tauspan.core.params import require_same
from tauspan.core.reading import Reading
from tauspan.core.records import LIVE
from tauspan.core.report import Cell, Report, Table, noted, provenance
from tauspan.core.results import Result
from tauspan.editing.rebasing.methods import METHODS, Deltas, read
from tauspan.models import Classifier, Encoder
from tauspan.tangent import linearize
from tauspan.tasks import Task, build_head
from tauspan.vector import TaskVector


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
    method: Transport = "procrustes",
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
    - `"rebasin"`: hidden units and attention heads in the order in which the old base's weights are nearest to the new
      one's (weight matching, arXiv 2209.04836). The order of the features stays as it is.

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
    if method not in TRANSPORTS:
        raise UsageError(f"method={method!r}. {nearest(str(method), TRANSPORTS)}")
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
    moved = METHODS[method](deltas, old, new, task, reading)
    before, after = (
        _change(one, taus, task, split, reading) for one, taus in ((old, deltas), (new, moved))
    )  # fmt: skip
    sizes = float(before.norm()), float(after.norm())
    cosine = float((before * after).sum()) / max(sizes[0] * sizes[1], 1e-300)
    facts = {"method": method, "from": vector.base, "task": task.name, "cosine": cosine}
    wide = {name: delta if delta.dtype == torch.float64 else delta.float() for name, delta in moved.items()}
    stored = models.names_of(new).to_files(wide)
    made = replace(
        vector, deltas=stored, base=models.fingerprint_of(new), space=models.space_of(new),
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
    for places, batch in read(encoder, task, split, reading):
        _, moved = tangent.tangent(batch, vectors=[deltas])
        order += places
        parts.append(moved[0].double().cpu())
    return task.objective.seen(torch.cat(parts)[torch.tensor(order).argsort()])
