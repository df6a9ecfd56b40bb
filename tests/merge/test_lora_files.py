"""LoRA files of kohya and diffusers: told apart from models, and merged as products."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tauspan.core.errors import MismatchError, ModelError, StoreError, UsageError
from tauspan.merge import merge_files
from tauspan.merge.checks.checks import check
from tauspan.merge.lora.lora_files import LoraFile
from tauspan.merge.sources.opening import open_source

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.0.resnets.0.conv1"
OUT = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
PROJ = "mid_block.attentions.0.proj_in"  # a linear layer, kept as a convolution of one pixel
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"
UNET: dict[str, tuple[int, ...]] = {ATTENTION: (6, 5), CONV: (4, 3, 3, 3), OUT: (5, 6), PROJ: (6, 5, 1, 1)}


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unet(folder: Path, outer: str = "") -> Path:
    """The weights of a part of a pipeline, or of a single file of a whole one."""
    folder.mkdir(parents=True)
    tensors = {
        f"{outer}{name}.weight": drawn(place, *shape) for place, (name, shape) in enumerate(UNET.items())
    }
    tensors[f"{outer}conv_in.bias"] = drawn(9, 4)
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    return folder


def factors(seed: int, shape: tuple[int, ...], rank: int) -> tuple[Tensor, Tensor]:
    """A and B as LoRA keeps them; a layer of one pixel as a linear one."""
    kernel = shape[2:] if shape[2:] != (1, 1) else ()
    return drawn(seed, rank, shape[1], *kernel), drawn(seed + 1, shape[0], rank, *[1] * len(kernel))


def product(seed: int, shape: tuple[int, ...], rank: int, scale: float) -> Tensor:
    a, b = factors(seed, shape, rank)
    return (scale * b.flatten(1).double() @ a.flatten(1).double()).float().view(shape)


Spelling = Any
KOHYA: Spelling = lambda m: ("lora_unet_" + m.replace(".", "_"), "lora_down.weight", "lora_up.weight")  # noqa: E731
DIFFUSERS: Spelling = lambda m: (f"unet.{m}", "lora_A.weight", "lora_B.weight")  # noqa: E731
BARE: Spelling = lambda m: (m, "lora_A.weight", "lora_B.weight")  # noqa: E731
OLDER: Spelling = lambda m: (f"unet.{m}", "lora.down.weight", "lora.up.weight")  # noqa: E731


def processor(module: str) -> tuple[str, str, str]:
    """As diffusers spelt them first: under the attention's processor."""
    if ".attn1." not in module:
        return OLDER(module)  # type: ignore[no-any-return]
    owner, _, inner = module.removesuffix(".0").rpartition(".")
    return f"unet.{owner}.processor.{inner}_lora", "down.weight", "up.weight"


SPELLINGS: Mapping[str, Spelling] = {
    "kohya": KOHYA, "diffusers": DIFFUSERS, "bare": BARE, "older": OLDER, "processor": processor,
}  # fmt: skip


def lora(
    file: Path, spelling: Spelling, rank: int = 2, alpha: float | None = None, seed: int = 20, **header: str
) -> Path:
    tensors: dict[str, Tensor] = {}
    for place, (name, shape) in enumerate(UNET.items()):
        module, down, up = spelling(name)
        a, b = factors(seed + 2 * place, shape, rank)
        tensors[f"{module}.{down}"], tensors[f"{module}.{up}"] = a, b
        if alpha is not None:
            tensors[f"{module}.alpha"] = torch.tensor(alpha)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, {"format": "pt", **header})
    return file


def moved(base: Path, out: Path, outer: str = "") -> dict[str, Tensor]:
    (one,) = out.glob("*.safetensors")
    was, now = load_file(next(base.glob("*.safetensors"))), load_file(one)
    assert was.keys() == now.keys()
    return {
        n.removeprefix(outer).removesuffix(".weight"): now[n] - was[n] for n in now if not n.endswith("bias")
    }


def merged(out: Path, **recipe: Any) -> Path:
    merge_files(recipe, out)
    return out


@pytest.mark.thinned(4)
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("alpha", [None, 1.0])
@pytest.mark.parametrize("how", ["sum", "delta"])
def test_a_model_with_a_lora_file_is_the_model_plus_its_products(
    spelling: str, alpha: float | None, how: str, tmp_path: Path
) -> None:
    base, file = unet(tmp_path / "unet"), lora(tmp_path / "a.safetensors", SPELLINGS[spelling], alpha=alpha)
    if how == "sum":
        merged(tmp_path / "out", method="passthrough", models=[f"{base}+{file}"])
    else:
        merged(tmp_path / "out", method="task_arithmetic", base_model=str(base), models=[str(file)])
    scale = 1.0 if alpha is None else alpha / 2
    for place, (name, shape) in enumerate(UNET.items()):
        want = product(20 + 2 * place, shape, 2, scale)
        assert torch.allclose(moved(base, tmp_path / "out")[name], want, atol=1e-5)


@pytest.mark.parametrize("outer", ["model.diffusion_model.", ""])
def test_single_files_of_a_pipeline_are_bases_too(outer: str, tmp_path: Path) -> None:
    base, file = unet(tmp_path / "whole", outer), lora(tmp_path / "a.safetensors", KOHYA, alpha=2.0)
    merged(tmp_path / "out", method="task_arithmetic", base_model=str(base), models=[str(file)])
    found = moved(base, tmp_path / "out", outer)
    assert torch.allclose(found[ATTENTION], product(20, UNET[ATTENTION], 2, 1.0), atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "unet."])
def test_settings_in_the_header_scale_the_products(prefix: str, tmp_path: Path) -> None:
    settings = {
        "r": 2,
        "lora_alpha": 6,
        "use_rslora": False,
        "alpha_pattern": {"to_q": 1},
        "rank_pattern": {},
    }
    header = json.dumps({prefix + key: value for key, value in settings.items()})
    base = unet(tmp_path / "unet")
    file = lora(tmp_path / "a.safetensors", DIFFUSERS, lora_adapter_metadata=header)
    merged(tmp_path / "out", method="passthrough", models=[f"{base}+{file}"])
    found = moved(base, tmp_path / "out")
    assert torch.allclose(found[ATTENTION], product(20, UNET[ATTENTION], 2, 0.5), atol=1e-5)
    assert torch.allclose(found[CONV], product(22, UNET[CONV], 2, 3.0), atol=1e-5)


@pytest.mark.parametrize("spelling", ["kohya", "diffusers"])
@pytest.mark.parametrize("out", ["both.safetensors", "both"])
def test_two_files_are_averaged_as_products_and_stay_a_lora_file(
    spelling: str, out: str, tmp_path: Path
) -> None:
    one = lora(tmp_path / "one.safetensors", SPELLINGS[spelling], rank=2, alpha=1.0, ss_tag="kept")
    two = lora(tmp_path / "two.safetensors", SPELLINGS[spelling], rank=3, alpha=6.0, seed=60)
    merged(tmp_path / out, method="linear", models=[str(one), str(two)], output="adapter")
    file = tmp_path / out if out.endswith("s") else tmp_path / out / "pytorch_lora_weights.safetensors"
    found = open_source(file)
    assert isinstance(found, LoraFile)
    assert found.header.metadata["ss_tag"] == "kept"
    assert found.tensors.keys() == open_source(one).tensors.keys()
    for place, (name, shape) in enumerate(UNET.items()):
        module = SPELLINGS[spelling](name)[0]
        low = found.low.dense(f"{module}.weight").reshape(shape)
        halves = product(20 + 2 * place, shape, 2, 0.5), product(60 + 2 * place, shape, 3, 2.0)
        assert torch.allclose(low, (halves[0] + halves[1]) / 2, atol=1e-5)
    with pytest.raises(UsageError, match="output: adapter"):  # and never a model of A and B apart
        merged(tmp_path / "none", method="linear", models=[str(one), str(two)])


def test_products_for_another_part_of_the_pipeline_are_told(tmp_path: Path) -> None:
    base, file = unet(tmp_path / "unet"), lora(tmp_path / "a.safetensors", KOHYA)
    text = "lora_te_" + TEXT.replace(".", "_")
    both = load_file(file) | {
        f"{text}.lora_down.weight": drawn(1, 2, 4),
        f"{text}.lora_up.weight": drawn(2, 4, 2),
    }
    save_file(both, file)
    source = open_source(f"{base}+{file}")
    assert "products for lora_te" in source.notes[0][1]  # type: ignore[attr-defined]
    problems = check(None, [source, open_source(base)])
    assert [(one.severity, one.kind) for one in problems] == [("warning", "extra_tensors")]
    other = tmp_path / "text.safetensors"
    save_file({f"{TEXT}.weight": drawn(3, 4, 4)}, other)
    found = open_source(f"{other}+{file}")
    want = drawn(3, 4, 4) + drawn(2, 4, 2) @ drawn(1, 2, 4)
    assert torch.allclose(found.read(f"{TEXT}.weight", 0, 16).view(4, 4), want, atol=1e-5)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    base, file = unet(tmp_path / "unet"), lora(tmp_path / "a.safetensors", KOHYA)
    tensors = load_file(file)
    other = tmp_path / "other.safetensors"
    save_file({"x.weight": torch.ones(2, 2)}, other)
    with pytest.raises(MismatchError, match="another part of the pipeline"):
        open_source(f"{other}+{file}")
    name = "lora_unet_" + ATTENTION.replace(".", "_")
    for extra, error, said in (
        ({f"{name}.dora_scale": torch.ones(6)}, ModelError, "more than LoRA"),
        ({f"{name}.hada_w1_a": torch.ones(6, 2)}, ModelError, "more than LoRA"),
        ({"lora_unet_x.alpha": torch.tensor(1.0)}, StoreError, "no factors"),
        ({"lora_unet_x.lora_down.weight": torch.ones(2, 3)}, StoreError, "not one A and one B"),
    ):
        save_file(tensors | extra, tmp_path / "bad.safetensors")
        with pytest.raises(error, match=said):
            open_source(tmp_path / "bad.safetensors")
    save_file({"base_model.model.q.lora_A.weight": torch.ones(2, 3)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(StoreError, match="adapter_config"):
        open_source(tmp_path / "adapter_model.safetensors")
    assert base.is_dir()


def test_a_model_that_has_factors_among_its_weights_is_a_model(tmp_path: Path) -> None:
    file = tmp_path / "own.safetensors"
    save_file(
        {"q.weight": torch.ones(3, 3), "q.lora_A.weight": torch.ones(1, 3), "q.alpha": torch.ones(1)}, file
    )
    assert open_source(file).kind == "point"
