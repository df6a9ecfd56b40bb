"""A file that is read as a model and is none of the base's: it is told before anything is merged."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tauspan.cli.main import main
from tauspan.merge import merge_files
from tauspan.merge.checks.checks import doctor
from tauspan.store import Checkpoint, write_tensors

Tensors = dict[str, Tensor]


def weights(seed: int, scale: float = 0.02, size: int = 64) -> Tensors:
    draw = torch.Generator().manual_seed(seed)
    drawn = {f"h.{i}.w": scale * torch.randn(size, size, generator=draw) for i in range(2)}
    return drawn | {"norm.w": torch.ones(size)}


def stored(file: Path, tensors: Tensors) -> Path:
    write_tensors(file, tensors, {"format": "pt"})
    return file


def plus(tensors: Tensors, other: Tensors) -> Tensors:
    return {name: tensor + other[name] for name, tensor in tensors.items()}


KINDS = {
    "a displacement whose header is lost": lambda base: (
        {n: t for n, t in weights(1).items() if n != "norm.w"} | {"norm.w": torch.full((64,), 1e-3)}
    ),
    "a small one": lambda base: {n: 1e-3 * t for n, t in weights(2).items()},
    "a model of another pre-training": lambda base: weights(3),
    "a displacement in 16 bits": lambda base: {n: t.bfloat16() for n, t in weights(4, 1e-4).items()},
}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_share_nothing_with_the_base_are_told(kind: str, tmp_path: Path) -> None:
    base = weights(0)
    files = [
        stored(tmp_path / f"{name}.safetensors", own)
        for name, own in (("base", base), ("x", KINDS[kind](base)))
    ]
    recipe = {"method": "task_arithmetic", "base_model": files[0], "models": [files[1]]}
    report = merge_files(recipe, tmp_path / "out")
    (warning,) = [one for one in report.warnings if "shares nothing" in one]
    assert f"{files[1]} is read as a model" in warning
    assert "x.safetensors" in (tmp_path / "out" / "README.md").read_text().split("## Warnings")[1]
    found = doctor([files[1]], files[0], values=True)
    assert [one.kind for one in found.problems if one.kind == "unrelated"] == ["unrelated"]


@pytest.mark.parametrize("noise", [1e-4, 0.02, 0.04])
def test_a_tuned_model_is_no_stranger(noise: float, tmp_path: Path) -> None:
    base = weights(0)
    tuned = plus(base, {n: t * (n != "norm.w") for n, t in weights(5, noise).items()})
    files = [stored(tmp_path / f"{name}.safetensors", own) for name, own in (("base", base), ("x", tuned))]
    recipe = {"method": "task_arithmetic", "base_model": files[0], "models": [files[1]]}
    assert not merge_files(recipe, tmp_path / "out").warnings


def test_the_way_out_works(tmp_path: Path) -> None:
    base, tuned = weights(0), plus(weights(0), weights(6, 1e-3))
    files = {
        name: str(stored(tmp_path / f"{name}.safetensors", own))
        for name, own in (("base", base), ("x", tuned))
    }
    vector, out = str(tmp_path / "v.safetensors"), tmp_path / "out"
    assert main(["vector", "diff", files["base"], files["x"], "-o", vector, "-q"]) == 0
    assert (
        main(["merge", "--method", "task_arithmetic", "--base", files["base"], vector, "-o", str(out), "-q"])
        == 0
    )
    torch.testing.assert_close(Checkpoint(out)["h.0.w"], tuned["h.0.w"], rtol=0, atol=1e-7)
