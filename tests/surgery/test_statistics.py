"""Statistics for merging, moved to a grafted model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from helpers import vocabularies as made
from tauspan.core.errors import BaseMismatchError
from tauspan.editing.model.edit_files import Base
from tauspan.merge import merge
from tauspan.merge.data.statistics_file import Statistics, statistics_of
from tauspan.models.extras import quiet
from tauspan.store import Checkpoint
from tauspan.surgery import Filling, RowMap, graft, move, move_statistics, move_vector
from tauspan.surgery.grafting import ROWS
from tauspan.vector import TaskVector

TABLE, BIAS = "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"


def variances(p: torch.Tensor, fisher: torch.Tensor) -> torch.Tensor:
    """The variances of P theta, written out: sum_i P_ni^2 / F_i over the rows that n is made of."""
    made = torch.zeros(len(p), *fisher.shape[1:], dtype=torch.float64)
    for new, row in enumerate(p):
        for old in row.nonzero().flatten().tolist():
            made[new] += row[old] ** 2 / fisher[old].double()
    return made


def test_a_fisher_moves_as_precisions_and_copied_rows_merge_as_before(tmp_path: Path) -> None:
    with quiet(transformers):
        made.bert(tmp_path / "bert", made.word_pieces(60), padding=4, head=True)
    made.save(tmp_path / "bytes", made.byte_level(320))
    out = graft(tmp_path / "bert", tmp_path / "bytes", tmp_path / "out", Filling(how="mean")).out
    rows, base, new = (
        RowMap.load(out / ROWS),
        Base(str(tmp_path / "bert")).fingerprint,
        Base(str(out)).fingerprint,
    )
    kept, p = rows.copies >= 0, rows.dense()
    shapes = {name: one.shape for name, one in Checkpoint(tmp_path / "bert").read().items()}
    taus, known, moved = [], [], []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        tau = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        sure = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
        sure[TABLE][7 + seed] = 0  # a token that no text has
        taus.append(TaskVector(tau, base, "standard", str(seed)))
        known.append(Statistics("fisher", sure, base, "standard", str(seed), "news", "train", 4))
        file = known[-1].save(tmp_path / f"{seed}.safetensors")
        file = move(file, tmp_path / "bert", out, tmp_path / f"{seed}-new.safetensors")
        moved.append(Statistics.from_file(file, base=new))
    for name in (TABLE, BIAS):
        wanted = 1 / variances(p, known[0].tensors[name])  # 0 where a part has 0
        torch.testing.assert_close(moved[0].tensors[name].double(), wanted, rtol=1e-6, atol=0)
    assert bool((rows.sizes > 1).any())
    assert bool((moved[0].tensors[BIAS] > 1).any())  # a mean of all is surer than any of them
    assert torch.equal(moved[0].tensors[TABLE][kept], known[0].tensors[TABLE][rows.copies[kept]])
    assert all(
        torch.equal(moved[0].tensors[name], known[0].tensors[name]) for name in shapes.keys() - {TABLE, BIAS}
    )
    plain = {"normalize": False}  # a norm is over all rows, and there are others now
    before = move_vector(merge(taus, "fisher", plain, statistics=statistics_of(taus, known)), rows, new)
    taus = [move_vector(tau, rows, new) for tau in taus]
    after = merge(taus, "fisher", plain, statistics=statistics_of(taus, moved))
    assert torch.equal(after.deltas[TABLE][kept], before.deltas[TABLE][kept])


def test_a_gram_matrix_stays_and_another_base_is_refused() -> None:
    rows = replace(RowMap.of([{1: 1.0}], 2), base="old")
    gram = Statistics("gram", {"lm_head.weight": torch.eye(3)}, "old", "standard", "tau", "news", "train", 4)
    found = move_statistics(gram, rows, "new")
    assert (found.base, found.info) == ("new", {"rows": rows.digest})
    assert torch.equal(found.tensors["lm_head.weight"], torch.eye(3))
    assert move_statistics(gram, replace(RowMap.identity(2), base="old"), "new").base == "new"
    with pytest.raises(BaseMismatchError, match="the statistics of 'tau' are of an edit from base other"):
        move_statistics(replace(gram, base="other"), rows, "new")
