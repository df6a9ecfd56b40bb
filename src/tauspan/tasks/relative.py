"""Heads that read a row by its cosines with anchors, so that one head serves several encoders."""

from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import MismatchError, UsageError
from tauspan.models import Encoder, Head
from tauspan.tasks.features import features_of
from tauspan.tasks.heads import require_every_class
from tauspan.tasks.probe import RIDGE, probe
from tauspan.tasks.split import Split, permutation
from tauspan.tasks.task import Task


@checked
def relative_features(features: Tensor, anchors: Tensor) -> Tensor:
    """Relative representations r_j = cos(z, a_j), shape (N, k): Moschella and others (ICLR 2023).

    A rotation of all features, and a factor on them, leave r as it is. A shift does not.

    Args:
        features: z, shape (N, d).
        anchors: features of the anchors by the same encoder, shape (k, d).

    Raises:
        MismatchError: features of another width than the anchors'.

    Cost:
        2 N k d operations.

    Example:
        >>> import torch
        >>> relative_features(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])).tolist()
        [[1.0, 0.0, -1.0]]
    """
    if features.dim() != 2 or anchors.dim() != 2 or features.shape[1] != anchors.shape[1]:
        raise MismatchError(
            f"features of shape {tuple(features.shape)} and anchors of shape {tuple(anchors.shape)}: give (N, d) and "
            "(k, d), both from one encoder."
        )
    return F.normalize(features, dim=1) @ F.normalize(anchors, dim=1).T


def anchor_rows(task: Task, count: int, seed: int = 0) -> Split:
    """At most so many training rows, by a permutation keyed by the seed."""
    if count < 2:
        raise UsageError(f"anchors={count}: at least 2.")
    rows = task.split("train")
    return rows.take(permutation(len(rows), f"{seed}/anchors")[:count])


@dataclass(frozen=True, eq=False)
class RelativeHead:
    """A linear map V r(x) + b of relative features, and the rows that are its anchors.

    Args:
        weight: V, shape (K, k), in float64.
        bias: b, shape (K).
        anchors: the k rows.
        max_tokens: where their texts are cut.
        source: the encoder that it was fitted on.
    """

    weight: Tensor
    bias: Tensor
    anchors: Split
    max_tokens: int | None = None
    source: str = ""

    def __repr__(self) -> str:
        return (
            f"RelativeHead({len(self.weight)} outputs, {len(self.anchors)} anchors, fitted on {self.source})"
        )

    @checked
    def on(self, encoder: Encoder) -> Head:
        """The same map as an ordinary head of an encoder: nothing is trained.

        With unit anchors A, shape (k, d), r(x) = A z / |z|, so that V r + b is the head (V A) z / |z| + b. It is a head
        that normalises features, and all that such heads do follows. A and V are frozen with it: in the tangent regimes
        the row's own cosine moves and the anchors stay where this encoder has them. At the point `"logits"` z / |z| is
        linearised with the encoder; at `"encoder"` z alone is, and logits are not affine in tau.

        A head on the pre-trained encoder is the frozen head of all its edits. One made on an edited encoder is
        another head, whose anchors have moved along: that serves an edited or merged model as it serves a stranger.

        Args:
            encoder: of any width; it must read the anchors.

        Raises:
            MismatchError, ModelError, NonFiniteError: as of the encoder's own features.

        Cost:
            Forward passes over the anchors.
        """
        features = features_of(encoder, self.anchors, self.max_tokens)
        weight = self.weight.to(features.device) @ F.normalize(features.double(), dim=1)
        return Head(weight.to(features), self.bias.to(features), normalize=True)


@checked
def relative_head(
    task: Task,
    encoder: Encoder,
    *,
    anchors: int | Split = 100,
    seed: int = 0,
    ridge: float = RIDGE,
    max_tokens: int | None = None,
) -> RelativeHead:
    """Fit a head to relative features once; `RelativeHead.on` then makes it the head of any encoder.

    It is the linear probe of `head_from="probe"` on r(x) in place of the features. `dataclasses.replace(task,
    head=found.on(encoder))` is the task under it.

    Args:
        task: of classes or numbers; all its training rows are fitted.
        encoder: whose features are read.
        anchors: at most so many training rows, drawn by `seed`; or rows of your own, which must not be test rows. Their
            labels are not read.
        seed: of the draw.
        ridge: as of the probe.
        max_tokens: where texts are cut; None takes the task's own value.

    Raises:
        UsageError: a task without a head, fewer than 2 anchors.
        MismatchError, ModelError, NonFiniteError: as of the encoder's features.

    Cost:
        Forward passes over training rows and anchors, and a probe with k inputs.

    Example:
        >>> import dataclasses, torch, tauspan as ts
        >>> x, y = torch.eye(4).repeat(2, 1), torch.arange(4).repeat(2)
        >>> task = ts.Task.from_tensors("four", list("abcd"), train=(x, y), validation=(x, y), test=(x, y))
        >>> layers = [torch.nn.Linear(4, width, bias=False) for width in (8, 12)]
        >>> first, wider = (ts.load(torch.nn.utils.parametrizations.orthogonal(one)) for one in layers)
        >>> shared = relative_head(task, first, anchors=8)
        >>> ts.evaluate(wider, [dataclasses.replace(task, head=shared.on(wider))]).accuracy
        {'four': 1.0}
    """
    if task.objective.headless:
        raise UsageError(f"task {task.name!r} is {task.objective.word}, which has no head.")
    rows, tokens = task.split("train"), task.tokens(max_tokens)
    chosen = anchors if isinstance(anchors, Split) else anchor_rows(task, anchors, seed)
    if len(chosen) < 2:
        raise UsageError(f"{len(chosen)} anchors: at least 2.")
    if not ridge >= 0:
        raise UsageError(f"ridge={ridge}: it must be 0 or more.")
    require_every_class(task, rows)
    r = relative_features(
        features_of(encoder, rows, tokens).double(), features_of(encoder, chosen, tokens).double()
    )
    head = probe(r, rows.labels, len(task.label_names), objective=task.objective, ridge=ridge).head
    return RelativeHead(head.weight, cast(Tensor, head.bias), chosen, tokens, encoder.source)
