"""The table in CONTRIBUTING of what an addition touches: each kind of thing is added here through the public door."""

import argparse
import dataclasses
import re
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import tauspan as ts
from helpers.searches import world
from tauspan.cli.fields import add_fields, read_fields
from tauspan.cli.main import parser
from tauspan.core.reading import Reading
from tauspan.editing.model.directions import Directions
from tauspan.editing.model.ordinary import OrdinaryModel
from tauspan.editing.search.addition import addition
from tauspan.experiments.run import PARTS, Evaluation, Findings, Part, Recipe
from tauspan.kernel import Kernel, Loss, LossProblem, LossSolution, solve_ridge
from tauspan.merge import merge, own_method
from tauspan.train import Settings

PAGE = (Path(__file__).resolve().parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
KINDS = re.findall(r"^\| (an? [^|]+?) \|", PAGE.partition("## What an addition touches")[2], re.MULTILINE)


def add_a_merge_method() -> None:
    def median(values: Tensor, base: Tensor | None, *, scale: float = 1.0) -> Tensor:
        """The median of each number."""
        return scale * values.median(0).values

    _, vectors = world("standard")
    merged = merge(list(vectors.values()), own_method(median), {"scale": 2.0})
    name = next(iter(merged.deltas))
    stacked = torch.stack([tau.deltas[name] for tau in vectors.values()])
    assert torch.equal(merged.deltas[name], 2.0 * stacked.median(0).values)


def add_a_kernel() -> None:
    class Squares(Kernel):
        """k(x, y) = (x . y)^2 on fixed points."""

        x = torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.5, 0.0]], dtype=torch.float64)

        @property
        def shape(self) -> tuple[int, int]:
            return 3, 3

        def matmat(self, vectors: Tensor) -> Tensor:
            return (self.x @ self.x.T).square() @ vectors

        def diag(self) -> Tensor:
            return self.x.square().sum(1).square()

    kernel = Squares() * 2 + 0.1
    whole = kernel.dense()
    assert torch.allclose(whole, 2 * (Squares.x @ Squares.x.T).square() + 0.1 * torch.eye(3))
    assert torch.allclose(kernel @ torch.ones(3), whole.sum(1))


def add_a_regime() -> None:
    class Halved(OrdinaryModel):
        """f at theta0 and half of every coefficient."""

        def _edited(self, used):  # type: ignore[no-untyped-def]
            return super()._edited({name: value / 2 for name, value in used.items()})

    model, vectors = world("standard")
    directions = Directions.whole({task.name: vector for task, vector in vectors.items()})
    whole, own = dict.fromkeys(directions.names, 1.0), {task: {task.name: 1.0} for task in vectors}
    halved, plain = (
        addition(kind(model, directions, "standard", Reading()), vectors, whole, own, grid)
        for kind, grid in ((Halved, [0.8]), (OrdinaryModel, [0.4]))
    )
    assert halved.mean.added == plain.mean.added


def add_a_loss_of_closed_forms() -> None:
    def halves(problem: LossProblem) -> LossSolution:
        """Half of the ridge regression on one-hot labels."""
        targets = torch.nn.functional.one_hot(problem.labels, problem.start.shape[1]).double()
        solution = solve_ridge(problem.kernel, targets, problem.strength)
        return LossSolution(dataclasses.replace(solution, alpha=solution.alpha / 2), {"halved": True})

    model, vectors = world("standard")
    task = next(iter(vectors))
    made = ts.closed_form(model, task, Loss(halves, ridge=0.5))
    kernel, solver = made.kernel, made.vector.info["solver"]
    targets = torch.nn.functional.one_hot(task.split("train").labels, len(task.label_names)).double()
    wanted = kernel.pullback(solve_ridge(kernel, targets, 0.5).alpha / 2)
    for name, delta in made.vector.deltas.items():
        assert torch.allclose(delta.double(), wanted[name].double())
    assert (solver["objective"], solver["halved"]) == ("halves", True)


def add_a_run_part() -> None:
    @dataclasses.dataclass(frozen=True)
    class Toy(Part):
        """Does nothing."""

        words: tuple[str, ...] = ()
        key: ClassVar[str] = "toy"

        def evaluations(self, run: object) -> list[Evaluation]:
            return []

        def measure(self, run: object, which: Evaluation) -> None:
            """Not called."""

        def findings(self, run: object) -> Findings:
            return Findings([], [], {})

    text = "model: minilm\ntasks: [email_spam]\ntoy: {words: [a, b]}\n"
    recipe = Recipe.parse(text, parts=(*PARTS, Toy))
    toy = recipe.part(Toy)
    assert toy is not None
    assert toy.words == ("a", "b")


@dataclasses.dataclass(frozen=True)
class Longer(Settings):
    """Settings with one more.

    Args:
        momentum: of the optimiser.
    """

    momentum: float = 0.5


def add_a_fine_tuning_option() -> None:
    made = argparse.ArgumentParser()
    add_fields(made, Longer)
    assert (
        read_fields(made.parse_args(["--momentum", "0.25", "--regime", "standard"]), Longer).momentum == 0.25
    )
    assert "of the optimiser" in made.format_help()
    assert Longer(momentum=0.25).as_dict()["momentum"] == 0.25


def add_a_verb() -> None:
    def family(verbs, verb):  # type: ignore[no-untyped-def]
        verb(verbs, "greet", "say hello", lambda options: None).add_argument("name")

    assert parser([family]).parse_args(["greet", "you", "--json"]).name == "you"


ADDED = {
    "a merge method": add_a_merge_method,
    "a kernel": add_a_kernel,
    "a regime": add_a_regime,
    "a loss of closed forms": add_a_loss_of_closed_forms,
    "a part of a run": add_a_run_part,
    "a fine-tuning option": add_a_fine_tuning_option,
    "a verb": add_a_verb,
}


@pytest.mark.parametrize("kind", ADDED)
def test_a_toy_one_is_added_through_the_public_door(kind: str) -> None:
    ADDED[kind]()


def test_the_page_says_what_each_touches() -> None:
    assert list(ADDED) == KINDS
    files = re.findall(
        r"`(src/[^`]+|tests/[^`]+|docs/[^`]+)`", PAGE.partition("## What an addition touches")[2]
    )
    root = Path(__file__).resolve().parents[2]
    assert files
    for file in files:
        assert (root / file).exists(), file


def test_the_face_has_what_an_addition_needs() -> None:
    assert {"Settings", "Reading", "Editor", "quiet"} <= set(ts.__all__)
