"""Names in files and names in memory: vectors of every verb fit every other verb, whatever the model is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from helpers import checkpoints, program
from helpers.families import FAMILIES, loaded, make, state, tune
from tauspan import models
from tauspan.cli import main as cli
from tauspan.core import params
from tauspan.core.errors import MismatchError, ModelError
from tauspan.editing import adamerging, add, coefficients, combine, disentanglement
from tauspan.editing.model.edit import apply, load, save
from tauspan.editing.model.edit_files import Base, apply_files
from tauspan.merge import merge, merge_files
from tauspan.merge.data.gather import fisher_information, gram_matrices
from tauspan.merge.data.informed import regmean_plus_plus
from tauspan.models import Encoder, fingerprint_of, names_of
from tauspan.models.extras import quiet
from tauspan.models.home import home_of
from tauspan.models.names import names_between
from tauspan.tangent import linearize
from tauspan.tasks import Task
from tauspan.train import Settings, finetune
from tauspan.vector import TaskVector

Pair = tuple[Path, Path]
TASKS = {"one": program.ROWS, "two": program.ROWS[::-1]}


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


@pytest.mark.thinned(2)
@every
def test_vectors_of_diff_and_of_merge_fit_merge_apply_and_verify(
    pairs: dict[str, Pair], name: str, tmp_path: Path
) -> None:
    base, tuned = pairs[name]
    recipe = {"method": "task_arithmetic", "base_model": str(base), "models": [str(tuned)]}
    merge_files(
        {**recipe, "output": "vector"},
        tmp_path / "m.safetensors",
    )
    merged = TaskVector.from_pretrained(tmp_path / "m.safetensors")
    made = TaskVector.from_checkpoints(base, tuned)
    assert merged.base == made.base == Base(base).fingerprint
    assert merged.deltas.keys() == made.deltas.keys()
    apply_files(base, merged, tmp_path / "applied")
    made.save_pretrained(tmp_path / "d.safetensors")
    merge_files(
        {**recipe, "models": [str(tmp_path / "d.safetensors")]},
        tmp_path / "merged",
    )
    for out in ("applied", "merged"):
        assert close(state(tmp_path / out), state(tuned))


@pytest.mark.thinned(2)
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
    merge_files(
        recipe,
        tmp_path / "merged",
    )
    assert close(state(tmp_path / "merged"), state(tuned))


@pytest.mark.thinned(3)
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
    merge_files(
        recipe,
        tmp_path / "merged",
    )
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


# -- what is done with them ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def headed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT whose files have a head and a prefix that its backbone in memory lacks, with a tokenizer."""
    folder = tmp_path_factory.mktemp("headed") / "model"
    checkpoints.write(folder, "bert")
    config = transformers.AutoConfig.from_pretrained(folder)
    torch.manual_seed(0)
    with quiet(transformers):
        transformers.BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("regime", ["standard", pytest.param("linear", marks=pytest.mark.slow)])
def test_fine_tuning_searching_and_merging_speak_the_names_of_the_files(
    headed: Path, regime: Any, tmp_path: Path
) -> None:
    encoder: Any = load(headed)
    tasks = [Task.from_directory(program.task(tmp_path / name, rows)) for name, rows in TASKS.items()]
    vectors = {
        task: finetune(encoder, task, Settings(regime, lr=0.01, max_steps=2, seed=k)).task_vector
        for k, task in enumerate(tasks)
    }
    one, two = vectors.values()
    files = load_file(headed / "model.safetensors")
    assert set(one.deltas) <= set(files)
    assert all(name.startswith("bert.") for name in one.deltas)
    assert one.base == Base(headed).fingerprint
    found = coefficients(
        encoder,
        vectors,
        per="layer",
        bootstrap=0,
        max_evaluations=3,
    ).report()
    groups = found.result["groups"]
    assert "bert.embeddings.word_embeddings.weight" in groups["embeddings"]
    combined = combine(vectors, found.result["coefficients"], groups)
    assert combined.deltas.keys() == one.deltas.keys()
    by_hand = {
        name: sum(found.result["coefficients"][t.name][g] * v.deltas[name] for t, v in vectors.items())
        for g, names in groups.items()
        for name in names
    }
    assert all(torch.allclose(combined.deltas[name], delta, atol=1e-7) for name, delta in by_hand.items())
    adamerging(
        encoder,
        vectors,
        steps=2,
    ).report()
    disentanglement(
        encoder,
        vectors,
        grid=(0.0, 1.0),
    ).report()
    add(
        encoder,
        vectors,
        grid=(0.0, 1.0),
    ).report()
    merged = merge([one, two], "task_arithmetic", base=encoder)
    name = "bert.embeddings.LayerNorm.bias"
    assert torch.allclose(merged.deltas[name], (one + two).deltas[name])
    fisher = fisher_information(
        encoder,
        one,
        tasks[0],
        rows=2,
    )
    gram = gram_matrices(
        encoder,
        one,
        tasks[0],
        rows=2,
    )
    assert set(fisher.tensors) | set(gram.tensors) <= set(one.deltas)
    assert (
        regmean_plus_plus(
            encoder,
            vectors,
            rows=2,
        ).deltas.keys()
        == one.deltas.keys()
    )
    tangent = linearize(encoder, list(one.deltas))  # names of files select, too
    tangent.load_task_vector(one)
    assert all(not name.startswith("bert.") for name in tangent.tau)
    assert tangent.task_vector().deltas.keys() == one.deltas.keys()


@pytest.mark.parametrize("regime", ["standard", "posthoc", "linear"])
def test_a_head_that_a_vector_moves_is_moved_or_kept_in_every_regime(
    headed: Path, regime: Any, tmp_path: Path
) -> None:
    base, tuned = headed, tune(headed, tmp_path / "tuned")
    tau = TaskVector.from_checkpoints(base, tuned)
    tau = tau.as_regime("linear") if regime == "linear" else tau
    edited = apply(load(base), tau, 0.5, regime=regime)
    save(edited, tmp_path / "out")
    if regime == "standard":
        found = load_file(tmp_path / "out" / "model.safetensors")
        was, now = load_file(base / "model.safetensors"), load_file(tuned / "model.safetensors")
        for name, tensor in found.items():
            assert torch.allclose(tensor, (was[name] + now[name]) / 2, atol=1e-6)
    else:
        again: Any = load(tmp_path / "out")
        assert again.task_vector().deltas.keys() == tau.deltas.keys()
        name = "cls.predictions.bias"
        assert torch.allclose(again.task_vector().deltas[name], tau.deltas[name] / 2)


def test_older_vectors_of_a_headed_model_are_recognised(headed: Path, tmp_path: Path) -> None:
    encoder: Any = load(headed)
    memory = models.state_of(encoder)
    old = TaskVector(
        {n: torch.ones_like(t) for n, t in memory.items()}, params.fingerprint(memory), "standard"
    )
    old.save_pretrained(tmp_path / "old.safetensors")
    assert run("vector", "verify", tmp_path / "old.safetensors", headed, "-q") == 0
    apply_files(headed, old, tmp_path / "files")
    save(apply(encoder, old), tmp_path / "memory")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("files", "memory"))
    assert close(one, other)
    with pytest.raises(MismatchError, match=r"moves 'lm_head\.weight'"):
        apply(encoder, TaskVector({"lm_head.weight": torch.ones(1)}, old.base, "standard"))


def test_whole_numbers_that_differ_are_told_and_codes_refused(tmp_path: Path) -> None:
    one = {"w": torch.ones(2), "order": torch.arange(2), "bn.num_batches_tracked": torch.tensor(1)}
    two = {"w": torch.zeros(2), "order": torch.arange(2).flip(0), "bn.num_batches_tracked": torch.tensor(7)}
    with pytest.warns(UserWarning, match=r"1 tensors of whole numbers differ \(order\)"):
        TaskVector.from_checkpoints(one, two)
    codes = {"q.weight": torch.ones(2, 2, dtype=torch.int8), "q.scale": torch.ones(1)}
    with pytest.raises(ModelError, match="quantised"):
        TaskVector.from_checkpoints(codes, {**codes, "q.weight": torch.zeros(2, 2, dtype=torch.int8)})


@pytest.mark.parametrize("kind", ["point", "vector", "shards"])
@pytest.mark.parametrize(("ours", "theirs"), [("w.a", "model.w.a"), ("model.w.a", "w.a")])
def test_the_repair_of_a_prefix_keeps_what_a_file_is(
    kind: str, ours: str, theirs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tauspan
    from tauspan.merge.checks.checks import check
    from tauspan.merge.sources.opening import open_source
    from tauspan.store import Checkpoint, stream_shards, write_tensors

    monkeypatch.chdir(tmp_path)
    base = {ours: torch.ones(2), f"{ours}.more": torch.ones(2)}
    other = {theirs: torch.full((2,), 3.0), f"{theirs}.more": torch.full((2,), 3.0)}
    save_file(base, "base.safetensors")
    if kind == "vector":
        TaskVector(other, params.fingerprint(base), "linear", "kept").save_pretrained("two.safetensors")
    elif kind == "point":
        save_file(other, "two.safetensors")
    else:
        Path("two").mkdir()
        stream_shards(
            Path("two"), {n: (t.dtype, t.shape) for n, t in other.items()}, other.values(), largest=8
        )
    given = open_source("two" if kind == "shards" else "two.safetensors")
    problem = next(one for one in check(open_source("base.safetensors"), [given]) if one.kind == "prefix")
    code = problem.message.partition("): `")[2].removesuffix("`.")
    names = {"tauspan": tauspan, "load_file": load_file, "save_file": save_file, "Checkpoint": Checkpoint,
             "write_tensors": write_tensors}  # fmt: skip
    exec(code, names)  # it is meant to be pasted
    recipe = {
        "method": "task_arithmetic",
        "base_model": "base.safetensors",
        "models": ["renamed.safetensors"],
    }
    merge_files(
        recipe,
        "out",
    )
    want = 4.0 if kind == "vector" else 3.0  # the base and the displacement, never the displacement alone
    assert load_file("out/model.safetensors")[ours].tolist() == [want, want]
    if kind == "vector":
        kept = TaskVector.from_pretrained("renamed.safetensors")
        assert (kept.label, kept.regime) == ("kept", "linear")
