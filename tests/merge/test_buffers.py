"""Stored tensors that are no weights: counters, constants, masks, copies of tied tensors, value heads."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tauspan.core.errors import MismatchError, NonFiniteError
from tauspan.core.report import Report
from tauspan.merge import merge_files
from tauspan.merge.checks import contents
from tauspan.store import Checkpoint, write_json, write_tensors

INF = float("inf")


def merged(
    tmp_path: Path, *models: dict[str, Tensor], base: bool = True, **recipe: object
) -> tuple[Report, Checkpoint]:
    """The first model is the base, where there is one."""
    paths = []
    for number, tensors in enumerate(models):
        paths.append(tmp_path / f"m{number}" / "model.safetensors")
        write_tensors(paths[-1], tensors, {"format": "pt"})
    start = {"base_model": paths[0]} if base else {}
    made = {"method": "task_arithmetic" if base else "linear", **start, "models": paths[base:], **recipe}
    report = merge_files(made, tmp_path / "out")
    return report, Checkpoint(tmp_path / "out")


def net(batches: int) -> dict[str, Tensor]:
    """A small ResNet's stem after so many batches of training."""
    torch.manual_seed(batches)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
    ).train()
    for _ in range(batches):
        module(torch.randn(2, 3, 8, 8))
    return dict(module.state_dict())


@pytest.mark.parametrize("base", [True, False])
def test_nets_with_batch_norms_merge_and_keep_the_first_ones_counters(base: bool, tmp_path: Path) -> None:
    nets = [net(3), net(5), net(7)]
    report, out = merged(tmp_path, *nets, base=base)
    (warning,) = report.warnings
    assert "'1.num_batches_tracked' and 1 more (3.num_batches_tracked) counts batches and differs" in warning
    assert "entry 0 is 5" in warning
    assert ("The same holds for 1 more" in warning) == (len(nets) > 2)
    assert out["1.num_batches_tracked"].item() == 3
    expected = nets[1]["1.running_mean"] + nets[2]["1.running_mean"] - nets[0]["1.running_mean"]
    mean = (nets[0]["1.running_mean"] + nets[1]["1.running_mean"] + nets[2]["1.running_mean"]) / 3
    torch.testing.assert_close(out["1.running_mean"], expected if base else mean)


def test_whole_numbers_that_mean_something_must_be_equal_or_be_allowed(tmp_path: Path) -> None:
    pair = [
        {"w": torch.ones(2), "ids": torch.arange(3)},
        {"w": torch.zeros(2), "ids": torch.ones(3, dtype=torch.int64)},
    ]
    with pytest.raises(
        MismatchError, match=r"int64 tensor 'ids' differs: entry 0 is 1 .* and 0 .*(.|\n)*--allow buffers"
    ):
        merged(tmp_path, *pair)
    _, out = merged(tmp_path / "allowed", *pair, allow=["buffers"])
    assert out["ids"].tolist() == [0, 1, 2]


def test_large_whole_numbers_are_compared_while_they_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "_SMALL", 2)
    pair = [
        {"w": torch.ones(2), "ids": torch.arange(3)},
        {"w": torch.zeros(2), "ids": torch.tensor([0, 1, 5])},
    ]
    with pytest.raises(
        MismatchError, match=r"holds 2 at entry 2 .* and 5 .* keep those of 'm0': `--allow buffers`"
    ):
        merged(tmp_path, *pair)
    _, out = merged(tmp_path / "allowed", *pair, allow=["buffers"])
    assert out["ids"].tolist() == [0, 1, 2]


CONSTANTS = {
    "model.layers.0.self_attn.rotary_emb.inv_freq": torch.rand(4),
    "rotary.cos_cached": torch.rand(1, 1, 8, 4),
    "embeddings.position_ids": torch.arange(8)[None],
    "h.0.attn.bias": torch.ones(1, 1, 8, 8).tril(),
    "h.0.attn.masked_bias": torch.tensor(-1e9),
    "blocks.0.attn.relative_position_index": torch.arange(16).view(4, 4),
}


@pytest.mark.thinned(4)
@pytest.mark.parametrize("name", CONSTANTS)
@pytest.mark.parametrize("base", [True, False])
def test_constants_that_a_model_computes_again_stop_nothing(name: str, base: bool, tmp_path: Path) -> None:
    plain, more = {"w": torch.ones(2)}, {"w": torch.full((2,), 3.0), name: CONSTANTS[name]}
    report, out = merged(tmp_path / "extra", plain, more, base=base)
    (warning,) = report.warnings
    assert "computes again" in warning
    assert warning.endswith("the result leaves it out.")
    assert set(out) == {"w"}
    report, out = merged(tmp_path / "missing", more, plain, base=base)
    assert report.warnings[0].endswith("the result keeps it.")
    assert torch.equal(out[name], CONSTANTS[name])
    other = CONSTANTS[name] + 1  # another context length, or another base of the frequencies
    _, out = merged(tmp_path / "both", more, {**plain, name: other}, base=base)
    assert torch.equal(out[name], CONSTANTS[name])


def test_a_bias_of_attention_is_a_weight(tmp_path: Path) -> None:
    _, out = merged(tmp_path, {"h.0.attn.bias": torch.ones(4)}, {"h.0.attn.bias": torch.full((4,), 3.0)})
    assert out["h.0.attn.bias"].tolist() == [3.0] * 4
    with pytest.raises(MismatchError, match="extra_tensors"):
        merged(tmp_path / "more", {"w": torch.ones(2)}, {"w": torch.ones(2), "h.0.attn.bias": torch.ones(4)})


@pytest.mark.parametrize("name", ["v_head.summary.weight", "pretrained_model.v_head.summary.bias"])
def test_a_value_head_of_a_training_run_is_left_out(name: str, tmp_path: Path) -> None:
    report, out = merged(tmp_path, {"w": torch.ones(2)}, {"w": torch.zeros(2), name: torch.ones(3)})
    assert "belongs to the training run" in report.warnings[0]
    assert set(out) == {"w"}


# -- one tensor that is stored twice ----------------------------------------------------------------------------------


def tied(folder: Path, head: Tensor | None, seed: int) -> Path:
    embedding = torch.randn(6, 2, generator=torch.Generator().manual_seed(seed))
    tensors = {"model.embed_tokens.weight": embedding, "model.norm.weight": torch.full((2,), float(seed))}
    if head is not None:
        tensors["lm_head.weight"] = embedding + head
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_json(folder / "config.json", {"model_type": "llama", "tie_word_embeddings": True})
    return folder


@pytest.mark.parametrize("first", [True, False])
def test_a_stored_copy_of_a_tied_tensor_is_that_tensor(first: bool, tmp_path: Path) -> None:
    same = torch.zeros(6, 2)
    one, two = (
        tied(tmp_path / "a", same if first else None, 1),
        tied(tmp_path / "b", None if first else same, 2),
    )
    report = merge_files({"method": "linear", "models": [one, two]}, tmp_path / "out")
    (warning,) = report.warnings
    assert "'lm_head.weight'" in warning
    assert "is a copy of 'model.embed_tokens.weight', bit for bit" in warning
    out = Checkpoint(tmp_path / "out")
    assert ("lm_head.weight" in out) == first
    mean = (Checkpoint(one)["model.embed_tokens.weight"] + Checkpoint(two)["model.embed_tokens.weight"]) / 2
    for name in out:
        if name != "model.norm.weight":
            torch.testing.assert_close(out[name], mean)


def test_a_trained_head_of_a_tied_model_is_told(tmp_path: Path) -> None:
    one, two = tied(tmp_path / "a", None, 1), tied(tmp_path / "b", torch.ones(6, 2), 2)
    with pytest.raises(
        MismatchError, match=r"'lm_head.weight' .* tied to .* on one side only(.|\n)*--allow tied"
    ):
        merge_files({"method": "linear", "models": [one, two]}, tmp_path / "out")
    recipe = {"method": "linear", "models": [one, two], "allow": ["tied"]}
    report = merge_files(recipe, tmp_path / "out")
    assert "a second copy is left out" in report.warnings[0]


# -- masks and broken values ------------------------------------------------------------------------------------------

METHODS = [
    "task_arithmetic",
    "ties",
    "ties_mergekit",
    "dare_ties",
    "breadcrumbs",
    "linear",
    "slerp",
    "magmax",
    "sce",
]


@pytest.mark.thinned(6)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_infinity_that_all_models_hold_stays(method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Masks of attention are stored as infinities; the entries beside them are merged as ever."""
    mask = torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), -INF)
    draws = [torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    rest = [(draw + mask).to(dtype) for draw in draws]
    plain = [draw.masked_fill(mask.isinf(), 0).to(dtype) for draw in draws]
    count = 2 if method == "slerp" else 3
    base = method not in ("linear", "slerp")
    outs = []
    for name, values in (("masked", rest), ("plain", plain)):
        _, out = merged(tmp_path / name, *({"mask": one} for one in values[:count]), base=base, method=method)
        outs.append(out["mask"])
    assert torch.equal(outs[0].isinf(), mask.isinf())
    assert bool((outs[0][mask.isinf()] == -INF).all())
    assert torch.equal(outs[0].masked_fill(mask.isinf(), 0), outs[1])


@pytest.mark.parametrize("bad", [float("nan"), INF, -INF])
@pytest.mark.parametrize("where", [0, 1])
def test_what_only_one_model_holds_is_an_error_with_its_place(bad: float, where: int, tmp_path: Path) -> None:
    pair = [{"w": torch.ones(5)}, {"w": torch.ones(5)}]
    pair[where]["w"][3] = bad
    with pytest.raises(NonFiniteError, match=rf"tensor 'w' of 'm{where}' holds {bad} at entry 3"):
        merged(tmp_path, *pair)
    assert not (tmp_path / "out").exists()


def test_nan_in_a_copied_tensor_is_an_error_and_an_infinity_is_not(tmp_path: Path) -> None:
    alone = {"w": torch.ones(2), "only": torch.tensor([1.0, -INF])}
    _, out = merged(tmp_path, alone, {"w": torch.zeros(2)}, allow=["missing_tensors"], method="ties")
    assert out["only"].tolist() == [1.0, -INF]
    alone["only"][0] = float("nan")
    with pytest.raises(NonFiniteError, match="'only'"):
        merged(tmp_path / "nan", alone, {"w": torch.zeros(2)}, allow=["missing_tensors"])


@pytest.mark.parametrize(
    ("method", "options"),
    [("linear", {"weight": 3e38, "normalize": False}), ("task_arithmetic", {"scale": 3e38})],
)
def test_a_result_that_leaves_the_range_is_never_written(
    method: str, options: dict[str, float], tmp_path: Path
) -> None:
    models = [{"w": torch.full((3,), 1.0)}, {"w": torch.full((3,), 5.0)}]
    with pytest.raises(NonFiniteError, match=r"tensor 'w' merged by .* is not finite in float32 at entry 0"):
        merged(tmp_path, *models, base=method != "linear", method=method, parameters=options)
    assert not (tmp_path / "out").exists()
