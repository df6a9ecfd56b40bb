"""Cached contributions: affine arithmetic, heads, and passes of several directions at a time."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.runs import encoder, points
from helpers.zoo import normal
from tauspan.core.errors import BaseMismatchError, MismatchError, StoreError, UsageError
from tauspan.models import Classifier, Head, fingerprint_of, state_of
from tauspan.tangent import linearize
from tauspan.tangent.contributions import Contributions, contributions
from tauspan.tasks.batches import batches
from tauspan.vector import TaskVector


def made(rows: int = 6, width: int = 5, head: Head | None = None) -> Contributions:
    value, tangents = normal(rows, width, seed=1), normal(3, rows, width, seed=2)
    return Contributions(value, tangents, torch.arange(rows) % 2, ("a", "b", "c"), head, {"fingerprint": "f"})


def head(normalize: bool) -> Head:
    return Head(normal(2, 5, seed=3).float(), normal(2, seed=4).float(), scale=3.0, normalize=normalize)


def test_logits_are_the_head_of_the_affine_outputs() -> None:
    part, a = made(head=head(True)).double(), torch.tensor([0.2, -1.0, 0.5], dtype=torch.float64)
    outputs = part.value + sum(x * t for x, t in zip(a, part.tangents, strict=True))
    assert part.head is not None
    torch.testing.assert_close(part.logits(a), part.head(outputs), rtol=0, atol=1e-13)
    with pytest.raises(MismatchError, match="3 directions a, b, c"):
        part.logits([1.0])


def test_an_affine_head_is_folded_exactly_and_a_normalising_one_stays() -> None:
    part, a = made(head=head(False)).double(), [0.2, -1.0, 0.5]
    folded = part.folded()
    assert folded.head is None
    assert folded.tangents.shape == (3, 6, 2)
    torch.testing.assert_close(folded.logits(a), part.logits(a), rtol=0, atol=1e-12)
    kept = made(head=head(True)).double()
    assert kept.folded() is kept


def test_sums_and_rows_are_taken_before_the_coefficients() -> None:
    part = made()
    both = part.summed({"ab": ["a", "b"], "c": ["c"]})
    assert both.names == ("ab", "c")
    torch.testing.assert_close(both.logits([0.3, 2.0]), part.logits([0.3, 0.3, 2.0]), rtol=0, atol=1e-13)
    places = torch.tensor([4, 4, 0])
    assert torch.equal(part.rows(places).logits([1.0, 2.0, 3.0]), part.logits([1.0, 2.0, 3.0])[places])
    with pytest.raises(UsageError, match="'z'"):
        part.summed({"x": ["z"]})


def test_a_file_holds_it_all_and_another_base_is_refused(tmp_path: Path) -> None:
    part = made(head=head(True)).double()
    file = part.save(tmp_path / "part.safetensors")
    again = Contributions.from_file(file, base="f")
    assert torch.equal(again.logits([1.0, 2.0, 3.0]), part.logits([1.0, 2.0, 3.0]))
    assert (again.names, again.info) == (part.names, part.info)
    with pytest.raises(BaseMismatchError, match="Compute it anew"):
        Contributions.from_file(file, base="other")
    with pytest.raises(MismatchError, match="has split=None, and 'test' is wanted"):
        Contributions.from_file(file, base="f", expect={"split": "test"})
    with pytest.raises(StoreError, match="already there"):
        part.save(file)
    TaskVector({"w": torch.ones(1)}, "b", "linear").save_pretrained(tmp_path / "tau.safetensors")
    with pytest.raises(StoreError, match="reads contributions"):
        Contributions.from_file(tmp_path / "tau.safetensors")


def test_directions_in_several_passes_are_the_directions_in_one() -> None:
    model, task = encoder(), points()
    rows = task.split("validation")
    assert task.head is not None
    base = fingerprint_of(model)

    def tau(seed: int) -> TaskVector:
        deltas: dict[str, Tensor] = {n: normal(*t.shape, seed=seed) for n, t in state_of(model).items()}
        return TaskVector(deltas, base, "linear", f"tau{seed}")

    vectors = {f"t{seed}": tau(seed) for seed in range(5)}
    tangent = linearize(Classifier(model, task.head))
    prepared = batches(model, rows, None, 4)
    one, several = (contributions(tangent, vectors, prepared, rows.labels, together=n) for n in (5, 2))
    assert one.names == several.names
    torch.testing.assert_close(one.tangents, several.tangents, rtol=0, atol=1e-12)
    assert torch.equal(one.value, several.value)
    with pytest.raises(UsageError, match="together=0"):
        contributions(tangent, vectors, prepared, rows.labels, together=0)
    with pytest.raises(UsageError, match="at least one direction"):
        contributions(tangent, {}, prepared, rows.labels)
