import pytest
import torch

import tauspan as ts
from helpers.zoo import normal
from tauspan.core.errors import UsageError
from tauspan.tasks import with_orthogonal_heads


def task(name: str, classes: int) -> ts.Task:
    x, y = normal(2 * classes, 4, seed=classes), torch.arange(2 * classes) % classes
    names = [str(number) for number in range(classes)]
    return ts.Task.from_tensors(name, names, train=(x, y), validation=(x, y), test=(x, y))


def encoder(width: int) -> ts.Encoder:
    torch.manual_seed(0)
    return ts.load(torch.nn.Linear(4, width).double())


def test_classes_are_at_equal_angles_and_tasks_at_right_ones() -> None:
    found = with_orthogonal_heads([task("a", 5), task("b", 2), task("c", 3)], encoder(7), seed=3)
    weights = [one.head.weight for one in found if one.head is not None]
    for weight in weights:
        count = len(weight)
        angles = torch.full((count, count), -1 / (count - 1)).double().fill_diagonal_(1)
        torch.testing.assert_close(weight @ weight.T, angles)
    for i, one in enumerate(weights):
        for other in weights[:i]:
            torch.testing.assert_close(one @ other.T, torch.zeros(len(one), len(other)).double())


def test_the_seed_decides_and_heads_are_used() -> None:
    model, given = encoder(6), [task("a", 3), task("b", 3)]
    first, again, other = (with_orthogonal_heads(given, model, seed=seed) for seed in (0, 0, 1))
    weights = [tasks[0].head.weight for tasks in (first, again, other) if tasks[0].head is not None]
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])
    vectors = {
        one: ts.finetune(model, one, ts.Settings("linear", lr=0.1, max_steps=3)).task_vector for one in first
    }
    moved = ts.Editor(model, vectors).interference().drift
    assert set(moved) == {"a", "b"}


def test_tasks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match=r"the tasks need 7 dimensions .* gives 6 features"):
        with_orthogonal_heads([task("a", 5), task("b", 4)], encoder(6))
    x, y = normal(4, 4, seed=0), normal(4, 1, seed=1)
    numbers = ts.Task.from_tensors(
        "n", ["y"], train=(x, y), validation=(x, y), test=(x, y), objective="regression"
    )
    with pytest.raises(UsageError, match="n: equal angles are between two classes or more"):
        with_orthogonal_heads([numbers], encoder(6))
    assert with_orthogonal_heads([], encoder(6)) == []
