"""Superposed vectors against the primal problem written out in weight space, and their identities."""

import dataclasses
import logging

import pytest
import torch
from torch import nn

import tauspan as ts
from helpers import zoo
from tauspan.core.errors import DataError, ModelError, UsageError
from tauspan.kernel import Ghosts, UnionKernel, joint, superpose
from tauspan.kernel.operator import closed_form as closed
from tauspan.kernel.operator import superposing
from tauspan.kernel.operator.superposing import Rows
from tauspan.kernel.rows.jacobian import Jacobian
from tauspan.kernel.solvers.kernels import ScaledKernel
from tauspan.kernel.solvers.regression import choose_ridge
from tauspan.models import Encoder, Head
from tauspan.objectives import Regression

RIDGE = 0.3
CLASSES = {"a": 2, "b": 3, "c": 2}


def encoder():
    torch.manual_seed(0)
    return Encoder(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)).double())


def task(name, rows=6):
    """Rows, labels and a frozen head by the name."""
    seed = ord(name)
    x = zoo.normal(rows, 3, seed=seed).double()
    y = torch.arange(rows) % CLASSES[name]
    head = Head(zoo.normal(CLASSES[name], 4, seed=seed + 1).double())
    labels = [f"{name}{place}" for place in range(CLASSES[name])]
    return ts.Task.from_tensors(name, labels, train=(x, y), validation=(x, y), test=(x, y), head=head)


def three():
    return [task(name, rows) for name, rows in (("a", 6), ("b", 5), ("c", 4))]


def flat(vector):
    return torch.cat([vector.deltas[name].flatten() for name in sorted(vector.deltas)])


def jacobian(kernel):
    """J row by row, in the order of `flat`."""
    units = torch.eye(kernel.shape[0], dtype=torch.float64)
    pulled = [kernel.pullback(unit) for unit in units]
    return torch.stack([torch.cat([one[name].flatten() for name in sorted(one)]) for one in pulled])


def written_out(found, target, weights):
    """argmin 1/2 |J_t tau - r|^2 + 1/2 sum_s sum_rows w |J_s tau|^2 + ridge/2 |tau|^2, by the normal equations."""
    setting = found.setting
    total = wanted = None
    for name, kernel in setting.union.kernels.items():
        wide = jacobian(kernel)
        each = weights[name].repeat_interleave(kernel.outputs)
        part = wide.T @ (each[:, None] * wide)
        total = part if total is None else total + part
        if name == target:
            wanted = wide.T @ (each * setting.residuals[name])
    return torch.linalg.solve(total + found.ridge * torch.eye(len(total), dtype=total.dtype), wanted)


def ones(found, **given):
    counts = {
        name: torch.ones(kernel.samples).double() for name, kernel in found.setting.union.kernels.items()
    }
    return {
        name: torch.as_tensor(given.get(name, 1.0), dtype=torch.float64) * one for name, one in counts.items()
    }


def same(left, right, tolerance=1e-10):
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance * float(right.abs().max()))


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 20.0, {"a": 3.0, "c": 0.0}])
def test_each_vector_is_the_minimum_of_its_own_loss(weight):
    found = superpose(encoder(), three(), Ghosts(weight), RIDGE)
    for target, vector in found.vectors.items():
        others = {name: found.setting.ghosts.weight_of(name) for name in "abc" if name != target.name}
        same(flat(vector), written_out(found, target.name, ones(found, **others)))


def test_jacobians_and_residuals_written_out_give_the_same_vectors() -> None:
    """Nothing of the oracle comes from the library: J by `jacrev`, residuals and the solve in plain float64."""
    model, tasks = encoder(), three()
    found = superpose(model, tasks, 1.0, RIDGE, gap=1.3)
    theta = {name: p.detach() for name, p in model.backbone.named_parameters()}
    rows, wanted, owner = [], [], []
    for one in tasks:
        x = torch.stack(list(one.split("train").inputs))

        def logits(parameters, x=x, head=one.head):
            return head(torch.func.functional_call(model.backbone, parameters, (x,)))

        f0 = logits(theta)
        size = f0.shape[1]
        centre = torch.eye(size).double() - 1 / size
        full = torch.func.jacrev(logits)(theta)
        rows.append(torch.cat([full[name].flatten(2) for name in sorted(theta)], 2).flatten(0, 1).detach())
        hot = torch.eye(size).double()[one.split("train").labels] @ centre
        wanted.append((1.3 * hot - f0 @ centre).flatten().detach())
        owner += [one.name] * len(wanted[-1])
    j, y = torch.cat(rows), torch.cat(wanted)
    gram = j.T @ j + RIDGE * torch.eye(j.shape[1]).double()
    for one, vector in found.vectors.items():
        own = torch.tensor([name == one.name for name in owner]).double()
        same(flat(vector), torch.linalg.solve(gram, j.T @ (own * y)))


def test_a_seed_decides_the_vectors_to_the_bit() -> None:
    first, again, other = (
        superpose(encoder(), three(), Ghosts(rows=2, seed=seed), RIDGE).vectors.values() for seed in (1, 1, 2)
    )
    assert all(torch.equal(flat(a), flat(b)) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(flat(a), flat(b)) for a, b in zip(first, other, strict=True))


def test_at_weight_0_they_are_the_vectors_of_closed_form():
    found = superpose(encoder(), three(), 0.0, RIDGE)
    for one, vector in found.vectors.items():
        same(flat(vector), flat(ts.closed_form(encoder(), one, ridge=RIDGE).vector))
    assert found.joint_residual is None


def test_at_weight_1_the_sum_is_the_optimum_of_all_tasks_and_of_any_of_them():
    found = superpose(encoder(), three(), 1.0, RIDGE)
    setting = found.setting
    together = joint(setting.union.kernels, setting.residuals, RIDGE).solution.alpha
    whole = sum(one.alpha for one in found.solutions.values())
    same(whole, together)
    assert found.joint_residual < 1e-12
    some = {name: setting.residuals[name] * (name != "b") for name in "abc"}  # b is asked to stay
    same(
        found.solutions["a"].alpha + found.solutions["c"].alpha,
        joint(setting.union.kernels, some, RIDGE).solution.alpha,
    )
    added = sum(map(flat, found.vectors.values()))
    pulled = setting.union.pullback(together)
    same(added, torch.cat([pulled[name].flatten() for name in sorted(pulled)]))


def test_a_large_weight_leaves_the_other_rows_where_they_are():
    found = superpose(encoder(), three(), 1e8, RIDGE)
    moved = found.interference()
    for on in "abc":
        for by in "abc":
            if on != by:
                assert float(moved.changes[on, by].abs().max()) < 1e-5 * float(
                    moved.changes[by, by].abs().max()
                )


@pytest.mark.parametrize("choose", ["random", "pivoted"])
def test_few_ghost_rows_count_for_all(choose):
    found = superpose(encoder(), three(), Ghosts(2.0, rows=2, choose=choose, seed=3), RIDGE)
    for target, vector in found.vectors.items():
        weights = {}
        for name, kernel in found.setting.union.kernels.items():
            entries = found.setting.weights(target.name)[found.setting.union.spans[name]]
            weights[name] = entries.view(-1, kernel.outputs)[:, 0]
            if name != target.name:
                assert int((weights[name] > 0).sum()) == 2
                assert float(weights[name].sum()) == pytest.approx(2.0 * kernel.samples)
        same(flat(vector), written_out(found, target.name, weights))


def test_inputs_without_labels_take_the_place_of_the_tasks_rows():
    inputs = zoo.normal(7, 3, seed=5).double()
    found = superpose(encoder(), three(), Ghosts(1.5, inputs=inputs), RIDGE)
    assert sorted(found.setting.union.kernels) == sorted(
        n for name in "abc" for n in (name, f"{name} / inputs")
    )
    sizes = {"a": 6, "b": 5, "c": 4}
    for target, vector in found.vectors.items():
        given = {name: float(name == target.name) for name in "abc"}
        given |= {f"{name} / inputs": 1.5 * sizes[name] / 7 * (name != target.name) for name in "abc"}
        same(flat(vector), written_out(found, target.name, ones(found, **given)))


def test_controls_are_ghosts_without_a_vector():
    everyone = three()
    found = superpose(encoder(), everyone[:1], 4.0, RIDGE, controls=everyone[1:])
    assert [one.name for one in found.vectors] == ["a"]
    same(flat(found.vectors[everyone[0]]), written_out(found, "a", ones(found, b=4.0, c=4.0)))
    both = superpose(encoder(), everyone[:2], 1.0, RIDGE, controls=everyone[2:])
    assert both.joint_residual < 1e-12
    assert both.vectors[everyone[0]].info["solver"]["others"] == ["b", "c"]


def test_numbers_are_superposed_too():
    tasks = [
        ts.Task.from_tensors(
            name, ["u", "v"], objective="regression", train=(x, y), validation=(x, y), test=(x, y),
            head=Head(zoo.normal(2, 4, seed=place).double()),
        )
        for place, name in enumerate(("first", "second"))
        for x, y in [(zoo.normal(5, 3, seed=place).double(), zoo.normal(5, 2, seed=place + 9).double())]
    ]  # fmt: skip
    assert isinstance(tasks[0].objective, Regression)
    found = superpose(encoder(), tasks, 1.0, RIDGE)
    assert found.joint_residual < 1e-12


# -- tasks and rows that come and go -------------------------------------------------------------------------


def scratch(tasks, **options):
    return superpose(encoder(), tasks, 1.0, RIDGE, **options)


def all_same(left, right):
    assert left.tasks == right.tasks
    for mine, theirs in zip(left.vectors.values(), right.vectors.values(), strict=True):
        same(flat(mine), flat(theirs), 1e-9)


def test_a_task_comes_and_goes_and_nothing_is_computed_twice(monkeypatch):
    first, second, third = three()
    base = scratch([first, second])
    made, plain = [], Rows.kernel

    def counted(self, one):
        made.append(one.name)
        return plain(self, one)

    monkeypatch.setattr(Rows, "kernel", counted)
    more = base.joined(third)
    assert made == ["c"]
    less = more.without("a")
    again = less.without_rows("b", [0, 3])
    assert made == ["c"]
    monkeypatch.undo()
    all_same(more, scratch([first, second, third]))
    all_same(less, scratch([second, third]))
    kept = dataclasses.replace(
        second, splits={**second.splits, "train": second.split("train").take([1, 2, 4])},
        head_rows=second.split("train"),
    )  # fmt: skip
    all_same(again, scratch([kept, third]))
    assert again.without_rows("b", [1]).setting.gone == {"b": (0, 3, 1)}
    assert again.joint_residual < 1e-12


@pytest.mark.parametrize(
    "ghosts", [0.0, 3.0, Ghosts(2.0, rows=2), Ghosts({"b": 5.0}, rows=2, choose="pivoted")]
)
def test_other_ghosts_need_no_kernel(ghosts, monkeypatch):
    found, wanted = superpose(encoder(), three(), 1.0, RIDGE), superpose(encoder(), three(), ghosts, RIDGE)
    monkeypatch.setattr(Rows, "kernel", None)
    all_same(found.with_ghosts(ghosts), wanted)


def test_the_vectors_of_all_tasks_come_of_one_pass(monkeypatch):
    found = superpose(encoder(), three(), 1.0, RIDGE)
    batches = sum(len(kernel.left.batches) for kernel in found.setting.union.kernels.values())
    seen, plain = [], Jacobian.graph

    def counted(self, *args):
        seen.append(args)
        return plain(self, *args)

    monkeypatch.setattr(Jacobian, "graph", counted)
    again = found.with_ghosts(1.0)
    assert len(seen) == batches
    alphas = [one.alpha for one in found.solutions.values()]
    alone = [found.setting.union.pullback(alpha) for alpha in alphas]
    for vector, tau in zip(again.vectors.values(), alone, strict=True):
        assert all(torch.equal(vector.deltas[name], delta) for name, delta in tau.items())


def test_rows_of_a_control_and_of_inputs_go_too():
    everyone = three()
    inputs = zoo.normal(3, 3, seed=5).double()
    found = superpose(encoder(), everyone[:2], Ghosts(1.0, inputs=inputs), RIDGE, controls=everyone[2:])
    less = found.without("c")
    all_same(less, superpose(encoder(), everyone[:2], Ghosts(1.0, inputs=inputs), RIDGE))
    fewer = found.without_rows("b", [0])
    weights = ones(fewer, b=0.0, c=0.0, **{"a / inputs": 0.0, "b / inputs": 4 / 3, "c / inputs": 4 / 3})
    same(flat(fewer.vectors[everyone[0]]), written_out(fewer, "a", weights))


# -- solvers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
def test_conjugate_gradients_give_the_same_vectors(weight, monkeypatch):
    direct = superpose(encoder(), three(), weight, RIDGE)
    monkeypatch.setattr(superposing, "DENSE", 5)
    found = superpose(encoder(), three(), weight, RIDGE)
    assert {one.solver for one in found.solutions.values()} == {"ridge by conjugate gradients"}
    for mine, theirs in zip(found.vectors.values(), direct.vectors.values(), strict=True):
        same(flat(mine), flat(theirs), 1e-7)


def test_leave_one_out_leaves_out_whole_rows_of_all_tasks():
    found = superpose(encoder(), three(), 1.0, "loo")
    setting, grid = found.setting, found.choice.grid
    matrix = setting.union.dense()
    wanted = sum(setting.wanted(name) for name in "abc")
    ridge, errors = grid[8], []
    for name, kernel in setting.union.kernels.items():
        for row in range(kernel.samples):
            begin = setting.union.spans[name].start + row * kernel.outputs
            out = torch.arange(begin, begin + kernel.outputs)
            kept = torch.tensor([place for place in range(len(matrix)) if place not in out.tolist()])
            inner = matrix[kept][:, kept] + ridge * torch.eye(len(kept), dtype=matrix.dtype)
            guess = matrix[out][:, kept] @ torch.linalg.solve(inner, wanted[kept])
            errors.append(float((wanted[out] - guess).square().sum()))
    assert found.choice.errors[8] == pytest.approx(sum(errors) / len(errors), rel=1e-8)
    assert found.ridge == found.choice.ridge


def test_a_scaled_kernel_is_d_k_d():
    union = superpose(encoder(), three(), 1.0, RIDGE).setting.union
    diagonal = zoo.normal(union.shape[0], seed=8).double()
    wanted = torch.diag(diagonal) @ union.dense() @ torch.diag(diagonal)
    scaled = ScaledKernel(union, diagonal)
    same(scaled.dense(), wanted)
    same(scaled @ torch.eye(union.shape[0]).double(), wanted)
    same(scaled.diag(), wanted.diagonal())
    same(scaled.rows([3, 1]), wanted[[3, 1]])
    assert scaled.parts == union.parts
    assert choose_ridge(scaled, torch.ones(union.shape[0]), [1.0]).ridge == 1.0


# -- what it says --------------------------------------------------------------------------------------------


def test_the_report_says_what_is_missed_and_moved():
    found = superpose(encoder(), three(), 1.0, RIDGE)
    row = found.rows()[0]
    union, alpha = found.setting.union, found.solutions["a"].alpha
    wanted, span = found.setting.residuals["a"], union.spans["a"]
    mine = (union.dense() @ alpha)[span]
    whole = (union.dense() @ sum(one.alpha for one in found.solutions.values()))[span]
    assert row["missed"] == pytest.approx(float((wanted - mine).norm() / wanted.norm()))
    assert row["missed by the sum"] == pytest.approx(float((wanted - whole).norm() / wanted.norm()))
    assert row["moved by others"] == pytest.approx(float((whole - mine).norm() / mine.norm()))
    assert "optimum of all tasks together" in str(found)
    assert "that of none" in str(superpose(encoder(), three(), 2.0, RIDGE))
    assert repr(found).startswith("Superposed(a, b, c, ridge 0.3, sum = joint optimum")


def test_its_vectors_go_into_an_editor_and_files(tmp_path):
    found = superpose(encoder(), three(), 1.0, RIDGE)
    editor = ts.Editor(encoder(), found.vectors)
    joint_model = editor.evaluate(1.0)
    assert len(joint_model.tasks) == 3
    vector = next(iter(found.vectors.values()))
    vector.save_pretrained(tmp_path / "a")
    solver = ts.TaskVector.from_pretrained(tmp_path / "a").info["solver"]
    assert solver["ghosts"] == {"weight": 1.0}
    assert solver["others"] == ["b", "c"]


def test_what_cannot_be_is_refused_with_a_repair():
    first, second, _ = three()
    found = superpose(encoder(), [first, second], 1.0, RIDGE)
    for error, words, ask in [
        (UsageError, "closed_form` fits one alone", lambda: superpose(encoder(), [first])),
        (UsageError, "0 tasks", lambda: superpose(encoder(), [], controls=[first, second])),
        (DataError, "have one name", lambda: superpose(encoder(), [first, first])),
        (UsageError, "'d'", lambda: superpose(encoder(), [first, second], Ghosts({"d": 1.0}))),
        (UsageError, "0 or more", lambda: Ghosts(-1.0)),
        (UsageError, "of 'a'", lambda: Ghosts({"a": float("nan")})),
        (UsageError, "at least 1", lambda: Ghosts(rows=0)),
        (UsageError, "empty", lambda: Ghosts(inputs=[])),
        (UsageError, "give one", lambda: Ghosts(inputs=["x"], rows=2)),
        (UsageError, "pivoted", lambda: Ghosts(choose="pivot")),
        (UsageError, "ridge", lambda: superpose(encoder(), [first, second], ridge=0.0)),
        (DataError, r"\.without\('a'\)", lambda: found.joined(first)),
        (UsageError, "no task 'd'", lambda: found.without("d")),
        (UsageError, "keep at least one", lambda: found.without("a", "b")),
        (UsageError, "no task 'd'", lambda: found.without_rows("d", [0])),
        (UsageError, "no task 'd'", lambda: found.with_ghosts(Ghosts({"d": 1.0}))),
        (
            UsageError,
            "kernel of their own",
            lambda: found.with_ghosts(Ghosts(inputs=[first.split("train").inputs[0]])),
        ),
        (UsageError, "0 to 5", lambda: found.without_rows("a", [6])),
        (UsageError, "name rows", lambda: found.without_rows("a", [])),
        (UsageError, r"\.without\('a'\)", lambda: found.without_rows("a", range(6))),
        (UsageError, "at least two", lambda: found.without("a").interference()),
    ]:
        with pytest.raises(error, match=words):
            ask()


def test_a_wrong_kernel_is_caught_and_few_digits_are_told(monkeypatch, caplog):
    kernel = UnionKernel.matmat
    monkeypatch.setattr(UnionKernel, "matmat", lambda self, vectors: 1.01 * kernel(self, vectors))
    with pytest.raises(ModelError, match="certificate does not"):
        superpose(encoder(), three(), 1.0, RIDGE)
    monkeypatch.undo()
    monkeypatch.setattr(closed, "rounding", lambda dtype: 1e-17)
    monkeypatch.setattr(closed, "far", lambda *values: True)
    monkeypatch.setattr(UnionKernel, "pushed", lambda self, taus: self.matvec(self.alpha)[None] + 1e-18)
    found = superposing.setting_of(
        Rows(encoder(), None, "all", ts.Reading(), "auto"), three(), [], Ghosts(), RIDGE, 1e-10, 100
    )
    solution = found.solutions(RIDGE)["a"]
    found.union.alpha = solution.alpha
    with caplog.at_level(logging.WARNING):
        closed.require_certified(found.union, [solution.alpha], [superpose_vector(found, solution)])
    assert "take a larger ridge, or load the model in float64" in caplog.text


def superpose_vector(setting, solution):
    return closed.task_vector(setting.union, solution.alpha, "a", {})


@pytest.mark.parametrize("choose", ["random", "pivoted"])
def test_ghosts_are_chosen_among_the_rows_that_are_there(choose):
    found = superpose(encoder(), three(), Ghosts(3.0, rows=1, choose=choose), RIDGE)
    for gone in ([0, 2, 4, 5], [1, 2, 3, 4], [0, 1, 3, 5]):
        less = found.without_rows("a", gone)
        counted = less.setting.weights("b")[less.setting.union.spans["a"]].view(6, -1)
        assert (counted[gone] == 0).all()
        assert counted[:, 0].sum() == 3.0 * 2  # one row for the two that are there


def test_rows_that_left_are_in_no_figure():
    first, second, _ = three()
    kept = dataclasses.replace(
        first, splits={**first.splits, "train": first.split("train").take([1, 3, 4])}, head_rows=first.split("train")
    )  # fmt: skip
    less = superpose(encoder(), [first, second], 1.0).without_rows("a", [0, 2, 5])
    scratch_ = superpose(encoder(), [kept, second], 1.0)
    assert less.ridge == pytest.approx(scratch_.ridge, rel=1e-9)
    same(less.interference().table("on"), scratch_.interference().table("on"), 1e-7)
    assert superpose(
        encoder(), [first, second], Ghosts(inputs=list(torch.eye(3).double()))
    ).ridge == pytest.approx(superpose(encoder(), [first, second], 0.0).ridge, rel=1e-9)
