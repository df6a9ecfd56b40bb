"""Which of several files is meant, and what lies beside a result: as the libraries that load it decide."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers import checkpoints
from tauspan.cli.main import main
from tauspan.core.errors import ModelError, PickleRefusedError, StoreError, UsageError
from tauspan.merge import merge_files
from tauspan.merge.lora.adapters import save_adapter
from tauspan.merge.lora.lowrank import LowRank, Term
from tauspan.merge.sources.opening import open_source
from tauspan.models import folders
from tauspan.store import Checkpoint, write_json, write_tensors

W = {"w": torch.arange(6.0).view(2, 3), "v": torch.ones(2)}


def other(by: float = 10.0) -> dict[str, Tensor]:
    return {name: tensor + by for name, tensor in W.items()}


def shards(folder: Path, tensors: dict[str, Tensor], stem: str = "model", index: bool = True) -> Path:
    files = [f"{stem}-{n + 1:05d}-of-{len(tensors):05d}.safetensors" for n in range(len(tensors))]
    for file, (name, tensor) in zip(files, tensors.items(), strict=True):
        write_tensors(folder / file, {name: tensor}, {"format": "pt"})
    if index:
        write_json(
            folder / f"{stem}.safetensors.index.json", {"weight_map": dict(zip(tensors, files, strict=True))}
        )
    return folder


def single(folder: Path, tensors: dict[str, Tensor], name: str = "model.safetensors") -> Path:
    write_tensors(folder / name, tensors, {"format": "pt"})
    return folder


def read(folder: Path | str) -> dict[str, list[float]]:
    source = open_source(folder)
    return {
        name: source.read(name, 0, stored.shape.numel()).tolist() for name, stored in source.tensors.items()
    }


def flat(tensors: dict[str, Tensor]) -> dict[str, list[float]]:
    return {name: tensor.flatten().tolist() for name, tensor in tensors.items()}


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


# -- which weights ----------------------------------------------------------------------------------------------------

CHOICES = {
    "a single file before an index and its shards": lambda at: single(shards(at, other()), W),
    "a single file before another library's": lambda at: single(single(at, other(), "consolidated.safetensors"), W),
    "a single file before a variant": lambda at: single(single(at, other(), "model.fp16.safetensors"), W),
    "the usual index before another": lambda at: shards(shards(at, other(), "consolidated"), W),
    "the usual index before a loose file": lambda at: shards(single(at, other(), "merged.safetensors"), W),
    "an index of diffusers": lambda at: shards(at, W, "diffusion_pytorch_model"),
    "a single file of diffusers before its variant": lambda at: single(
        single(at, other(), "diffusion_pytorch_model.fp16.safetensors"), W, "diffusion_pytorch_model.safetensors"
    ),
    "shards without an index": lambda at: shards(at, W, index=False),
    "an index whose shards were put together": lambda at: single(_stale(at), W),
}  # fmt: skip


def _stale(folder: Path) -> Path:
    write_json(
        folder / "model.safetensors.index.json", {"weight_map": {"w": "model-00001-of-00009.safetensors"}}
    )
    return folder


@pytest.mark.parametrize("case", CHOICES)
def test_the_weights_that_the_library_loads_are_read(case: str, tmp_path: Path) -> None:
    folder = CHOICES[case](tmp_path / "m")
    assert read(folder) == flat(W)
    assert {name: tensor.flatten().tolist() for name, tensor in Checkpoint(folder).read().items()} == flat(W)
    report = merge_files({"method": "passthrough", "models": [folder]}, tmp_path / "out")
    several = case not in ("an index of diffusers", "shards without an index")
    assert bool(report.warnings) == several
    if several:
        assert "not read: of several sets of weights" in report.warnings[0]


@pytest.mark.parametrize("index", [True, False])
def test_shards_are_read_by_a_relative_path_and_by_a_link(
    index: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards(tmp_path / "m", W, index=index)
    (tmp_path / "link").symlink_to(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    for number, path in enumerate((Path("m"), Path("link"), tmp_path / "link")):
        report = merge_files({"method": "passthrough", "models": [path]}, tmp_path / f"out{number}")
        assert not report.warnings


def test_one_of_several_sets_can_be_named(tmp_path: Path) -> None:
    folder = single(shards(tmp_path / "m", other()), W)
    assert read(folder / "model.safetensors.index.json") == flat(other())
    twin = single(single(tmp_path / "t", W, "a.safetensors"), other(), "b.safetensors")
    with pytest.raises(
        StoreError, match=r"several weight files .* name one of them, for example '.*a\.safetensors'"
    ):
        open_source(twin)
    assert read(twin / "a.safetensors") == flat(W)


def test_a_missing_shard_is_named_with_or_without_an_index(tmp_path: Path) -> None:
    folder = shards(tmp_path / "m", W, index=False)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(StoreError, match=r"holds 1 of 2 shards and no index; number 2 is missing"):
        open_source(folder)
    folder = shards(tmp_path / "n", W)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        StoreError, match=r"names the shard 'model-00002-of-00002.safetensors', which is not there"
    ):
        open_source(folder)


def test_a_folder_of_an_adapter_and_a_model_is_the_model_and_the_adapter_can_be_named(tmp_path: Path) -> None:
    """As trainers leave them: adapter_config.json, whole weights, and checkpoints of the run."""
    low = LowRank({"h.weight": (Term(torch.ones(1, 3), torch.ones(2, 1), 0.5),)})
    folder = save_adapter(low, tmp_path / "m")
    single(folder, {"h.weight": torch.zeros(2, 3)})
    shutil.copytree(folder, folder / "checkpoint-10")
    source = open_source(folder)
    assert (source.kind, set(source.tensors)) == ("point", {"h.weight"})
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert open_source(folder / name).kind == "delta"
    report = merge_files({"method": "passthrough", "models": [folder]}, tmp_path / "out")
    assert any("holds a model and an adapter: the model is read" in one for one in report.warnings)
    way = next(one for one in report.warnings if "holds a model and an adapter" in one)
    assert str(folder / "adapter_config.json") in way  # the way out that is named
    assert files(tmp_path / "out") == ["README.md", "model.safetensors"]


def test_an_id_can_name_one_file_or_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / ("c" * 40)
    single(snapshot, other())
    single(snapshot / "unet", W, "diffusion_pytorch_model.safetensors")
    asked = []

    def fetched(source: str, cache: object, only: str | None) -> Path:
        asked.append((source, only))
        return snapshot

    monkeypatch.setattr("tauspan.models.sources._from_hub", fetched)
    assert read("org/name:unet") == flat(W)
    assert read("org/name@refs/pr/1:model.safetensors") == flat(other())
    assert asked == [("org/name", "unet"), ("org/name@refs/pr/1", "model.safetensors")]
    source = open_source("org/name:unet")
    assert source.identity["commit"] == "c" * 40
    assert source.label == "name"
    for inner in ("vae", "../../../etc"):
        with pytest.raises(ModelError, match="a path inside the repository"):
            open_source(f"org/name:{inner}")
    read("gpt2")  # ids of the hub's first years have no organisation
    assert asked[-1] == ("gpt2", None)


# -- what lies beside --------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = checkpoints.write(tmp_path / "home", "bert")
    for name in ("generation_config.json", "preprocessor_config.json", "added_tokens.json"):
        checkpoints.write_json(folder / name, {})
    (folder / "chat_template.jinja").write_text("{{ x }}")
    return folder


CLUTTER = (
    "checkpoint-100/tokenizer.json", "checkpoint-100/trainer_state.json", "onnx/config.json", "original/params.json",
    "train.json", "test.txt", "pytorch_model.bin.index.json", "trainer_state.json", "all_results.json", "notes.txt",
    "adapter_config.json.bak", "runs/x.json", ".cache/tokenizer.json", "modeling_own.py", "onnx/tokenizer.json",
)  # fmt: skip


def test_only_files_that_a_loader_reads_are_copied(home: Path, tmp_path: Path) -> None:
    for name in CLUTTER:
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text("{}")
    merge_files({"method": "passthrough", "models": [home]}, tmp_path / "out")
    wanted = {
        "README.md",
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
    }
    wanted |= {"added_tokens.json", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}
    assert wanted <= set(files(tmp_path / "out")) <= wanted | {"vocab.txt", "special_tokens_map.json"}


@pytest.mark.parametrize("name", ["tokenizer.json", "special_tokens_map.json", "generation_config.json"])
@pytest.mark.parametrize("relative", [True, False])
def test_a_link_that_leaves_the_folder_is_not_followed(
    name: str, relative: bool, home: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root:x:0:0")
    (home / name).unlink(missing_ok=True)
    (home / name).symlink_to(os.path.relpath(secret, home) if relative else secret)
    report = merge_files({"method": "passthrough", "models": [home]}, tmp_path / "out")
    assert name not in files(tmp_path / "out")
    assert f"{home / name} is a link to a place outside the folder" in report.warnings[0]
    for file in files(tmp_path / "out"):
        assert b"root:x" not in (tmp_path / "out" / file).read_bytes()


def test_a_linked_folder_of_templates_is_not_looked_into(home: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.jinja").write_text("root:x:0:0")
    (home / "additional_chat_templates").symlink_to(outside)
    merge_files({"method": "passthrough", "models": [home]}, tmp_path / "out")
    assert not any("secret" in file for file in files(tmp_path / "out"))


def test_a_configuration_that_is_a_link_out_of_the_folder_is_refused(home: Path, tmp_path: Path) -> None:
    shutil.move(home / "config.json", tmp_path / "elsewhere.json")
    (home / "config.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(StoreError, match=r"config\.json is a link to .*elsewhere\.json, outside its folder"):
        merge_files({"method": "passthrough", "models": [home]}, tmp_path / "out")


def test_links_inside_the_folder_and_in_the_hubs_cache_are_followed(home: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(one for one in home.iterdir() if one.is_file())):
        blob = repository / "blobs" / str(number)
        shutil.copyfile(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    report = merge_files({"method": "passthrough", "models": [snapshot]}, tmp_path / "out")
    assert not report.warnings
    assert {"tokenizer.json", "config.json"} <= set(files(tmp_path / "out"))
    (home / "sub").mkdir()
    shutil.move(home / "tokenizer.json", home / "sub" / "real.json")
    (home / "tokenizer.json").symlink_to("sub/real.json")
    merge_files({"method": "passthrough", "models": [home]}, tmp_path / "inside")
    assert "tokenizer.json" in files(tmp_path / "inside")
    linked = tmp_path / "linked"
    linked.symlink_to(home)  # a folder that is itself named by a link
    merge_files({"method": "passthrough", "models": [linked]}, tmp_path / "named")
    assert "tokenizer.json" in files(tmp_path / "named")


def test_a_tokenizer_that_only_a_tune_has_is_told(home: Path, tmp_path: Path) -> None:
    tune = Path(shutil.copytree(home, tmp_path / "tune"))
    for file in folders.tokenizer_files(home):
        (home / file).unlink()
    recipe = {"method": "linear", "models": [home, tune]}
    report = merge_files(recipe, tmp_path / "out")
    (warning,) = report.warnings
    assert f"{home} has no tokenizer, and {tune} has one: the result has none" in warning
    assert f"`tokenizer_source: {tune}`" in warning
    merge_files({**recipe, "tokenizer_source": tune}, tmp_path / "way")  # the way that is named
    assert "tokenizer.json" in files(tmp_path / "way")


def test_a_configuration_of_quantisation_that_is_left_over_is_dropped_and_told(
    home: Path, tmp_path: Path
) -> None:
    checkpoints.edit_json(
        home / "config.json", lambda c: c.update(quantization_config={"quant_method": "bitsandbytes"})
    )
    report = merge_files({"method": "passthrough", "models": [home]}, tmp_path / "out")
    assert "left over from training" in report.warnings[0]
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


# -- modules of sentence-transformers ------------------------------------------------------------------------------------


def sentences(folder: Path, seed: int, modules: tuple[str, ...] = ("", "1_Pooling", "2_Dense")) -> Path:
    draw = torch.Generator().manual_seed(seed)
    main_ = folder / modules[0]
    single(main_, {"w": torch.randn(3, 2, generator=draw)})
    write_json(main_ / "config.json", {"model_type": "bert"})
    listing = [
        {"idx": n, "path": path, "type": f"sentence_transformers.models.{path[2:] or 'Transformer'}"}
        for n, path in enumerate(modules)
    ]
    write_json(folder / "modules.json", listing)
    write_json(folder / "config_sentence_transformers.json", {})
    for path in modules[1:]:
        write_json(folder / path / "config.json", {"in_features": 3})
        if "Dense" in path:
            write_tensors(
                folder / path / "model.safetensors", {"linear.weight": torch.randn(4, 3, generator=draw)}
            )
    return folder


@pytest.mark.parametrize(
    "modules",
    [
        ("", "1_Pooling", "2_Dense"),
        ("", "1_Pooling", "2_Dense", "3_Dense"),
        ("0_Transformer", "1_Pooling", "2_Dense"),
    ],
)
def test_dense_modules_are_merged_like_the_model(modules: tuple[str, ...], tmp_path: Path) -> None:
    base, tune = sentences(tmp_path / "a", 1, modules), sentences(tmp_path / "b", 2, modules)
    report = merge_files(
        {"method": "task_arithmetic", "base_model": base, "models": [tune], "parameters": {"scale": 0.5}},
        tmp_path / "out", )  # fmt: skip
    dense = [path for path in modules if "Dense" in path]
    assert any(
        all(path in one for path in dense) and "merged like the model's" in one for one in report.warnings
    )
    for path in (modules[0], *dense):
        first, second, made = (
            Checkpoint(root / path / "model.safetensors").read() for root in (base, tune, tmp_path / "out")
        )
        assert set(made) == set(first)
        for name in made:
            torch.testing.assert_close(made[name], (first[name] + second[name]) / 2)
    assert {f"{path}/config.json".lstrip("/") for path in modules} | {"modules.json"} <= set(
        files(tmp_path / "out")
    )
    again = merge_files({"method": "linear", "models": [tmp_path / "out", base]}, tmp_path / "again")
    assert len(again.tensors) == 1 + len(dense)
    assert main(["reproduce-card", str(tmp_path / "out"), "-q"]) == 0


def test_modules_that_differ_or_are_pickles_are_refused(tmp_path: Path) -> None:
    base, tune = sentences(tmp_path / "a", 1), sentences(tmp_path / "b", 2, ("", "1_Pooling"))
    with pytest.raises(Exception, match=r"lacks tensor '2_Dense/linear.weight'"):
        merge_files({"method": "linear", "models": [base, tune]}, tmp_path / "out")
    (base / "2_Dense" / "model.safetensors").rename(base / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(PickleRefusedError, match="2_Dense"):
        open_source(base)
    write_json(tune / "modules.json", [{"path": "../../etc"}])
    with pytest.raises(StoreError, match="lies outside its folder"):
        open_source(tune)


# -- names of files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["5GB", "20KB"])
def test_a_folder_of_diffusers_keeps_its_names(limit: str, tmp_path: Path) -> None:
    tensors = {f"down.{n}.weight": torch.ones(50, 50) * n for n in range(6)}
    for number, name in enumerate("ab"):
        single(
            tmp_path / name,
            {k: v + number for k, v in tensors.items()},
            "diffusion_pytorch_model.safetensors",
        )
        write_json(tmp_path / name / "config.json", {"_class_name": "UNet2DConditionModel", "sample_size": 8})
    merge_files(
        {"method": "linear", "models": [tmp_path / "a", tmp_path / "b"], "shard_size": limit, "out_dtype": "float16"},
        tmp_path / "out", )  # fmt: skip
    made = [file for file in files(tmp_path / "out") if file not in ("README.md", "config.json")]
    assert all(file.startswith("diffusion_pytorch_model") for file in made)
    assert ("diffusion_pytorch_model.safetensors.index.json" in made) == (limit == "20KB")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 8,
    }
    out = Checkpoint(tmp_path / "out")
    assert torch.equal(out["down.3.weight"], torch.full((50, 50), 3.5).half())


def test_a_checkpoint_in_one_file_comes_back_as_one_file_with_what_its_header_says(tmp_path: Path) -> None:
    said = {"modelspec.title": "mine", "ss_tag": "x", "modelspec.hash_sha256": "0xab", "sshs_model_hash": "1"}
    for name, by in (("a", 0.0), ("b", 2.0)):
        write_tensors(tmp_path / f"{name}.safetensors", other(by), said)
    command = [
        "merge",
        "--method",
        "linear",
        str(tmp_path / "a.safetensors"),
        str(tmp_path / "b.safetensors"),
        "-o",
    ]
    out = tmp_path / "out.safetensors"
    assert main([*command, str(out), "-q"]) == 0
    made = Checkpoint(out)
    assert flat(made.read()) == flat(other(1.0))
    kept = {key: value for key, value in made.metadata.items() if key != "tauspan.merge"}
    assert kept == {
        "modelspec.title": "mine",
        "ss_tag": "x",
        "format": "pt",
    }  # hashes were those of other values
    assert json.loads(made.metadata["tauspan.merge"])["recipe"]["method"] == "linear"
    assert main([*command, str(out), "-q"]) == 5
    assert main([*command, str(out), "-q", "--overwrite"]) == 0
    assert main([*command, str(out), "-q", "--resume"]) == 0
    assert open_source(out).kind == "point"
    assert main([*command, str(tmp_path / "folder"), "-q"]) == 0
    assert Checkpoint(tmp_path / "folder").metadata["modelspec.title"] == "mine"


def test_one_file_is_no_place_for_a_model_with_files_beside_it(home: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name a directory, without the suffix"):
        merge_files({"method": "passthrough", "models": [home]}, tmp_path / "out.safetensors")
