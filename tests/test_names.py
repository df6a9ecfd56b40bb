"""Names in files and names in memory: vectors of every verb fit every other verb, whatever the model is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from families import FAMILIES, loaded, make, state, tune
from tauspan import cli, params
from tauspan.edit import apply, save
from tauspan.edit_files import Base, apply_files
from tauspan.merge import merge_files
from tauspan.models import Encoder, fingerprint_of, names_of
from tauspan.models.hf import quiet
from tauspan.models.home import home_of
from tauspan.models.names import names_between
from tauspan.vector import TaskVector

Pair = tuple[Path, Path]


class Pairs(dict[str, Pair]):
    """A base and a tuned model of each family, made when it is asked for."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def __missing__(self, name: str) -> Pair:
        base = make(name, self.root / name.replace(" ", "-") / "base")
        self[name] = base, tune(base, base.parent / "tuned")
        return self[name]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    root = tmp_path_factory.mktemp("families")
    return Pairs(root)


def close(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.allclose(t.float(), other[n].float(), atol=1e-6) for n, t in one.items()
    )


def run(*arguments: Any) -> int:
    return cli.main([str(one) for one in arguments])


USUAL = ("llama", "bert", "mixtral", "gemma3", "t5")
every = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in USUAL else pytest.mark.slow) for name in FAMILIES]
)


# -- the layer -----------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("whole", [True, False])
def test_tensors_translate_as_transformers_loads_them_and_back(
    pairs: dict[str, Pair], name: str, whole: bool
) -> None:
    base, _ = pairs[name]
    files = load_file(base / "model.safetensors")
    with quiet(transformers):
        model = loaded(base)[0] if whole else transformers.AutoModel.from_pretrained(base)
    names = names_between(model, {n: t.shape for n, t in files.items()})
    memory = names.to_memory(files)
    held = model.state_dict()
    assert all(torch.equal(memory[n], held[n]) for n in names.in_memory)
    assert not whole or not names.carried
    back = names.to_files({n: held[n] for n in names.in_memory})
    assert set(back) | set(names.carried) == set(files)
    assert all(torch.equal(tensor, files[n]) for n, tensor in back.items())


@every
def test_a_skeleton_knows_the_names_of_the_loaded_model(pairs: dict[str, Pair], name: str) -> None:
    from tauspan.models import directory_names

    base, _ = pairs[name]
    shapes = {n: t.shape for n, t in load_file(base / "model.safetensors").items()}
    told = directory_names(base, shapes)
    real = names_between(loaded(base)[0], shapes)
    assert told.renamed == real.renamed
    assert [one.shapes for one in told.moved] == [one.shapes for one in real.moved]


def test_experts_are_told_apart_by_number_and_not_by_spelling(pairs: dict[str, Pair]) -> None:
    base, _ = pairs["qwen moe"]  # eleven experts: 10 comes before 2 in the alphabet
    files = load_file(base / "model.safetensors")
    with quiet(transformers):
        model = transformers.AutoModel.from_pretrained(base)
    names = names_between(model, {n: t.shape for n, t in files.items()})
    stored = "model.layers.0.mlp.experts.10.down_proj.weight"
    only = names.to_memory({stored: torch.ones_like(files[stored])})
    (moved,) = only.values()
    assert moved[10].eq(1).all()
    assert moved[:10].eq(0).all()
    assert torch.equal(names.to_files(only)[stored], torch.ones_like(files[stored]))


# -- vectors and verbs ---------------------------------------------------------------------------------------


@every
def test_a_difference_of_directories_holds_every_tensor_and_applies_to_a_whole_model(
    pairs: dict[str, Pair], name: str, tmp_path: Path
) -> None:
    base, tuned = pairs[name]
    assert run("vector", "diff", base, tuned, "-o", tmp_path / "v.safetensors", "-q") == 0
    tau = TaskVector.from_pretrained(tmp_path / "v.safetensors")
    floats = {n for n, t in load_file(base / "model.safetensors").items() if t.is_floating_point()}
    assert set(tau.deltas) == floats
    assert run("vector", "verify", tmp_path / "v.safetensors", base, "-q") == 0
    assert run("apply", base, tmp_path / "v.safetensors", tmp_path / "out", "-q") == 0
    assert close(state(tmp_path / "out"), state(tuned))
    wanted, found = (json.loads((one / "config.json").read_text()) for one in (base, tmp_path / "out"))
    assert found["architectures"] == wanted["architectures"]


@every
def test_vectors_of_diff_and_of_merge_fit_merge_apply_and_verify(
    pairs: dict[str, Pair], name: str, tmp_path: Path
) -> None:
    base, tuned = pairs[name]
    recipe = {"method": "task_arithmetic", "base_model": str(base), "models": [str(tuned)]}
    merge_files({**recipe, "output": "vector"}, tmp_path / "m.safetensors", show_progress=False)
    merged = TaskVector.from_pretrained(tmp_path / "m.safetensors")
    made = TaskVector.from_checkpoints(base, tuned)
    assert merged.base == made.base == Base(base).fingerprint
    assert merged.deltas.keys() == made.deltas.keys()
    apply_files(base, merged, tmp_path / "applied")
    made.save_pretrained(tmp_path / "d.safetensors")
    merge_files(
        {**recipe, "models": [str(tmp_path / "d.safetensors")]}, tmp_path / "merged", show_progress=False
    )
    for out in ("applied", "merged"):
        assert close(state(tmp_path / out), state(tuned))


@every
def test_vectors_of_modules_in_memory_fit_the_files(
    pairs: dict[str, Pair], name: str, tmp_path: Path
) -> None:
    base, tuned = pairs[name]
    before, after = (loaded(one)[0] for one in (base, tuned))
    tau = TaskVector.from_checkpoints(before, after)
    assert tau.base == Base(base).fingerprint == fingerprint_of(before)
    assert close(dict(apply(before, tau).state_dict()), dict(after.state_dict()))
    tau.save_pretrained(tmp_path / "v.safetensors")
    recipe = {
        "method": "task_arithmetic",
        "base_model": str(base),
        "models": [str(tmp_path / "v.safetensors")],
    }
    merge_files(recipe, tmp_path / "merged", show_progress=False)
    assert close(state(tmp_path / "merged"), state(tuned))


@every
@pytest.mark.parametrize("part", ["backbone", "architecture"])
def test_a_vector_by_the_names_of_memory_is_translated_wherever_it_comes_to_files(
    pairs: dict[str, Pair], name: str, part: str, tmp_path: Path
) -> None:
    base, tuned = pairs[name]
    with quiet(transformers):
        models = [
            loaded(one)[0] if part == "architecture" else transformers.AutoModel.from_pretrained(one)
            for one in (base, tuned)
        ]
    before, after = (dict(model.named_parameters()) for model in models)
    deltas = {
        n: (after[n] - tensor).detach()
        for n, tensor in before.items()
        if name == "bert classes" or not n.startswith("pooler.")
    }
    floats = {n: t for n, t in before.items() if n in deltas}
    tau = TaskVector(deltas, params.fingerprint(floats), "standard").save_pretrained(
        tmp_path / "v.safetensors"
    )
    recipe = {"method": "task_arithmetic", "base_model": str(base), "models": [str(tau)]}
    merge_files(recipe, tmp_path / "merged", show_progress=False)
    moved = load_file(tmp_path / "merged" / "model.safetensors")
    wanted, was = load_file(tuned / "model.safetensors"), load_file(base / "model.safetensors")
    heads = {
        n for n in wanted if n not in names_between(models[0], {k: t.shape for k, t in was.items()}).renamed
    }
    for n, tensor in moved.items():
        same = torch.allclose(tensor, wanted[n], atol=1e-6)
        assert same or (n in heads and torch.equal(tensor, was[n]))


# -- encoders ------------------------------------------------------------------------------------------------


@every
def test_an_encoder_has_the_fingerprint_of_its_files_and_is_saved_whole(
    pairs: dict[str, Pair], name: str, tmp_path: Path
) -> None:
    base, tuned = pairs[name]
    with quiet(transformers):
        backbone = transformers.AutoModel.from_pretrained(base).eval()
        if hasattr(backbone, "pooler") and "bert" in name and name != "bert classes":
            backbone.pooler = None  # as `load` does: the files have none
    encoder = Encoder(backbone, home=home_of(base, base / "model.safetensors", backbone))
    assert encoder.home is not None
    assert fingerprint_of(encoder) == Base(base).fingerprint
    tau = TaskVector.from_checkpoints(base, tuned)
    edited = apply(encoder, tau)
    assert isinstance(edited, Encoder)
    save(edited, tmp_path / "out")
    assert close(state(tmp_path / "out"), state(tuned))
    assert fingerprint_of(edited) == Base(tmp_path / "out").fingerprint
    backward = TaskVector.from_checkpoints(encoder, edited)
    assert set(backward.deltas) == set(tau.deltas)
    assert all(torch.allclose(delta, tau.deltas[n], atol=1e-6) for n, delta in backward.deltas.items())


def test_a_tied_tensor_that_the_files_hold_twice_is_moved_in_both(tmp_path: Path) -> None:
    base = make("llama tied", tmp_path / "base")
    files = load_file(base / "model.safetensors")
    twice = {**files, "lm_head.weight": files["model.embed_tokens.weight"].clone()}
    save_file(twice, base / "model.safetensors", {"format": "pt"})
    with quiet(transformers):
        backbone = transformers.AutoModel.from_pretrained(base).eval()
    encoder = Encoder(backbone, home=home_of(base, base / "model.safetensors", backbone))
    assert names_of(encoder).carried == ()
    delta = torch.ones_like(files["model.embed_tokens.weight"])
    tau = TaskVector(
        {"model.embed_tokens.weight": delta, "lm_head.weight": delta}, fingerprint_of(encoder), "standard"
    )
    save(apply(encoder, tau), tmp_path / "out")
    model, said = loaded(tmp_path / "out")
    assert not any(said.values())
    assert torch.equal(model.lm_head.weight, files["model.embed_tokens.weight"] + 1)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    halves = TaskVector(
        {"lm_head.weight": delta, "model.embed_tokens.weight": 2 * delta}, tau.base, "standard"
    )
    with pytest.raises(Exception, match="are one tensor in the module"):
        apply(encoder, halves)


def test_weights_need_no_tokenizer_and_no_class_that_is_known(tmp_path: Path) -> None:
    base = make("llama", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps({**config, "model_type": "nobodys", "architectures": ["Own"]})
    )
    tuned = tune(base, tmp_path / "tuned")
    tau = TaskVector.from_checkpoints(base, tuned)
    apply_files(base, tau, tmp_path / "out")
    moved, wanted = (load_file(one / "model.safetensors") for one in (tmp_path / "out", tuned))
    assert close(moved, wanted)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["Own"]
