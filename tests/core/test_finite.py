"""NaN and infinity in outputs are an error that names the rows, in every function that reads outputs; never a class."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tauspan as ts
from helpers.program import make
from tauspan import editing
from tauspan.cli.main import main
from tauspan.core.errors import NonFiniteError
from tauspan.core.params import broken_rows, require_finite_rows
from tauspan.editing import adamerging
from tauspan.merge.data.compare import compare
from tauspan.models import Encoder, Head, fingerprint_of
from tauspan.objectives import Classification
from tauspan.tasks import Task
from tauspan.train import Settings, finetune
from tauspan.vector import TaskVector

BAD = 3  # the row that breaks
SHOW: dict[str, Any] = {}


class Shares(nn.Module):
    """Features that are shares of a whole, which a row of zeros does not have: 0 / 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(4, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x / x.sum(-1, keepdim=True))  # type: ignore[no-any-return]


class Overflow(Shares):
    """Features that overflow to infinity in a row of huge numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.where(x > 1e9, x * 1e200 * 1e200, x))  # type: ignore[no-any-return]


def task(split: str | None, name: str = "points", value: float = 0.0) -> Task:
    """Two classes; one row of one split breaks the model."""
    torch.manual_seed(2)
    splits = {}
    for one in ("train", "validation", "test"):
        x = torch.rand(8, 4, dtype=torch.float64) + 0.1
        if one == split:
            x[BAD] = value
        splits[one] = (x, torch.arange(8) % 2)
    head = Head(torch.eye(3, dtype=torch.float64)[:2], torch.zeros(2, dtype=torch.float64))
    return Task.from_tensors(name, ["a", "b"], head=head, **splits)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return ts.load(Shares())  # type: ignore[return-value]


def tau(encoder: Encoder, regime: Any, seed: int = 3) -> TaskVector:
    torch.manual_seed(seed)
    deltas = {name: 0.1 * torch.randn_like(p) for name, p in encoder.backbone.named_parameters()}
    return TaskVector(deltas, fingerprint_of(encoder), regime, f"tau{seed}")


BOTH, TUNED, CHOSEN = ("standard", "linear"), ("train", "validation"), ("validation", "test")
FEW: dict[str, Any] = {"bootstrap": 0, "max_evaluations": 2, **SHOW}
GRID: dict[str, Any] = {"grid": [0, 1], **SHOW}
# a call of (encoder, one vector, another, the broken task, a whole one, split), its regimes, the splits that it reads
CALLS: dict[str, tuple[Callable[..., object], tuple[str, ...], tuple[str, ...]]] = {
    "evaluate": (lambda e, v, w, t, c, s: ts.evaluate(e, [t], v, split=s, **SHOW).report(), BOTH, ("test", "train")),
    "evaluate zero-shot": (lambda e, v, w, t, c, s: ts.evaluate(e, [t], **SHOW).report(), BOTH[:1], ("test",)),
    "evaluate posthoc": (
        lambda e, v, w, t, c, s: ts.evaluate(e, [t], v, 1.0, "posthoc", **SHOW).report(), BOTH[:1], ("test",)
    ),
    "add": (lambda e, v, w, t, c, s: ts.add(e, {t: v}, **GRID).report(), BOTH, CHOSEN),
    "negate": (lambda e, v, w, t, c, s: ts.negate(e, c, v, [t], **GRID).report(), BOTH, CHOSEN),
    "coefficients": (lambda e, v, w, t, c, s: ts.coefficients(e, {t: v}, **FEW).report(), BOTH, CHOSEN),
    "front": (lambda e, v, w, t, c, s: editing.front(e, t, v, [c], prices=2, **FEW).report(), BOTH, CHOSEN),
    "compare": (
        lambda e, v, w, t, c, s: compare(e, {t: v}, {"sum": ("task_arithmetic", {})}, **GRID).report(), BOTH, CHOSEN
    ),
    "adamerging": (lambda e, v, w, t, c, s: adamerging(e, {t: v}, steps=1, **SHOW).report(), BOTH, CHOSEN),
    "disentanglement": (
        lambda e, v, w, t, c, s: ts.disentanglement(e, {t: v, c: w}, **GRID).report(), BOTH, ("test",)
    ),
    "diagnose": (lambda e, v, w, t, c, s: ts.diagnose(e, {t: v, c: w}, rows=8, **SHOW), BOTH[1:], ("train",)),
    "finetune": (lambda e, v, w, t, c, s: ts.finetune(e, t, ts.Settings(v.regime, batch_size=4), **SHOW), BOTH, TUNED),
    "finetune cached": (
        lambda e, v, w, t, c, s: ts.finetune(e, t, ts.Settings(v.regime, cache="primal"), **SHOW), BOTH[1:], TUNED[1:]
    ),
    "finetune_jointly": (
        lambda e, v, w, t, c, s: finetune(e, [c, t], Settings(v.regime), **SHOW), BOTH, TUNED
    ),
    "fit": (lambda e, v, w, t, c, s: ts.fit(e, t, max_steps=3, **SHOW), BOTH[1:], TUNED),
    "fit by newton-cg": (lambda e, v, w, t, c, s: ts.fit(e, t, "newton-cg", max_steps=3, **SHOW), BOTH[1:], TUNED),
}  # fmt: skip
CASES = [
    (n, regime, split) for n, (_, regimes, splits) in CALLS.items() for regime in regimes for split in splits
]


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize(("name", "regime", "split"), CASES)
def test_a_row_without_a_number_is_an_error_and_never_a_class(
    name: str, regime: str, split: str, encoder: Encoder
) -> None:
    with pytest.raises(NonFiniteError) as raised:
        CALLS[name][0](
            encoder, tau(encoder, regime), tau(encoder, regime, 4), task(split), task(None, "c"), split
        )
    assert raised.value.exit_code == 7
    assert "NaN" in str(raised.value) or "not finite" in str(raised.value)


@pytest.mark.parametrize("regime", ["standard", "linear"])
def test_the_row_is_named(regime: Any, encoder: Encoder) -> None:
    for split in ("test", "train"):
        edit = f" at 1 x '{tau(encoder, regime).label}'" if regime == "standard" else ""
        named = rf"'points' on {split}{edit}: NaN in 1 of 8 rows \({BAD}, from 0 on\)"
        with pytest.raises(NonFiniteError, match=named):
            ts.evaluate(encoder, [task(split)], tau(encoder, regime), split=split, **SHOW).report()
    with pytest.raises(NonFiniteError, match=rf"training rows {BAD} of 'points'"):
        ts.finetune(encoder, task("train"), ts.Settings(regime), **SHOW)
    with pytest.raises(NonFiniteError, match="'points' are NaN or infinite on validation rows"):
        ts.finetune(encoder, task("validation"), ts.Settings(regime), **SHOW)


def test_infinity_is_an_error_too() -> None:
    encoder = ts.load(Overflow())
    with pytest.raises(NonFiniteError, match=r"infinity in 1 of 8 rows|NaN in 1 of 8 rows"):
        ts.evaluate(encoder, [task("test", value=1e10)], **SHOW).report()


def test_accuracy_itself_counts_no_broken_row() -> None:
    logits = torch.tensor([[0.0, 1.0], [float("nan"), float("nan")], [float("inf"), 0.0]])
    with pytest.raises(NonFiniteError, match=r"2 of 3 rows \(1, 2"):
        Classification().value(logits, torch.tensor([1, 0, 0]))
    assert Classification().value(logits[:1], torch.tensor([1])) == 1.0


def test_rows_are_found_along_any_axis() -> None:
    values = torch.zeros(2, 5, 3)
    values[1, 4, 2] = float("-inf")
    assert broken_rows(values) == [1]
    assert broken_rows(values, 1) == [4]
    require_finite_rows(values[:, :4], "a part", 1)
    assert broken_rows(torch.zeros(0, 3)) == []
    assert broken_rows(torch.tensor([1, 2])) == []


def test_a_gradient_that_breaks_names_its_tensor() -> None:
    class Root(Shares):
        def forward(self, x: Tensor) -> Tensor:
            return (
                self.layer(x)
                + 0 * self.layer.bias.detach().new_zeros(())
                + (self.layer.weight * 0).sqrt().sum()
            )

    with pytest.raises(NonFiniteError, match=r"gradient of '(backbone\.)?layer\.weight' is not finite"):
        ts.finetune(ts.load(Root()), task(None), ts.Settings("standard"), **SHOW)  # type: ignore[arg-type]


def test_the_program_ends_with_exit_code_7(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights that are finite, and so large that the outputs are not."""
    world = make(tmp_path)
    vector = TaskVector.from_pretrained(world["vector"])
    huge = vector * (1e30 / max(float(delta.abs().max()) for delta in vector.deltas.values()))
    huge.save_pretrained(tmp_path / "huge.safetensors")
    line = [
        "evaluate",
        world["model"],
        world["one"],
        "--vector",
        str(tmp_path / "huge.safetensors"),
        "--json",
    ]
    assert main(line) == 7
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "'one' on test" in shown.err
    assert main([*line[:3], "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["result"]["accuracy"]["one"] <= 1
    assert main(["doctor", world["nan_file"], "--values", "--json"]) == 4  # what the message names
    assert "'w'" in capsys.readouterr().out
