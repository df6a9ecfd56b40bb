"""The merging verbs of the program: what they write, that transformers reads it, every refusal with its exit code."""

import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from helpers import checkpoints
from helpers.program import contents
from tauspan.cli.main import main
from tauspan.merge.lora.adapters import save_adapter
from tauspan.merge.lora.lowrank import LowRank, Term
from tauspan.merge.recipe.reading import json_schema
from tauspan.merge.sources.opening import open_source
from tauspan.merge.stream.card import Card
from tauspan.vector import TaskVector

KINDS = {"bert": transformers.AutoModel, "llama": transformers.AutoModel, "clip": transformers.CLIPModel}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each kind a base, two models near it, and a recipe that merges them."""
    root = tmp_path_factory.mktemp("merging")
    for kind in KINDS:
        base = checkpoints.write(root / kind / "base", kind)
        checkpoints.edit_json(base / "config.json", lambda c: c.update(torch_dtype=c.pop("dtype", "float32")))
        (base / "generation_config.json").write_text("{}")
        (base / "chat_template.jinja").write_text("{{ messages }}")
        (base / "modeling_own.py").write_text("1 / 0\n")
        torch.save({}, base / "training_args.bin")
        for number in (1, 2):
            near(base, root / kind / f"m{number}", number)
        recipe = f"method: task_arithmetic\nbase_model: {base}\nout_dtype: bfloat16\nmodels:\n"
        recipe += "".join(
            f"- {{model: {root / kind / name}, parameters: {{weight: 0.5}}}}\n" for name in ("m1", "m2")
        )
        (root / f"{kind}.yaml").write_text(recipe)
    return root


def near(base: Path, folder: Path, seed: int) -> None:
    """A copy of a model with all its weights moved a little."""
    shutil.copytree(base, folder)
    drawn = torch.Generator().manual_seed(seed)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = tensor + 0.01 * torch.randn(tensor.shape, generator=drawn)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def call(*words: Any) -> int:
    try:
        return main([str(word) for word in words])
    except SystemExit as stop:  # argparse's own refusals
        return int(stop.code or 0)


def loaded(kind: str, folder: Path) -> Any:
    """The model as transformers loads it; any warning, and any weight that is missing or left over, fails."""
    said: list[str] = []

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    log, ear = logging.getLogger("transformers"), Heard(logging.WARNING)
    log.addHandler(ear)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model, info = KINDS[kind].from_pretrained(folder, output_loading_info=True)
    finally:
        log.removeHandler(ear)
    assert not said
    assert not any(info.values())
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_directory_loads_without_a_warning(world: Path, tmp_path: Path, kind: str) -> None:
    assert call("merge", world / f"{kind}.yaml", tmp_path / "out", "-q") == 0
    model = loaded(kind, tmp_path / "out")
    parts = [load_file(world / kind / name / "model.safetensors") for name in ("base", "m1", "m2")]
    base, one, two = ({name: tensor.double() for name, tensor in part.items()} for part in parts)
    state = model.state_dict()
    for name, tensor in base.items():
        if tensor.is_floating_point() and name in state:
            assert state[name].dtype == torch.bfloat16
            expected = tensor + 0.5 * (one[name] - tensor) + 0.5 * (two[name] - tensor)
            assert torch.equal(state[name], expected.float().bfloat16()) or torch.allclose(
                state[name].double(), expected, rtol=2**-8, atol=1e-6
            )
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {
        "config.json",
        "tokenizer.json",
        "generation_config.json",
        "chat_template.jinja",
        "README.md",
    } <= names
    assert not {"modeling_own.py", "training_args.bin"} & names
    assert ("preprocessor_config.json" in names) == (kind == "clip")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "torch_dtype" not in config
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == "{{ messages }}"


def test_a_frankenmerge_loads_with_its_number_of_layers(world: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "frank.yml"
    folder = world / "llama"
    recipe.write_text(
        f"merge_method: passthrough\nslices:\n- sources: [{{model: {folder}/m1, layer_range: [0, 2]}}]\n"
        f"- sources: [{{model: {folder}/m2, layer_range: [1, 2]}}]\n"
    )
    assert call("merge", recipe, tmp_path / "out", "-q") == 0
    model = loaded("llama", tmp_path / "out")
    assert model.config.num_hidden_layers == 3
    second = load_file(folder / "m2" / "model.safetensors")
    for name, tensor in model.layers[2].state_dict().items():
        assert torch.equal(tensor, second[f"layers.1.{name}"])


def test_the_tokenizer_comes_from_its_source(world: Path, tmp_path: Path) -> None:
    home, other = world / "bert" / "base", tmp_path / "other"
    shutil.copytree(home, other)
    (other / "chat_template.jinja").write_text("other")
    recipe = tmp_path / "m.yaml"
    text = (world / "bert.yaml").read_text()
    recipe.write_text(text + f"tokenizer_source: {other}\n")
    assert call("merge", recipe, tmp_path / "out", "-q") == 0
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "other"
    for file in (world / "llama" / "base").glob("*token*"):
        shutil.copyfile(file, other / file.name)
    assert call("merge", recipe, tmp_path / "aligned", "-q") == 0
    rows = load_file(tmp_path / "aligned" / "model.safetensors")["embeddings.word_embeddings.weight"].shape[0]
    assert rows == len(transformers.AutoTokenizer.from_pretrained(tmp_path / "aligned")) == 30
    assert transformers.AutoConfig.from_pretrained(tmp_path / "aligned").vocab_size == 30
    recipe.write_text(text + f"tokenizer_source: {other}\nallow: [tokenizer]\n")
    assert call("merge", recipe, tmp_path / "by-ids", "-q") == 0
    assert (tmp_path / "by-ids" / "tokenizer.json").read_text() == (other / "tokenizer.json").read_text()
    recipe.write_text(text + "tokenizer_source: union\n")
    assert call("merge", recipe, tmp_path / "out2", "-q") == 0


def test_a_plan_moves_nothing_and_says_what_would_be_done(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(world)
    assert call("merge", world / "bert.yaml", tmp_path / "out", "--plan", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["result"]["bytes to write"] > 0
    assert call("merge", world / "bert.yaml", "--plan", "--workers", "3") == 0
    assert "this process now" in capsys.readouterr().out
    assert contents(world) == before
    assert not list(tmp_path.iterdir())


def test_the_result_does_not_depend_on_workers_and_access(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, words in {
        "a": ["--workers", "1"],
        "b": ["--workers", "3", "--access", "pread"],
        "c": ["--seed", "4"],
    }.items():
        assert call("merge", world / "bert.yaml", tmp_path / name, *words) == 0
    assert "wrote" in capsys.readouterr().out
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a["model.safetensors"] == b["model.safetensors"] == c["model.safetensors"]
    assert Card.read(tmp_path / "c").recipe.seed == 4
    assert call("merge", world / "bert.yaml", tmp_path / "a", "-q") == 5
    assert call("merge", world / "bert.yaml", tmp_path / "a", "--overwrite", "-q") == 0
    assert contents(tmp_path / "a") == a


def test_vectors_and_adapters_come_out(world: Path, tmp_path: Path) -> None:
    text = (world / "bert.yaml").read_text().replace("out_dtype: bfloat16\n", "")
    recipe = tmp_path / "m.yaml"
    recipe.write_text(text + "output: vector\n")
    assert call("merge", recipe, tmp_path / "tau.safetensors", "-q") == 0
    assert call("vector", "inspect", tmp_path / "tau.safetensors", "-q") == 0
    recipe.write_text(text + "output: adapter\nrank: 2\n")
    assert (
        call("merge", recipe, tmp_path / "adapter", "-q") == 2
    )  # norms and biases moved: no adapter holds them
    assert not (tmp_path / "adapter").exists()


def test_an_adapter_of_full_rank_is_the_merged_displacement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = torch.Generator().manual_seed(0)
    base = {"layer.weight": torch.randn(4, 6, generator=drawn)}
    tuned = {"layer.weight": base["layer.weight"] + torch.randn(4, 6, generator=drawn)}
    for name, tensors in (("base", base), ("tuned", tuned)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    recipe = tmp_path / "m.yaml"
    text = f"method: task_arithmetic\nbase_model: {tmp_path}/base.safetensors\noutput: adapter\nrank: RANK\n"
    text += f"models: [{{model: {tmp_path}/tuned.safetensors}}]\n"
    for rank in (4, 1):
        recipe.write_text(text.replace("RANK", str(rank)))
        assert call("merge", recipe, tmp_path / f"adapter{rank}", "--json") == 0
        (row,) = json.loads(capsys.readouterr().out)["tables"][-1]["rows"]
        low = open_source(tmp_path / f"adapter{rank}")
        left = tuned["layer.weight"] - base["layer.weight"] - low.read("layer.weight", 0, 24).view(4, 6)
        assert row["left out"] == pytest.approx(float(left.norm()), abs=1e-5)
        assert (row["left out"] < 1e-5) == (rank == 4)
        low.close()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_merge_is_made_again_from_its_card(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("merge", world / "bert.yaml", tmp_path / "out", "-q") == 0
    assert call("reproduce-card", tmp_path / "out") == 0
    assert "the same bits" in capsys.readouterr().out
    assert call("reproduce-card", tmp_path / "out" / "README.md", tmp_path / "again", "--json") == 0
    assert json.loads(capsys.readouterr().out)["result"]["digest"] == Card.read(tmp_path / "out").digest
    assert (tmp_path / "again" / "model.safetensors").is_file()
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    first = next(iter(tensors))
    tensors[first] = tensors[first] + 1
    save_file(tensors, tmp_path / "out" / "model.safetensors", {"format": "pt"})
    assert call("reproduce-card", tmp_path / "out", "-q") == 4
    assert first in capsys.readouterr().err


def test_the_doctor_answers_with_words_and_an_exit_code(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, one = world / "bert" / "base", world / "bert" / "m1"
    assert call("doctor", one, "--base", base) == 0
    assert "no errors" in capsys.readouterr().out
    assert call("doctor", one, world / "llama" / "m1", "--base", base) == 4
    said = capsys.readouterr()
    assert "lacks tensor" in said.out
    assert "cannot be merged as they are" in said.err
    shutil.copytree(one, tmp_path / "nan")
    tensors = load_file(one / "model.safetensors")
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, tmp_path / "nan" / "model.safetensors", {"format": "pt"})
    assert call("doctor", tmp_path / "nan", "--base", base, "-q") == 0
    assert call("doctor", tmp_path / "nan", "--base", base, "--values", "--json") == 4
    assert json.loads(capsys.readouterr().out)["result"]["errors"] == 1
    assert call("doctor", tmp_path / "nowhere", "-q") == 4


def test_code_of_ones_own_runs_only_when_the_command_line_names_it(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cli_own_method.py").write_text(
        "def last(values, base, *, scale=1.0):\n    return scale * values[-1]\n"
    )
    text = (
        (world / "bert.yaml")
        .read_text()
        .replace("weight: 0.5", "")
        .replace("task_arithmetic", "cli_own_method:last")
    )
    recipe = tmp_path / "m.yaml"
    recipe.write_text(text + "parameters: {scale: 2}\n")
    monkeypatch.chdir(tmp_path)
    assert call("merge", recipe, tmp_path / "out", "-q") == 2
    assert "--code cli_own_method:last" in capsys.readouterr().err
    assert call("merge", recipe, tmp_path / "out", "--code", "cli_own_method:other", "-q") == 2
    assert "no such code runs" in capsys.readouterr().err
    assert call("merge", recipe, tmp_path / "out", "--code", "cli_own_method:last", "-q") == 0
    assert call("reproduce-card", tmp_path / "out", "-q") == 2
    assert call("reproduce-card", tmp_path / "out", "--code", "cli_own_method:last", "-q") == 0
    base, last, out = (
        load_file(folder / "model.safetensors")
        for folder in (world / "bert/base", world / "bert/m2", tmp_path / "out")
    )
    name = "embeddings.word_embeddings.weight"
    expected = base[name].double() + 2 * (last[name].double() - base[name].double())
    assert torch.allclose(out[name].double(), expected, rtol=2**-8, atol=1e-6)


def test_the_command_line_spells_a_recipe(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same result and the same card as the file that says it."""
    base, one, two = (world / "bert" / name for name in ("base", "m1", "m2"))
    recipe = tmp_path / "m.yaml"
    recipe.write_text(
        f"method: ties\nbase_model: {base}\nparameters: {{density: 0.3, scale: [0.5, 1.0]}}\nseed: 2\nmodels:\n"
        f"- {{model: {one}, parameters: {{weight: 0.5}}}}\n- {{model: {two}, parameters: {{weight: -1}}}}\n"
    )
    words = ["merge", "--method", "ties", "--base", base, one, two, "--weight", "0.5", "--weight", "-1"]
    words += ["--set", "density=0.3", "--set", "scale=[0.5, 1.0]", "--seed", "2"]
    assert call(*words, "--plan", "-q") == 0
    assert list(tmp_path.iterdir()) == [recipe]
    assert call("merge", recipe, "-o", tmp_path / "file", "-q") == 0
    assert call(*words, "-o", tmp_path / "line", "-q") == 0
    assert Card.read(tmp_path / "line") == Card.read(tmp_path / "file")
    first, second = (contents(tmp_path / name) for name in ("file", "line"))
    assert first["model.safetensors"] == second["model.safetensors"]
    assert call("merge", "--method", "ties", "--base", base, one, "--output", "vector", "-o",
                tmp_path / "v.safetensors", "-q") == 0  # fmt: skip
    assert call("vector", "verify", tmp_path / "v.safetensors", "-q") == 0
    for bad, said in SHORT.items():
        more = bad.split()
        assert call("merge", "--base", base, one, "-o", tmp_path / "no", *more, "-q") == 2, bad
        assert said in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


SHORT = {
    "--method tise": "Did you mean 'ties'?",
    "--method ties --set densty=0.2": "Did you mean 'density'?",
    "--method ties --set density": "write OPTION=VALUE",
    "--method ties --set density=0.1 --set density=0.2": "each option once",
    "--method ties --set density=[": "--set density=[ is not YAML",
    "--method ties --set density=010": "reads 010 in base 8, as 8: write 8",
    "--method ties --set density=7": "outside its range",
    "--method ties --weight 1 --weight 2": "2 --weight for 1 models",
    "--method ties --rank 4": "it belongs to `output: adapter`",
    "--method mine:first": "--code mine:first",
    "--weight 1": "--base belongs to --method",
}


def test_an_adapter_becomes_a_vector(world: Path, tmp_path: Path) -> None:
    low = LowRank({"encoder.q.weight": (Term(torch.ones(1, 3), torch.ones(2, 1), 0.5),)})
    save_adapter(low, tmp_path / "lora")
    save_file({"encoder.q.weight": torch.zeros(2, 3)}, tmp_path / "base.safetensors")
    words = ["vector", "from-adapter", tmp_path / "base.safetensors", tmp_path / "lora"]
    assert call(*words, "-o", tmp_path / "v.safetensors", "-q") == 0
    vector = TaskVector.from_pretrained(tmp_path / "v.safetensors")
    assert torch.equal(vector.deltas["encoder.q.weight"], torch.full((2, 3), 0.5))
    name = "encoder.layer.0.attention.self.query.weight"
    base = world / "bert" / "base"
    rows, columns = load_file(base / "model.safetensors")[name].shape
    low = LowRank({name: (Term(torch.ones(1, columns), torch.ones(rows, 1), 0.5),)})
    save_adapter(low, tmp_path / "other")
    assert (
        call("vector", "from-adapter", base, tmp_path / "other", "-o", tmp_path / "w.safetensors", "-q") == 0
    )
    assert call("vector", "verify", tmp_path / "w.safetensors", base, "-q") == 0
    assert call(*words, "-o", tmp_path / "v.safetensors", "-q") == 5


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("merge", "--schema") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(json_schema()))


REFUSED = {
    "no recipe": (["merge"], 2, "merge needs a recipe and an output"),
    "no output": (["merge", "{bert}"], 2, "merge needs a recipe and an output"),
    "no threads": (["merge", "{bert}", "{out}", "--workers", "0"], 2, "--workers 0: at least one thread"),
    "no such recipe": (["merge", "{nowhere}", "{out}"], 5, "there is no recipe"),
    "another way to read": (["merge", "{bert}", "{out}", "--access", "ftp"], 2, "invalid choice"),
    "no card": (["reproduce-card", "{model}"], 5, "cannot be read as a card"),
    "no models": (["doctor"], 2, "MODEL"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_has_its_exit_code_and_leaves_nothing(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    words, code, said = REFUSED[case]
    places = {
        "bert": world / "bert.yaml",
        "model": world / "bert/base",
        "out": tmp_path / "out",
        "nowhere": tmp_path / "no",
    }
    assert call(*(word.format(**places) for word in words)) == code
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
