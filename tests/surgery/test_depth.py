"""Models with other layers: which layers they are made of, vectors that move with them, and what is refused."""

from pathlib import Path

import pytest
import torch

from helpers import tiny
from helpers import vocabularies as made
from tauspan.cli.main import main
from tauspan.core.errors import MismatchError, ModelError, UsageError
from tauspan.editing.model.edit_files import Base
from tauspan.store import Checkpoint, read_json, write_json, write_tensors
from tauspan.surgery import LayerMap, Running, change_depth
from tauspan.vector import TaskVector

STACK = "encoder.layer."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.bert(tmp_path_factory.mktemp("depth") / "bert", made.word_pieces(60), layers=3)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.bert(tmp_path_factory.mktemp("depth") / "two", made.word_pieces(60), layers=2)


def test_maps_by_words() -> None:
    assert LayerMap.parse("first:2", 3).matrix().tolist() == [[1, 0, 0], [0, 1, 0]]
    assert LayerMap.parse("stages:2,1,2", 3).matrix().argmax(1).tolist() == [0, 0, 1, 2, 2]
    assert LayerMap.parse("interpolate:5", 3).matrix().tolist() == [
        [1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1],
    ]  # fmt: skip
    assert LayerMap.parse("linear:4", 2).matrix().tolist() == [[1, 0], [1, 0.25], [1, 0.5], [1, 0.75]]
    assert LayerMap.parse("interpolate:1", 3).copies
    for depth in range(1, 9):
        assert LayerMap.parse(f"interpolate:{depth}", depth).copies


def test_lines_in_depth_stay_lines() -> None:
    """TLEG's layers B + (l / L) A, interpolated, are layers of that line."""
    line = LayerMap.parse("linear:3", 2).matrix()
    between = LayerMap.parse("interpolate:5", 3).matrix() @ line
    torch.testing.assert_close(between[:, 1], torch.linspace(0, 2 / 3, 5, dtype=torch.float64))


@pytest.mark.parametrize("words", ["first:2", "stages:1,2,1", "interpolate:5"])
def test_layers_are_sums_of_old_ones_and_all_else_is_as_it_was(
    words: str, model: Path, tmp_path: Path
) -> None:
    from transformers import BertModel

    done = change_depth(model, words, tmp_path / "out")
    old, new = Checkpoint(model).read(), Checkpoint(tmp_path / "out").read()
    matrix = LayerMap.parse(words, 3).matrix()
    for name, tensor in new.items():
        if name.startswith(STACK):
            layer, rest = name.removeprefix(STACK).split(".", 1)
            wanted = sum(
                w * old[f"{STACK}{m}.{rest}"].double() for m, w in enumerate(matrix[int(layer)].tolist())
            )
            torch.testing.assert_close(tensor.double(), wanted, rtol=1e-6, atol=1e-7)
        else:
            assert tiny.raw(tensor) == tiny.raw(old[name])
    loaded = BertModel.from_pretrained(tmp_path / "out")
    assert loaded.config.num_hidden_layers == len(loaded.encoder.layer) == len(matrix)
    assert done.verdict.startswith(f"{len(matrix)} layers of 3 under {STACK}")
    assert done.report().verdict == done.verdict


def test_two_layers_that_hold_b_and_a_expand(two: Path, tmp_path: Path) -> None:
    change_depth(two, "linear:4", tmp_path / "out")
    old, new = Checkpoint(two).read(), Checkpoint(tmp_path / "out").read()
    name = "attention.self.query.weight"
    wanted = old[f"{STACK}0.{name}"] + 0.75 * old[f"{STACK}1.{name}"]
    torch.testing.assert_close(new[f"{STACK}3.{name}"], wanted)


def test_vectors_move_with_the_layers(model: Path, tmp_path: Path) -> None:
    tensors = Checkpoint(model).read()
    tuned = {name: tensor + torch.randn_like(tensor) for name, tensor in tensors.items() if ".1." not in name}
    deltas = {name: tuned[name] - tensors[name] for name in tuned}
    tau = TaskVector(deltas, Base(str(model)).fingerprint, "standard", "part")  # does not move layer 1
    tau.save_pretrained(tmp_path / "part.safetensors")
    done = change_depth(model, "interpolate:5", tmp_path / "out", vectors=[tmp_path / "part.safetensors"])
    moved = TaskVector.from_pretrained(done.vectors[0])
    assert moved.base == Base(str(tmp_path / "out")).fingerprint
    name = "output.dense.weight"
    torch.testing.assert_close(moved.deltas[f"{STACK}1.{name}"], 0.5 * deltas[f"{STACK}0.{name}"])
    assert f"{STACK}2.{name}" not in moved.deltas
    layers = LayerMap.parse("interpolate:5", 3)
    twice = layers.vector(2.0 * tau, moved.base, STACK)
    assert tiny.equal(twice.deltas, (2.0 * moved).deltas)


def test_a_finished_result_and_the_program(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["layers", str(model), "stages:1,1,2"]
    assert main([*words, "--plan"]) == 0
    assert not list(tmp_path.iterdir())
    assert main([*words, "-o", "out"]) == 0
    assert capsys.readouterr().out.count("4 layers of 3") == 1
    assert change_depth(model, "stages:1,1,2", "out", running=Running(resume=True)).merge.finished
    assert main(["layers", str(model), "first:9", "-o", "no"]) == 2
    assert "Take interpolate:9" in capsys.readouterr().err
    assert main(["layers", str(model), "interpolate:9", "-o", "nine"]) == 0  # the repair


def test_what_does_not_fit_is_refused(model: Path, tmp_path: Path) -> None:
    for words, said in (
        ("last:2", "is none of first:L"), ("first:0", "is none of"), ("first:1,2", "first takes one number"),
        ("stages:1,2", "stages of 2 numbers for 3 layers"), ("linear:3", "needs a model of two layers"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            change_depth(model, words, tmp_path / "out")
    with pytest.raises(UsageError, match="layers 0 to 1"):
        LayerMap((((5, 1.0),),), 2)
    with pytest.raises(UsageError, match="no layer is left"):
        LayerMap((), 2)
    with pytest.raises(ModelError, match="the stack 'tower'"):
        change_depth(model, "first:1", tmp_path / "out", stack="tower")


def test_layers_of_different_kinds_are_not_mixed(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    write_tensors(
        folder / "model.safetensors",
        {"h.0.w": torch.ones(2), "h.1.w": torch.ones(3), "wte.weight": torch.ones(2, 2)},
    )
    write_json(folder / "config.json", {"num_hidden_layers": 2, "layer_types": ["full", "short"]})
    with pytest.raises(MismatchError, match="Take a map that only copies"):
        change_depth(folder, "interpolate:3", tmp_path / "out")
    change_depth(folder, "stages:1,2", tmp_path / "out")  # the repair
    assert read_json(tmp_path / "out" / "config.json")["layer_types"] == ["full", "short", "short"]
    write_json(folder / "config.json", {"model_type": "odd"})
    with pytest.raises(ModelError, match="Add `num_hidden_layers`"):
        change_depth(folder, "first:1", tmp_path / "again")


def test_what_is_said_of_each_layer_moves_with_it(tmp_path: Path) -> None:
    folder, said = tmp_path / "model", {
        "num_hidden_layers": 3, "no_rope_layers": [0, 1, 1], "mlp_layer_types": ["dense", "sparse", "sparse"],
        "mlp_only_layers": [0, 2], "moe_layers": [1], "kv_source_layers": ["a", "b"], "architectures": ["A"],
    }  # fmt: skip
    write_tensors(folder / "model.safetensors", {f"h.{layer}.w": torch.ones(2) for layer in range(3)})
    write_json(folder / "config.json", said)
    done = change_depth(folder, "stages:2,1,1", tmp_path / "out")  # the layers 0, 0, 1 and 2
    assert read_json(tmp_path / "out" / "config.json") == {
        "num_hidden_layers": 4, "no_rope_layers": [0, 0, 1, 1], "mlp_layer_types": ["dense", "dense", "sparse", "sparse"],
        "mlp_only_layers": [0, 1, 3], "moe_layers": [2], "kv_source_layers": ["a", "b"], "architectures": ["A"],
    }  # fmt: skip
    assert any("kv_source_layers has 2 entries for 3 layers" in note for note in done.warnings)
