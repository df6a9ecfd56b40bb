"""`factors`: the curvature of a task's rows at theta0, in one of several forms, from recorded rows of J."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import ModelError, UsageError, listed, nearest
from tauspan.core.measure import progress
from tauspan.core.reading import Reading
from tauspan.drift.blocks import Block, Diagonal, Kronecker, Rotated, Table, Whole
from tauspan.drift.factors import Factors
from tauspan.drift.others import require_others, told_apart
from tauspan.kernel.rows.data import AnyBatch, taken
from tauspan.kernel.rows.jacobian import Jacobian
from tauspan.kernel.rows.layers import pieces
from tauspan.kernel.rows.pieces import Lookup, Piece, Pieces, Product, Written, written
from tauspan.kernel.rows.selector import Outputs
from tauspan.models import Classifier, Encoder, fingerprint_of
from tauspan.tangent import linearize
from tauspan.tasks import Task, build_head
from tauspan.train.convex import labelled

_NOT_HERE = "Use backend='contraction'."
_SHORT = 2048  # entries of a parameter whose G is kept whole

Counted: TypeAlias = Mapping[int, Tensor]


@checked
def factors(
    encoder: Encoder,
    task: Task,
    kind: str = "reduce",
    *,
    rows: int | None = None,
    seed: int = 0,
    params: str | Sequence[str] = "all",
    probes: int | None = None,
    reading: Reading = Reading(batch_size=32),
) -> Factors:
    """The curvature G = E_x J(x)^T J(x) of a task's training rows at theta0, layer by layer, in one of these forms.

    For a weight with inputs a_t and sensitivities g_t at the positions t of a row, the row's Jacobian is sum_t g_t a_t^T.

    | kind | block of a weight | sees |
    |---|---|---|
    | `"expand"` | A = mean over positions of a a^T, B = sum over positions of g g^T | positions as if each were a row |
    | `"reduce"` | A = E ā ā^T, ā the mean over positions; B = E ĝ ĝ^T, ĝ the sum | a row as one position |
    | `"ekfac"` | the eigenvectors of `"reduce"`, with the exact diagonal of G in them | |
    | `"diagonal"` | the exact diagonal of G | no two entries together |

    A mean over positions leaves padding out: what the attention mask masks or, in a batch without one, positions whose
    embeddings no output depends on.

    Both are from Eschenhagen et al. (arXiv 2311.00636), EK-FAC from George et al. (arXiv 1806.03884). Biases, norms and
    other parameters of at most 2,048 entries have their exact block, larger ones their diagonal; embeddings how often
    each row is read, and B. No form sees two parameters together.

    Args:
        encoder: the pre-trained encoder.
        task: whose training rows are read, without labels, under its head.
        kind: the form.
        rows: so many of them; None takes all.
        seed: of their choice, and of the signs.
        params: which parameters have blocks.
        probes: so many random sums of the outputs, with signs drawn for each row, in place of all outputs; 1 makes the
            cost independent of the number of classes, and the factors noisy.
        reading: batches, and where texts are cut.

    Raises:
        UsageError: another kind, or a task without logits.
        ModelError: a model whose rows of J cannot be recorded layer by layer.

    Cost:
        A forward pass and C (or `probes`) backward passes over the rows; twice for `"ekfac"`. Bytes: a^2 + b^2 numbers of
        a weight (b, a), and a b more for `"ekfac"`.
    """
    if kind not in KINDS:
        raise UsageError(f"kind={kind!r}. {nearest(kind, KINDS)}")
    require_others([task])
    some = task if rows is None else task.subset(train=rows, seed=seed)
    reading.require_no_point("factors")
    tangent = linearize(Classifier(encoder, build_head(task, encoder, max_tokens=reading.max_tokens)), params)
    cut = task.tokens(reading.max_tokens)
    batches = [
        batch for batch, _ in labelled(encoder, some.split("train"), cut, reading.batch_size, task.objective)
    ]
    sides = [Jacobian.of(tangent, batches, reading.batch_size, outputs) for outputs in _outputs(probes, seed)]
    count = len(some.split("train"))

    def passes() -> Iterator[tuple[Pieces, AnyBatch]]:
        known: dict[Hashable, frozenset[int]] = {}
        with progress(f"factors of {task.name}", len(sides) * len(batches)) as advance:
            for side in sides:
                for places, batch in side.parts():
                    yield _recorded(side, places, batch, known), batch
                    advance(1, "")

    blocks = KINDS[kind](passes, 1 / (count * len(sides)))
    facts = {
        "kind": kind, "rows": count, "seed": seed, "probes": probes, "max_tokens": reading.max_tokens,
        "params": params if isinstance(params, str) else list(params), "tasks": told_apart([some]),
    }  # fmt: skip
    return Factors(blocks, fingerprint_of(encoder), facts)


def _recorded(
    side: Jacobian, places: list[int], batch: AnyBatch, known: dict[Hashable, frozenset[int]]
) -> Pieces:
    """The rows of J of a batch, layer by layer.

    A row that is alone in its batch is read twice: only beside another one do its own inputs differ from what belongs to
    all rows, such as positions that are read by `arange(T)[None]`.
    """
    alone = len(places) == 1 and not side.together
    try:
        if alone:
            both = pieces(side, places * 2, taken(batch, [0, 0]), known)
            return {name: _row(piece, 0) for name, piece in both.items()}
        return pieces(side, places, batch, known)
    except ModelError as error:
        raise ModelError(
            f"curvature factors are of layers: {str(error).removesuffix(_NOT_HERE).strip()} Take "
            "`Exact`, which needs no layers."
        ) from error


def _counted(found: Pieces, batch: AnyBatch) -> Counted:
    """Which positions of texts are not padding, by how many positions there are: bools of shape (n, T).

    The batch's attention mask says it, else the sensitivities of embeddings, which are zero at padding.
    """
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if isinstance(mask, Tensor) and mask.dim() > 1:
        own = mask.flatten(1).bool().cpu()
        return {own.shape[1]: own}
    counted: dict[int, Tensor] = {}
    for piece in found.values():
        if isinstance(piece, Lookup):
            moved, long = _moved(piece), piece.places.shape[1]
            counted[long] = counted[long] | moved if long in counted else moved
    return counted


def _moved(piece: Product | Lookup) -> Tensor:
    """Where some output depends on a position, shape (n, T)."""
    found: Tensor = (piece.sensitivity != 0).any(3).any(1)
    return found


def _shares(piece: Product | Lookup, counted: Counted) -> Tensor:
    """What each position counts in the mean over those of its row, shape (n, T): padding nothing, the others alike."""
    n, _, long, _ = piece.sensitivity.shape
    own = counted.get(long)
    if own is None or len(own) != n or long == 1:
        return torch.full((n, long), 1 / long, dtype=torch.float64)
    own = own | _moved(piece)
    own = own | ~own.any(1, keepdim=True)
    return own.double() / own.sum(1, keepdim=True)


def _outputs(probes: int | None, seed: int) -> list[Outputs]:
    """Which outputs are read: all, or random sums."""
    if probes is None:
        return ["all"]
    if probes < 1:
        raise UsageError(f"probes={probes}: at least 1, or None for all outputs.")
    return [("signs", seed * 1000 + number) for number in range(probes)]


# -- forms ---------------------------------------------------------------------------------------------------

Passes = Callable[[], Iterator[tuple[Pieces, AnyBatch]]]


class _Sums(dict[str, dict[str, Tensor]]):
    """Sums of tensors by parameter and field, in float64."""

    def add(self, name: str, **parts: Tensor) -> None:
        """Add a batch's part to each field; an empty one, of a batch that does not read the parameter, counts as zero.

        Raises:
            ModelError: another form of block than in the batches before.
        """
        mine = self.setdefault(name, {})
        empty = not all(part.numel() for part in parts.values())
        if mine and empty:
            return
        if not all(part.numel() for part in mine.values()):
            mine.clear()
        if mine and mine.keys() != parts.keys():
            raise ModelError(
                f"{name!r} has a block of {listed(sorted(mine))} in one batch and of {listed(sorted(parts))} in another, "
                "so their sum means nothing. Take kind='diagonal', or a `reading` with one batch of all rows."
            )
        for field, part in parts.items():
            wide = part.double()
            mine[field] = mine[field] + wide if field in mine else wide


def _expand(passes: Passes, share: float) -> dict[str, Block]:
    def weight(piece: Product, shares: Tensor) -> dict[str, Tensor]:
        a, g = piece.inputs.double() * shares.sqrt()[..., None], piece.sensitivity.double()
        return {
            "inputs": torch.einsum("nta,ntc->ac", a, a),
            "outputs": torch.einsum("nitb,nitc->bc", g, g),
        }

    return _kronecker(passes, share, weight)


def _reduce(passes: Passes, share: float) -> dict[str, Block]:
    def weight(piece: Product, shares: Tensor) -> dict[str, Tensor]:
        a = torch.einsum("nt,nta->na", shares, piece.inputs.double())
        g = piece.sensitivity.double().sum(2)
        return {"inputs": a.T @ a, "outputs": torch.einsum("nib,nic->bc", g, g)}

    return _kronecker(passes, share, weight)


def _kronecker(
    passes: Passes, share: float, weight: Callable[[Product, Tensor], Mapping[str, Tensor]]
) -> dict[str, Block]:
    """Kronecker blocks of weights, and the exact or smallest block of other parameters."""
    sums, turned = _Sums(), set()
    for found, batch in passes():
        counted = _counted(found, batch)
        for name, piece in found.items():
            if isinstance(piece, Product):
                sums.add(name, **weight(piece, _shares(piece, counted)))
                turned |= {name} if piece.turned else set()
            elif isinstance(piece, Lookup):
                shares = _shares(piece, counted).flatten()
                often = torch.bincount(piece.places.flatten(), shares, piece.size)
                g = piece.sensitivity.double()
                sums.add(name, often=often, table=torch.einsum("nitb,nitc->bc", g, g))
            else:
                sums.add(name, **_of_short(piece))
    return {name: _finished(parts, share, name in turned) for name, parts in sums.items()}


def _of_short(piece: Written) -> dict[str, Tensor]:
    """The exact block of a short parameter, the diagonal of a longer one."""
    jacobian = piece.jacobian.double().flatten(0, 1)
    return (
        {"matrix": jacobian.T @ jacobian}
        if jacobian.shape[1] <= _SHORT
        else {"entries": jacobian.square().sum(0)}
    )


def _finished(parts: Mapping[str, Tensor], share: float, turned: bool) -> Block:
    """The mean block over rows. A weight that is stored as (a, b) has its factors exchanged."""
    if "entries" in parts:
        return Diagonal(parts["entries"] * share)
    if "matrix" in parts:
        return Whole(parts["matrix"] * share)
    if "often" in parts:
        return Table(parts["often"] * share, parts["table"] * share)
    inputs, outputs = parts["inputs"] * share, parts["outputs"] * share
    return Kronecker(outputs, inputs) if turned else Kronecker(inputs, outputs)


def _ekfac(passes: Passes, share: float) -> dict[str, Block]:
    blocks = _reduce(passes, share)
    axes = {
        name: (torch.linalg.eigh(one.inputs).eigenvectors, torch.linalg.eigh(one.outputs).eigenvectors)
        for name, one in blocks.items()
        if isinstance(one, Kronecker)
    }
    sums = _Sums()
    for found, _ in passes():
        for name in axes.keys() & found.keys():
            piece = found[name]
            if isinstance(piece, Product):
                inner, outer = axes[name][::-1] if piece.turned else axes[name]
                a, g = piece.inputs.double() @ inner, piece.sensitivity.double() @ outer
                scale = torch.zeros(outer.shape[1], inner.shape[1], dtype=torch.float64)
                for row, outputs in zip(a, g, strict=True):  # one row's matrices at a time
                    scale += (outputs.mT @ row).square().sum(0)
                sums.add(name, scale=scale.T if piece.turned else scale)
    rotated = {name: Rotated(*axes[name], parts["scale"] * share) for name, parts in sums.items()}
    return {**blocks, **rotated}


def _diagonal(passes: Passes, share: float) -> dict[str, Block]:
    sums = _Sums()
    for found, _ in passes():
        for name, piece in found.items():
            total: Tensor | None = None
            for low in range(len(_lead(piece))):  # one row at a time, since rows are written out
                part = written(_row(piece, low)).double().square().sum((0, 1))
                total = part if total is None else total + part
            if total is not None:
                sums.add(name, entries=total)
    return {name: Diagonal(parts["entries"] * share) for name, parts in sums.items()}


def _lead(piece: Piece) -> Tensor:
    return piece.jacobian if isinstance(piece, Written) else piece.sensitivity


def _row(piece: Piece, row: int) -> Piece:
    """One row of a piece."""
    one: Any = slice(row, row + 1)
    if isinstance(piece, Written):
        return Written(piece.jacobian[one])
    if isinstance(piece, Product):
        return Product(piece.inputs[one], piece.sensitivity[one], piece.turned)
    return Lookup(piece.places[one], piece.sensitivity[one], piece.size)


KINDS: Mapping[str, Callable[[Passes, float], dict[str, Block]]] = {
    "expand": _expand, "reduce": _reduce, "ekfac": _ekfac, "diagonal": _diagonal,
}  # fmt: skip
"""The forms of curvature by name; a new one is a function of the recorded rows of J, and a row here."""
