"""Layers stacked: models with several stacks, slices of unequally many sources, and what stands outside the layers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tauspan.core.errors import ModelError, RecipeError, UsageError
from tauspan.merge import merge_files
from tauspan.merge.recipe.towers import Towers
from tauspan.merge.sources.opening import open_source
from tauspan.store import Checkpoint, write_json, write_tensors

GEMMA = {
    "language_model.model.embed_tokens": 0, "language_model.model.layers": 4, "language_model.model.norm": 0,
    "vision_tower.encoder.layers": 3, "vision_tower.embeddings.patch_embedding": 0, "vision_tower.post_layernorm": 0,
    "multi_modal_projector.linear": 0,
}  # fmt: skip
QWEN = {
    "model.embed_tokens": 0,
    "model.layers": 4,
    "model.norm": 0,
    "visual.blocks": 3,
    "visual.merger.mlp": 0,
    "lm_head": 0,
}
LATE = {
    "model.language_model.layers": 4,
    "model.visual.blocks": 4,
    "model.language_model.embed_tokens": 0,
    "lm_head": 0,
}
T5 = {"shared": 0, "encoder.block": 3, "decoder.block": 4, "encoder.final_layer_norm": 0, "lm_head": 0}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "gemma": {"text_config": {"num_hidden_layers": 4}, "vision_config": {"num_hidden_layers": 3}},
    "qwen": {"num_hidden_layers": 4, "vision_config": {"depth": 3}},
    "late": {
        "text_config": {"num_hidden_layers": 4, "layer_types": list("abcd")},
        "vision_config": {"depth": 4},
    },
    "t5": {"num_layers": 3, "num_decoder_layers": 4, "is_encoder_decoder": True},
}
PARTS = {"gemma": GEMMA, "qwen": QWEN, "late": LATE, "t5": T5}


def model(folder: Path, kind: str, value: float) -> Path:
    """Every tensor says which model and layer it is from: value + layer / 100."""
    tensors: dict[str, Tensor] = {}
    for part, layers in PARTS[kind].items():
        names = [f"{part}.{layer}.w.weight" for layer in range(layers)] or [f"{part}.weight"]
        tensors |= {name: torch.full((2, 2), value + number / 100) for number, name in enumerate(names)}
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_json(folder / "config.json", {"model_type": kind, **CONFIGS[kind]})
    return folder


def stack(
    tmp_path: Path, kind: str, slices: list[dict[str, Any]], method: str = "passthrough", **more: Any
) -> Path:
    """Models a, b, c with the values 1, 2, 3."""
    for number, name in enumerate("abc", 1):
        if not (tmp_path / name).exists():
            model(tmp_path / name, kind, float(number))

    def placed(part: dict[str, Any]) -> dict[str, Any]:
        sources = [{**one, "model": tmp_path / one["model"]} for one in part["sources"]]
        return {**part, "sources": sources}

    recipe = {"method": method, "slices": [placed(part) for part in slices], **more}
    merge_files(recipe, tmp_path / "out")
    return tmp_path / "out"


def value(out: Path, name: str) -> float:
    return round(float(Checkpoint(out)[name][0, 0]), 4)


def layers(model_: str, first: int, end: int, **more: Any) -> dict[str, Any]:
    return {"model": model_, "layer_range": [first, end], **more}


TEXT = {"gemma": "language_model.model.layers", "qwen": "model.layers", "late": "model.language_model.layers"}
IMAGE = {"gemma": "vision_tower.encoder.layers", "qwen": "visual.blocks", "late": "model.visual.blocks"}


@pytest.mark.parametrize("kind", TEXT)
def test_layers_mean_those_of_the_text_and_images_stay_whole(kind: str, tmp_path: Path) -> None:
    out = stack(tmp_path, kind, [{"sources": [layers("a", 0, 3)]}, {"sources": [layers("b", 1, 4)]}])
    got = [value(out, f"{TEXT[kind]}.{layer}.w.weight") for layer in range(6)]
    assert got == [1.0, 1.01, 1.02, 2.01, 2.02, 2.03]
    count = PARTS[kind][IMAGE[kind]]
    assert [value(out, f"{IMAGE[kind]}.{layer}.w.weight") for layer in range(count)] == [
        round(1 + layer / 100, 4) for layer in range(count)
    ]
    for part, number in PARTS[kind].items():
        if not number:
            after = part in ("lm_head", "model.norm", "language_model.model.norm")
            assert value(out, f"{part}.weight") == (2.0 if after else 1.0), part
    config = json.loads((out / "config.json").read_text())
    assert (config.get("text_config") or config)["num_hidden_layers"] == 6
    assert config["vision_config"] == CONFIGS[kind]["vision_config"]
    if kind == "late":
        assert config["text_config"]["layer_types"] == list("abcbcd")


def test_what_a_configuration_says_of_layers_follows_them(tmp_path: Path) -> None:
    model(tmp_path / "a", "qwen", 1.0)
    said = {"no_rope_layers": [1, 0, 1, 0], "mlp_only_layers": [0, 3], "block_sizes": [5, 6], "sizes": [1, 2, 3, 4],
            "attention_types": [[["global", "local"], 2]], "attention_layers": ["global", "local"] * 2}  # fmt: skip
    file = tmp_path / "a" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **said}))
    recipe = {
        "method": "passthrough",
        "slices": [{"sources": [layers(str(tmp_path / "a"), *at)]} for at in ((0, 2), (1, 4))],
    }
    report = merge_files(recipe, tmp_path / "out")
    got = json.loads((tmp_path / "out" / "config.json").read_text())
    kinds = ["global", "local", "local", "global", "local"]
    assert got["num_hidden_layers"] == 5
    assert {name: got[name] for name in said} == {
        **said, "no_rope_layers": [1, 0, 0, 1, 0], "mlp_only_layers": [0, 4],
        "attention_layers": kinds, "attention_types": [[kinds, 1]],
    }  # fmt: skip
    assert [one for one in report.warnings if "block_sizes has 2 entries for 4 layers" in one]
    recipe["slices"] = [{"sources": [layers(str(tmp_path / "a"), 0, 4)]}]
    assert not [one for one in merge_files(recipe, tmp_path / "same").warnings if "block_sizes" in one]


def test_slices_without_bases_are_told_how_to_give_them(tmp_path: Path) -> None:
    parts = [{"sources": [layers("a", 0, 2), layers("b", 0, 2)]}]
    options = {"method": "task_arithmetic", "base_model": str(tmp_path / "a")}
    with pytest.raises(UsageError, match="Give each slice a `base`"):
        stack(tmp_path, "qwen", parts, **options)
    parts[0]["base"] = layers(str(tmp_path / "a"), 0, 2)
    assert value(stack(tmp_path, "qwen", parts, **options), f"{TEXT['qwen']}.0.w.weight") == 2.0


@pytest.mark.parametrize(
    ("kind", "name"), [("gemma", "vision_tower"), ("qwen", "visual"), ("late", "visual.blocks")]
)
def test_another_stack_is_meant_by_a_part_of_its_name(kind: str, name: str, tmp_path: Path) -> None:
    out = stack(
        tmp_path,
        kind,
        [{"stack": name, "sources": [layers("a", 0, 2)]}, {"stack": name, "sources": [layers("b", 0, 2)]}],
    )
    assert [value(out, f"{IMAGE[kind]}.{layer}.w.weight") for layer in range(4)] == [1.0, 1.01, 2.0, 2.01]
    assert [value(out, f"{TEXT[kind]}.{layer}.w.weight") for layer in range(4)] == [1.0, 1.01, 1.02, 1.03]
    vision = json.loads((out / "config.json").read_text())["vision_config"]
    assert vision == dict.fromkeys(vision, 4)


def test_encoder_and_decoder_have_to_be_named_and_can_both_be_stacked(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"has decoder\.block\., encoder\.block\.\. Say which: `stack`, in the slice"
    ):
        stack(tmp_path, "t5", [{"sources": [layers("a", 0, 2)]}])
    out = stack(
        tmp_path, "t5",
        [
            {"stack": "encoder", "sources": [layers("a", 0, 1)]},
            {"stack": "decoder", "sources": [layers("c", 0, 4)]},
            {"stack": "encoder", "sources": [layers("b", 0, 3)]},
            {"stack": "decoder", "sources": [layers("c", 3, 4)]},
            {"stack": "shared", "sources": [{"model": "b"}]},
        ],
    )  # fmt: skip
    assert [value(out, f"encoder.block.{layer}.w.weight") for layer in range(4)] == [1.0, 2.0, 2.01, 2.02]
    assert [value(out, f"decoder.block.{layer}.w.weight") for layer in range(5)] == [
        3.0,
        3.01,
        3.02,
        3.03,
        3.03,
    ]
    assert (value(out, "shared.weight"), value(out, "encoder.final_layer_norm.weight")) == (2.0, 2.0)
    config = json.loads((out / "config.json").read_text())
    assert (config["num_layers"], config["num_decoder_layers"]) == (4, 5)


def test_all_layers_are_meant_where_no_range_is_given(tmp_path: Path) -> None:
    out = stack(
        tmp_path, "t5", [{"stack": side, "sources": [{"model": "a"}, {"model": "b"}]} for side in ("encoder", "decoder")],
        "linear",
    )  # fmt: skip
    assert [value(out, f"decoder.block.{layer}.w.weight") for layer in range(4)] == [1.5, 1.51, 1.52, 1.53]


@pytest.mark.parametrize("name", ["visoin", "layers", "model"])
def test_a_stack_that_is_none_or_several_is_an_error_that_lists_them(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"language_model\.model\.layers\., vision_tower\.encoder\.layers\."):
        stack(
            tmp_path,
            "gemma",
            [{"stack": name if name != "model" else "layers", "sources": [layers("a", 0, 2)]}],
        )


def test_modules_of_mergekit_name_stacks(tmp_path: Path) -> None:
    towers = {kind: Towers.of(open_source(model(tmp_path / kind, kind, 1.0))) for kind in PARTS}
    assert (
        towers["gemma"].named("text_decoder") == towers["gemma"].named(None) == "language_model.model.layers."
    )
    assert towers["gemma"].named("multi_modal_projector") == "multi_modal_projector."
    assert towers["qwen"].named("vision_tower") == "visual.blocks."
    assert towers["late"].named("default") == "model.language_model.layers."
    assert towers["t5"].main is None
    assert towers["t5"].named("shared") == "shared."


# -- slices of unequally many sources -----------------------------------------------------------------------------------


def test_each_slice_is_merged_from_its_own_sources(tmp_path: Path) -> None:
    def weighted(name: str, first: int, end: int, weight: float) -> dict[str, Any]:
        return layers(name, first, end, parameters={"weight": weight})

    out = stack(
        tmp_path, "qwen",
        [
            {"sources": [weighted("a", 0, 1, 1.0)]},
            {"sources": [weighted("b", 1, 3, 1.0), weighted("c", 1, 3, 3.0)]},
            {"sources": [weighted("c", 3, 4, 1.0), weighted("a", 3, 4, 2.0), weighted("b", 3, 4, 1.0)]},
        ],
        "linear",
    )  # fmt: skip
    got = [value(out, f"model.layers.{layer}.w.weight") for layer in range(4)]
    assert got == [
        1.0,
        2.76,
        2.77,
        1.78,
    ]  # (2 + 3 * 3) / 4 and (3 + 2 * 1 + 2) / 4, and the layers' hundredths
    assert value(out, "model.embed_tokens.weight") == 1.0
    assert value(out, "lm_head.weight") == 1.75
    assert value(out, "visual.blocks.0.w.weight") == 1.0


def test_displacements_of_slices_with_unequally_many_sources(tmp_path: Path) -> None:
    base = {"base": {"model": str(tmp_path / "a"), "layer_range": [0, 2]}}
    later = {"base": {"model": str(tmp_path / "a"), "layer_range": [2, 4]}}
    out = stack(
        tmp_path, "qwen",
        [{"sources": [layers("b", 0, 2)], **base}, {"sources": [layers("b", 2, 4), layers("c", 2, 4)], **later}],
        "task_arithmetic",
    )  # fmt: skip
    assert [value(out, f"model.layers.{layer}.w.weight") for layer in range(4)] == [2.0, 2.01, 4.02, 4.03]


@pytest.mark.parametrize(
    ("method", "words"), [("slerp", "merges exactly 2 models"), ("passthrough", "merges exactly 1")]
)
def test_a_slice_with_too_few_or_many_sources_for_the_method_is_refused(
    method: str, words: str, tmp_path: Path
) -> None:
    sources = [layers("a", 0, 2), layers("b", 0, 2)]
    slices = [{"sources": sources}, {"sources": sources[:1] if method == "slerp" else sources}]
    with pytest.raises(UsageError, match=words):
        stack(tmp_path, "qwen", slices, method)


def test_a_lacking_layer_in_a_slice_is_not_what_another_slice_lacks(tmp_path: Path) -> None:
    model(tmp_path / "c", "qwen", 3.0)
    tensors = Checkpoint(tmp_path / "c").read()
    write_tensors(
        tmp_path / "c" / "model.safetensors",
        {n: t for n, t in tensors.items() if n != "model.layers.1.w.weight"},
    )
    slices = [{"sources": [layers("a", 0, 1)]}, {"sources": [layers("b", 1, 2), layers("c", 1, 2)]}]
    with pytest.raises(Exception, match=r"layers 1 to 1 of .*/c|lacks tensor 'model.layers.1.w.weight'"):
        stack(tmp_path, "qwen", slices, "linear")


def test_layer_ranges_are_checked(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"have \[2, 1\] layers; they need equally many"):
        stack(tmp_path, "qwen", [{"sources": [layers("a", 0, 2), layers("b", 0, 1)]}], "linear")
    with pytest.raises(Exception, match=r"the slice takes layers 2 to 5 .* which has layers 0 to 3"):
        stack(tmp_path, "qwen", [{"sources": [layers("a", 2, 6)]}])
