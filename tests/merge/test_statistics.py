"""Fisher and RegMean against closed forms; the gathering of their statistics against plain loops; their files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from helpers import runs
from helpers.searches import random_vector
from helpers.tiny import BASE, same_bits
from helpers.zoo import close, normal
from tauspan import store
from tauspan.core.errors import (
    BaseMismatchError,
    DataError,
    MismatchError,
    NonFiniteError,
    StoreError,
    UsageError,
)
from tauspan.core.reading import Reading
from tauspan.merge import METHODS, merge
from tauspan.merge.data.gather import fisher_information, gram_matrices
from tauspan.merge.data.statistics_file import FORMAT, Statistics, statistics_of
from tauspan.models import Classifier, Encoder, fingerprint_of, load_model, state_of
from tauspan.tasks import Task
from tauspan.vector import TaskVector

Q: dict[str, Any] = {}


def taus(*tensors: Tensor, name: str = "w", regime: Any = "standard") -> list[TaskVector]:
    return [TaskVector({name: t}, BASE, regime, f"t{place}") for place, t in enumerate(tensors)]


def merged(method: str, vectors: list[TaskVector], known: Any, **options: Any) -> Tensor:
    """The merged tensor `w`; `known` is one tensor a vector."""
    need = METHODS[method].needs[0]
    return merge(vectors, method, options, statistics={need: [{"w": one} for one in known]}).deltas["w"]


# -- fisher --------------------------------------------------------------------------------------------------


@given(
    weight=st.lists(st.floats(0.01, 5), min_size=3, max_size=3), normalize=st.booleans(), seed=st.integers(0, 99)
)  # fmt: skip
def test_fisher_is_the_weighted_mean_of_the_formula(weight: list[float], normalize: bool, seed: int) -> None:
    x, f = normal(3, 4, 5, seed=seed).double(), normal(3, 4, 5, seed=seed + 1).double().square() + 0.01
    found = merged("fisher", taus(*x), f, weight=weight, normalize=normalize)
    shares = torch.tensor(weight, dtype=torch.float64)
    if normalize:
        shares = shares / f.flatten(1).norm(dim=1)
    importance = shares[:, None, None] * f
    assert close(found, (importance * x).sum(0) / importance.sum(0), 1e-12)


def test_fisher_worked_by_hand() -> None:
    vectors = taus(torch.tensor([4.0, 1.0, 2.0]), torch.tensor([0.0, 3.0, 4.0]))
    known = torch.tensor([[3.0, 0.0, 0.0], [1.0, 2.0, 0.0]])
    plain = merged("fisher", vectors, known, normalize=False, floor=0)
    assert plain.tolist() == [3.0, 3.0, 3.0]  # 12/4; only the second knows; nobody does: the mean
    target = merged("fisher", vectors, known, normalize=False, floor=0.5, floored="first")
    assert target.tolist() == [3.0, pytest.approx(6.5 / 2.5), 2.0]  # where nobody knows, the first wins
    both = merged("fisher", vectors, known, normalize=False, floor=0.5)
    assert both.tolist() == [3.0, pytest.approx(6.5 / 2.5), 3.0]


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_limits_one_vector_equal_vectors_equal_statistics_and_order(method: str) -> None:
    x = normal(3, 6, 4, seed=1)
    inputs = normal(3, 9, 4, seed=2)
    known = x.square() + 0.1 if method == "fisher" else inputs.mT @ inputs
    assert same_bits({"w": merged(method, taus(x[0]), known[:1])}, {"w": x[0]})
    assert close(merged(method, taus(x[0], x[0], x[0]), known), x[0], 1e-6)
    assert close(merged(method, taus(*x), known[[0, 0, 0]]), x.mean(0), 1e-6)
    found = merged(method, taus(*x), known)
    vectors = [taus(*x)[place] for place in (2, 0, 1)]
    assert close(merged(method, vectors, known[[2, 0, 1]]), found, 1e-6)
    assert not close(found, x.mean(0), 1e-2)
    weighed = merged(method, taus(*x), known, weight=[0.0, 1.0, 0.0])
    assert close(weighed, x[1], 1e-6)


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_tensors_without_statistics_are_averaged_by_weight(method: str) -> None:
    a, b = taus(torch.tensor([2.0, 4.0]), torch.tensor([4.0, 8.0]))
    pair = [replace(v, deltas={**v.deltas, "b": v.deltas["w"] + 1, "s": v.deltas["w"][0]}) for v in (a, b)]
    need = METHODS[method].needs[0]
    one = torch.ones(2) if need == "fisher" else None
    known = [{"w": one} if one is not None else {} for _ in pair]
    found = merge(pair, method, {"weight": [1.0, 3.0]}, statistics={need: known})
    assert found.deltas["b"].tolist() == pytest.approx([4.5, 8.0])
    assert found.deltas["s"].item() == pytest.approx(3.5)


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_points_and_displacements_give_the_same(method: str) -> None:
    model = runs.encoder()
    vectors = [random_vector(model, 10 * t, "standard").named(f"t{t}") for t in range(3)]
    known = [fisher_information(model, v, runs.points(), rows=4, **Q) for v in vectors]
    if method == "regmean":
        known = [gram_matrices(model, v, runs.points(), rows=4, **Q) for v in vectors]
    given_ = statistics_of(vectors, known)
    apart = merge(vectors, method, statistics=given_)
    points = merge(vectors, method, statistics=given_, base=model)
    linear = merge([v.as_regime("linear") for v in vectors], method, statistics=given_)
    for name, delta in apart.deltas.items():
        assert close(delta, points.deltas[name], 1e-9)
        assert torch.equal(delta, linear.deltas[name])


def test_fisher_does_not_depend_on_the_cut_into_blocks() -> None:
    x, f = normal(2, 300_000, seed=3), normal(2, 300_000, seed=4).abs()
    found = merged("fisher", taus(*x), f)
    small = torch.cat(
        [merged("fisher", taus(*x[:, p]), f[:, p], normalize=False, weight=(1 / f.norm(dim=1)).tolist())
         for p in (slice(0, 7), slice(299_990, None))]
    )  # fmt: skip
    assert close(torch.cat([found[:7], found[299_990:]]), small, 1e-5)


def test_errors_of_the_methods_name_tensor_and_repair() -> None:
    vectors = taus(torch.ones(2, 2), torch.zeros(2, 2))
    with pytest.raises(UsageError, match="needs 'fisher' statistics"):
        merge(vectors, "fisher")
    with pytest.raises(MismatchError, match=r"'w' have shape \(2, 3\)|'w' have shape"):
        merged("regmean", vectors, torch.ones(2, 3, 3))
    with pytest.raises(UsageError, match="all weights of 'w' are 0"):
        merged("fisher", vectors, torch.ones(2, 2, 2), weight=0)
    with pytest.raises(UsageError, match="'t1' is 0 everywhere"):
        merged("fisher", vectors, torch.stack([torch.ones(2, 2), torch.zeros(2, 2)]))
    with pytest.raises(MismatchError, match="not positive semi-definite"):
        merged("regmean", vectors, torch.tensor([[[1.0, 9.0], [9.0, 1.0]]] * 2))
    with pytest.raises(UsageError, match="alpha"):
        merged("regmean", vectors, torch.ones(2, 2, 2), alpha=1.5)


# -- regmean -------------------------------------------------------------------------------------------------


def test_regmean_of_linear_regressions_is_the_joint_least_squares_solution() -> None:
    x, y = normal(3, 20, 6, seed=1).double(), normal(3, 20, 2, seed=2).double()
    alone = [torch.linalg.lstsq(a, b).solution.T for a, b in zip(x, y, strict=True)]
    joint = torch.linalg.lstsq(x.flatten(0, 1), y.flatten(0, 1)).solution.T
    found = merged("regmean", taus(*alone), x.mT @ x / 20, alpha=1)
    assert close(found, joint, 1e-10)
    assert not close(merged("regmean", taus(*alone), x.mT @ x / 20), joint, 1e-3)


@given(alpha=st.floats(0, 0.999), seed=st.integers(0, 99))
def test_regmean_is_the_formula(alpha: float, seed: int) -> None:
    w, x = normal(2, 3, 4, seed=seed).double(), normal(2, 9, 4, seed=seed + 1).double()
    gram = x.mT @ x * (alpha + (1 - alpha) * torch.eye(4, dtype=torch.float64))
    shares = torch.tensor([2.0, 0.5], dtype=torch.float64)[:, None, None]
    wanted = (shares * w @ gram).sum(0) @ torch.linalg.inv((shares * gram).sum(0))
    assert close(merged("regmean", taus(*w), x.mT @ x, alpha=alpha, weight=[2.0, 0.5]), wanted, 1e-8)


@pytest.mark.parametrize("alpha", [0.9, 1.0])
def test_inputs_that_nobody_has_stay_the_mean(alpha: float) -> None:
    w, x = normal(2, 3, 5, seed=1).double(), normal(2, 2, 5, seed=2).double()
    x[:, :, 4] = 0
    found = merged("regmean", taus(*w), x.mT @ x, alpha=alpha)
    assert close(found[:, 4], w.mean(0)[:, 4], 1e-12)
    if alpha == 1:  # four rows in four live columns: each model's own outputs on its rows are reached
        x = x[:, :1]
        found = merged("regmean", taus(*w), x.mT @ x, alpha=1)
        for own, row in zip(w, x, strict=True):
            assert close(found @ row.T, own @ row.T, 1e-9)
        away = torch.eye(5, dtype=torch.float64) - torch.linalg.pinv(x.flatten(0, 1)) @ x.flatten(0, 1)
        assert close(found @ away, w.mean(0) @ away, 1e-9)


# -- gathering -----------------------------------------------------------------------------------------------


def loop(model: Encoder, vector: TaskVector, task: Task, regime: str, labels: bool) -> dict[str, Tensor]:
    """The Fisher information by one Jacobian a row, each formula written out."""
    classifier = Classifier(model, task.head)  # type: ignore[arg-type]
    theta0 = state_of(model)
    names = list(vector.deltas)
    rows = task.split("train")
    total = {name: torch.zeros_like(theta0[name]) for name in names}
    for x, y in zip(rows.inputs, rows.labels.tolist(), strict=True):

        def logits(theta: dict[str, Tensor], x: Any = x) -> Tensor:
            named = {f"encoder.backbone.{name}": tensor for name, tensor in theta.items()}
            return functional_call(classifier, named, (x[None],))[0]  # type: ignore[no-any-return]

        at = {n: theta0[n] + vector.deltas[n] for n in names} if regime == "standard" else theta0
        jacobian = jacrev(logits)(at)
        out = logits(at)
        if regime != "standard":
            out = out + sum(
                (jacobian[n].flatten(1) @ vector.deltas[n].flatten() for n in names), torch.tensor(0.0)
            )
        p = out.softmax(-1)
        for k in range(len(p)):
            share = float(k == y) if labels else float(p[k])
            for n in names:
                along = jacobian[n][k] - torch.einsum("k,k...->...", p, jacobian[n])
                total[n] += share * along.square() / len(rows)
    return total


@pytest.mark.parametrize("over", ["model", "labels"])
@pytest.mark.parametrize("regime", ["standard", "posthoc", "linear"])
def test_fisher_information_is_the_plain_loop(regime: Any, over: Any) -> None:
    model, task = runs.encoder(), runs.points(9)
    vector = random_vector(model, 4, "linear" if regime == "linear" else "standard")
    found = fisher_information(model, vector, task, over=over, regime=regime, **Q)
    wanted = loop(model, vector, task, regime, over == "labels")
    assert found.rows == 9
    assert found.tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found.tensors[name].dtype == torch.float64
        assert close(found.tensors[name], tensor, 1e-10)
    assert all(tensor.grad is None for tensor in model.parameters())


def test_fisher_information_draws_rows_by_seed() -> None:
    model, task = runs.encoder(), runs.points(12)
    vector = random_vector(model, 4, "standard")
    first, again, other = (fisher_information(model, vector, task, rows=3, seed=s, **Q) for s in (0, 0, 1))
    assert first.rows == 3
    assert same_bits(first.tensors, again.tensors)
    assert not same_bits(first.tensors, other.tensors)


@pytest.mark.parametrize("regime", ["standard", "linear"])
def test_gram_matrices_are_products_of_each_layers_inputs(regime: Any) -> None:
    model, task = runs.encoder(), runs.points(20)
    vector = random_vector(model, 4, regime)
    found = gram_matrices(model, vector, task, reading=Reading(batch_size=7), **Q)
    x = torch.stack(list(task.split("train").inputs))
    theta = (
        state_of(model)
        if regime == "linear"
        else {n: t + vector.deltas[n] for n, t in state_of(model).items()}
    )
    hidden = torch.tanh(F.linear(x, theta["0.weight"], theta["0.bias"]))
    assert set(found.tensors) == {"0.weight", "2.weight"}
    assert close(found.tensors["0.weight"], x.T @ x / 20, 1e-12)
    assert close(found.tensors["2.weight"], hidden.T @ hidden / 20, 1e-12)
    assert not any(module._forward_hooks for module in model.modules())


def test_padding_is_no_row_of_a_gram_matrix(tmp_path: Path) -> None:
    model, task = runs.bert(tmp_path), runs.texts(12)
    vector = random_vector(model, 4, "standard")
    alone, together = (
        gram_matrices(model, vector, task, reading=Reading(batch_size=size), **Q) for size in (1, 12)
    )
    assert len(alone.tensors) > 4
    for name, tensor in alone.tensors.items():
        assert close(tensor, together.tensors[name], 1e-4), name


def test_a_weight_with_other_uses_has_no_gram_matrix() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.mix, self.out = nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5, bias=False)
            self.out.weight = self.words.weight

        def forward(self, batch: Tensor) -> Tensor:
            return self.out(self.mix(self.words(batch)).mean(1))  # type: ignore[no-any-return]

    model = load_model(Tied().eval())
    x, y = torch.tensor([[0, 1], [2, 3]]), torch.arange(2)
    task = Task.from_tensors("t", ["a", "b"], train=(x, y), validation=(x, y), test=(x, y))
    assert set(gram_matrices(model, random_vector(model, 1, "standard"), task, **Q).tensors) == {"mix.weight"}


def test_gathering_refuses_what_does_not_fit() -> None:
    model, task = runs.encoder(), runs.points(4)
    vector = random_vector(model, 4, "standard")
    for gather in (fisher_information, gram_matrices):
        with pytest.raises(BaseMismatchError):
            gather(runs.encoder(1), vector, task, **Q)
        with pytest.raises(DataError, match="at least one row"):
            gather(model, vector, task, rows=0, **Q)
        with pytest.raises(DataError, match="no split"):
            gather(model, vector, task, split="tests", **Q)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="is a standard vector"):
            gather(model, vector, task, regime="linear", **Q)
    with pytest.raises(UsageError, match="'model'"):
        fisher_information(model, vector, task, over="modle", **Q)  # type: ignore[arg-type]
    biases = replace(vector, deltas={"0.bias": vector.deltas["0.bias"]})
    with pytest.raises(UsageError, match="moves no weight of a linear layer"):
        gram_matrices(model, biases, task, **Q)


# -- files ---------------------------------------------------------------------------------------------------


def example(**changes: Any) -> Statistics:
    facts: dict[str, Any] = {
        "kind": "fisher", "tensors": {"w": torch.tensor([1.0, 2.0])}, "base": BASE, "regime": "standard",
        "vector": "t0", "task": "news", "split": "train", "rows": 3, "info": {"seed": 1},
    }  # fmt: skip
    return Statistics(**(facts | changes))


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    known = example()
    file = known.save(tmp_path / "f.safetensors")
    found = Statistics.from_file(file, base=BASE, kind="fisher")
    assert same_bits(found.tensors, known.tensors)
    assert replace(found, tensors=known.tensors).__dict__ == known.__dict__
    assert list(store.Checkpoint(file)) == ["w"]  # the model's own names, so that merging can stream it
    with pytest.raises(StoreError, match="already there"):
        known.save(file)
    with pytest.raises(BaseMismatchError, match="Gather them anew"):
        Statistics.from_file(file, base="c" * 64)
    with pytest.raises(MismatchError, match="'gram' ones are needed"):
        Statistics.from_file(file, kind="gram")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", "tauspan-vector/1"),
        ("kind", "hessian"),
        ("rows", "3"),
        ("base", None),
        ("info", []),
        ("task", 3),
    ],
)
def test_a_header_that_does_not_fit_is_named(tmp_path: Path, field: str, value: Any) -> None:
    file = example().save(tmp_path / "f.safetensors")
    header = json.loads(store.Checkpoint(file).metadata["tauspan"]) | {field: value}
    store.write_tensors(file, {"w": torch.ones(2)}, {"tauspan": json.dumps(header)})
    with pytest.raises(StoreError, match=f"{field}"):
        Statistics.from_file(file)


@pytest.mark.parametrize("metadata", [None, {"tauspan": "{"}, {"tauspan": "[]"}])
def test_other_files_are_refused(tmp_path: Path, metadata: Any) -> None:
    store.write_tensors(tmp_path / "f.safetensors", {"w": torch.ones(2)}, metadata)
    with pytest.raises(StoreError, match=r"f\.safetensors"):
        Statistics.from_file(tmp_path / "f.safetensors")


def test_statistics_are_finite_and_of_a_known_kind() -> None:
    with pytest.raises(NonFiniteError, match="fisher statistics of 't0'"):
        example(tensors={"w": torch.tensor([1.0, float("nan")])})
    with pytest.raises(UsageError, match="'hessian'"):
        example(kind="hessian")
    assert FORMAT == "tauspan-statistics/1"


def test_statistics_must_fit_their_vectors() -> None:
    vectors = taus(torch.ones(2), torch.zeros(2))
    one, two = example(), example(vector="t1")
    assert statistics_of(vectors, [one, two]) == {"fisher": [one.tensors, two.tensors]}
    for wrong, error, message in (
        ([one], UsageError, "each vector needs its own"),
        ([one, example(vector="t1", base="c" * 64)], BaseMismatchError, "gathered from base c"),
        ([two, one], MismatchError, "give both in one order"),
        ([one, example(vector="t1", kind="gram")], MismatchError, "kind 'gram'"),
        ([one, example(vector="t1", regime="posthoc")], MismatchError, "regime 'posthoc'"),
        ([one, example(vector="t1", tensors={"v": torch.ones(2)})], MismatchError, "'?v'?"),
        ([example(tensors={"v": torch.ones(2)}), example(vector="t1", tensors={"v": torch.ones(2)})],
         MismatchError, "does not hold"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            statistics_of(vectors, wrong)
    assert fingerprint_of(runs.encoder()) != BASE
