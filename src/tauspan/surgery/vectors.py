"""Task vectors, adapters and statistics moved through the map of a graft, so that they fit the grafted model."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tauspan import store
from tauspan.core.arguments import checked
from tauspan.core.errors import BaseMismatchError, MismatchError, listed
from tauspan.core.params import Params
from tauspan.merge.data.statistics_file import Statistics
from tauspan.merge.lora.adapter_config import CONFIG
from tauspan.merge.lora.adapters import AdapterSource, save_adapter
from tauspan.merge.lora.lowrank import LowRank, Term
from tauspan.merge.sources.vocabulary import is_vocabulary
from tauspan.store import Stored
from tauspan.surgery.rowmap import RowMap
from tauspan.surgery.views import by_rows
from tauspan.vector import TaskVector


def _is_table(name: str, shape: torch.Size, rows: RowMap) -> bool:
    """Whether the rows of a tensor are tokens, by its name and shape."""
    return is_vocabulary(Stored(name, torch.float32, shape, Path(), 0, 0), rows.columns)


def _turned(tensor: Tensor, rows: RowMap) -> Tensor:
    """P times a table or a bias, in its own layout."""
    table = by_rows(tensor, rows.columns)
    made = rows.apply(table)
    return made if table is tensor else made[None]


@checked
def move_vector(vector: TaskVector, rows: RowMap, base: str) -> TaskVector:
    """A task vector of the old model as one of the grafted model: tau' = P tau on tables and biases, the rest as it is.

    P is linear, so moving commutes with adding, scaling and linear merges, and f at theta0' + tau' has the table
    P (E + tau).

    Args:
        vector: of the old model, under the names of its files.
        rows: P, of the graft.
        base: the fingerprint of the grafted model.

    Returns:
        A vector with `base` as its base, and `info["rows"]`, the digest of P.

    Raises:
        BaseMismatchError: P is of another model's rows; it is not known of every P.
        MismatchError: a table with fewer rows than P reads, or a vector of a small space that moves a table.

    Cost: one pass over the tables that it moves.

    Example:
        >>> tau = TaskVector({"embed_tokens.weight": torch.tensor([[1.0], [3.0]])}, "old", "standard")
        >>> move_vector(tau, RowMap.of([{0: 0.5, 1: 0.5}], 2), "new").deltas["embed_tokens.weight"]
        tensor([[2.]])
    """
    _require_rows_of(vector.base, rows, f"{vector.label!r} starts")
    if rows.is_identity:
        return replace(vector, base=base)
    moved = _moved(vector.deltas, rows, vector)
    return replace(vector, deltas=moved, base=base, info={**vector.info, "rows": rows.digest})


def _require_rows_of(base: str, rows: RowMap, what: str) -> None:
    """Raise unless a map is of the rows of the base that something starts from; old maps do not say."""
    if rows.base and base != rows.base:
        raise BaseMismatchError(
            f"{what} from base {base[:12]}, and the map is of the rows of base {rows.base[:12]}. Take the map of the "
            "model that it starts from: graft that model."
        )


@checked
def move_statistics(known: Statistics, rows: RowMap, base: str) -> Statistics:
    """Statistics for merging, of an edit of the old model, as those of the same edit of the grafted model.

    A Gram matrix stays: P acts on the rows of a table and the matrix on its columns, so that (sum_t P W_t G_t)
    (sum_t G_t)^-1 = P (sum_t W_t G_t) (sum_t G_t)^-1. A diagonal Fisher is a precision: where theta is normal with mean
    theta_t and variances 1 / F (Matena and Raffel 2022, arXiv:2111.09832), P theta has the variances

        1 / F'_n = sum_i P_ni^2 / F_i,

    and F'_n = 0 where one of its old rows has 0. A copied row keeps its F, bit for bit, and merges as before with
    `normalize=False`; norms are over the new rows. For a mixed row the correlations with other new rows are left out,
    so that merging does not commute with P there. All numbers are of texts as the old tokenizer cuts them; statistics
    that the grafted model gathers anew are other ones.

    Args:
        known: of the old model.
        rows: P, of the graft.
        base: the fingerprint of the grafted model.

    Returns:
        Statistics with `base` as their base, and `info["rows"]`, the digest of P.

    Raises:
        BaseMismatchError: P is of another model's rows; it is not known of every P.
        MismatchError: a table with fewer rows than P reads.
        UsageError: P is a product of maps with shared rows: move through one after the other.

    Cost: as `move_vector`, twice in float64.

    Example:
        >>> sure = {"embed_tokens.weight": torch.tensor([[1.0], [3.0]])}
        >>> known = Statistics("fisher", sure, "old", "standard", "tau", "news", "train", 9)
        >>> move_statistics(known, RowMap.of([{1: 1.0}, {0: 0.5, 1: 0.5}], 2), "new").tensors["embed_tokens.weight"]
        tensor([[3.],
                [3.]])
    """
    _require_rows_of(known.base, rows, f"the statistics of {known.vector!r} are of an edit")
    if rows.is_identity:
        return replace(known, base=base)
    moved = {
        name: _precision(one, rows, name)
        if known.kind == "fisher" and _is_table(name, one.shape, rows)
        else one
        for name, one in known.tensors.items()
    }
    return replace(known, tensors=moved, base=base, info={**known.info, "rows": rows.digest})


def _precision(fisher: Tensor, rows: RowMap, name: str) -> Tensor:
    """F' of a table or a bias, in its own layout."""
    table = by_rows(fisher, rows.columns)
    rows.require_fitting(table.shape, f"{name!r} of the statistics")
    squared, sums = rows.squares()
    unknown = table <= 0
    variances = torch.where(unknown, 0.0, 1 / table.double())
    found = squared.apply(variances) * sums.view(-1, *[1] * (table.dim() - 1))
    made = torch.where(squared.apply(unknown.double()) > 0, 0.0, 1 / found).to(table.dtype)
    copied = rows.copies >= 0
    made[copied] = table[rows.copies[copied]]
    return made if table is fisher else made[None]


def _moved(deltas: Params, rows: RowMap, vector: TaskVector) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    small = set() if vector.space is None else set(vector.space.names)
    tables = [name for name in small if _is_table(name, torch.Size([rows.columns]), rows)]
    if tables:
        raise MismatchError(
            f"{vector.label!r} moves {listed(tables)} by the few numbers of a small space, which the new rows do not "
            "have. Make it whole: `tauspan vector dense BASE VECTOR -o OUT`, and move that."
        )
    for name, delta in deltas.items():
        table = _is_table(name, delta.shape, rows)
        if table:
            rows.require_fitting(
                by_rows(delta, rows.columns).shape, f"{name!r} of the vector {vector.label!r}"
            )
        made[name] = _turned(delta, rows) if table else delta
    return made


def move_low(low: LowRank, rows: RowMap) -> LowRank:
    """A low-rank displacement through P: of its products only the factor that has the tokens moves.

    A table's displacement is (b a)^T for an embedding and b a for a head, so P acts on a^T or on b, and the rank stays.

    Example:
        >>> term = Term(torch.ones(1, 2), torch.tensor([[1.0], [3.0]]), 1.0)
        >>> move_low(LowRank({"lm_head.weight": (term,)}), RowMap.of([{1: 1.0}], 2)).dense("lm_head.weight")
        tensor([[3., 3.]])
    """
    terms: dict[str, tuple[Term, ...]] = {}
    for name, own in low.terms.items():
        table = _is_table(name, own[0].shape, rows) and not rows.is_identity
        terms[name] = tuple(_term(term, rows) for term in own) if table else own
    return replace(low, terms=terms)


def _term(term: Term, rows: RowMap) -> Term:
    rows.require_fitting(term.shape, "a factor of the adapter")
    if term.layout in ("embedding", "transposed"):
        return replace(term, a=rows.apply(term.a.T.contiguous()).T.contiguous())
    return replace(term, b=rows.apply(term.b))


@checked
def move_adapter(
    path: str | Path, rows: RowMap, out: str | Path, *, base: str | None = None, overwrite: bool = False
) -> Path:
    """An adapter that PEFT wrote for the old model, written for the grafted one.

    Args:
        path: the adapter's directory.
        rows: P, of the graft.
        out: the directory to write.
        base: what its settings name as its model; None leaves the old one.
        overwrite: replace what is there.

    Raises:
        UsageError: it holds whole tensors, which are points: make a vector of it and move that.
        StoreError: something is at `out`.
    """
    adapter = AdapterSource(path)

    def finish(folder: Path) -> None:
        if base is not None:
            content = store.read_json(folder / CONFIG)
            store.write_json(folder / CONFIG, {**content, "base_model_name_or_path": base, "revision": None})

    return save_adapter(move_low(adapter.low, rows), out, like=adapter, overwrite=overwrite, finish=finish)
