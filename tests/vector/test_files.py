"""Task vectors on disk, made from modules, files and directories, and applied to a point."""

import json
import math
import struct

import pytest
import torch
from safetensors import safe_open

from helpers import tiny
from helpers.tiny import BASE, equal, vector
from tauspan import store
from tauspan.core import params
from tauspan.core.errors import (
    BaseMismatchError,
    MismatchError,
    NonFiniteError,
    PickleRefusedError,
    StoreError,
)
from tauspan.models import load_model, state_of
from tauspan.vector import FORMAT, TaskVector

HEADER = {"format": FORMAT, "base": BASE, "regime": "linear", "label": "tau", "info": {}}


def write(file, header, tensors=None):
    text = header if isinstance(header, str) else json.dumps(header)
    store.write_tensors(file, tensors or {"w": torch.ones(2)}, {"tauspan": text})
    return file


# -- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["tau.safetensors", "a/directory", "run-0.5"])
def test_a_vector_survives_its_file_bit_for_bit(tmp_path, dtype, name):
    limits = torch.finfo(dtype)
    edges = torch.tensor([0.0, -0.0, limits.max, limits.min, limits.tiny, limits.smallest_normal / 2])
    deltas = {
        "edges": edges.to(dtype),
        "random": torch.randn(3, 5).to(dtype).t(),
        "scalar": torch.tensor(0.1, dtype=dtype),
        "none": torch.zeros(0, 4, dtype=dtype),
    }
    info = {
        "base_id": "org/model@main",
        "seed": 3,
        "tasks": ["a", "b"],
        "versions": {"torch": "2"},
        "note": "é",
    }
    tau = TaskVector(deltas, BASE, "linear", "my tau", info)
    back = TaskVector.from_pretrained(tau.save_pretrained(tmp_path / name))
    assert tiny.same_bits(back.deltas, tau.deltas)
    assert (back.base, back.regime, back.label, back.info) == (BASE, "linear", "my tau", info)


def test_a_path_without_the_suffix_is_a_directory(tmp_path):
    assert vector(w=[1]).save_pretrained(tmp_path / "run") == tmp_path / "run" / "vector.safetensors"
    assert TaskVector.from_pretrained(tmp_path / "run").deltas["w"].tolist() == [1]


def test_the_header_is_one_json_string_with_five_fields(tmp_path):
    file = vector(regime="linear", w=[1]).save_pretrained(tmp_path / "tau.safetensors")
    with safe_open(file, framework="pt") as handle:
        metadata = handle.metadata()
    assert metadata == {
        "tauspan": f'{{"base": "{BASE}", "format": "tauspan-vector/1", "info": {{}}, "label": "tau", '
        '"regime": "linear"}'
    }


def test_a_file_written_byte_by_byte_is_read(tmp_path):
    text = json.dumps(HEADER)
    tensors = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    header = json.dumps({"__metadata__": {"tauspan": text}, **tensors}).encode()
    file = tmp_path / "golden.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<2f", 1.5, -2.0))
    tau = TaskVector.from_pretrained(file)
    assert (tau.deltas["w"].tolist(), tau.base, tau.regime) == ([1.5, -2.0], BASE, "linear")


def test_an_existing_vector_is_kept_unless_overwrite_is_said(tmp_path):
    file = vector(w=[1]).save_pretrained(tmp_path / "tau.safetensors")
    with pytest.raises(StoreError, match="already there"):
        vector(w=[2]).save_pretrained(file)
    assert TaskVector.from_pretrained(file).deltas["w"].tolist() == [1]
    vector(w=[2]).save_pretrained(file, overwrite=True)
    assert TaskVector.from_pretrained(file).deltas["w"].tolist() == [2]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_vector_is_neither_saved_nor_read(tmp_path, value):
    with pytest.raises(NonFiniteError, match="tensor 'w' of the vector 'tau'"):
        vector(w=[1, value]).save_pretrained(tmp_path / "tau")
    assert list(tmp_path.iterdir()) == []
    file = write(tmp_path / "tau.safetensors", HEADER, {"w": torch.tensor([value])})
    with pytest.raises(NonFiniteError, match=r"tau\.safetensors"):
        TaskVector.from_pretrained(file)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("{not json", "is not JSON"),
        ("[]", "format=\\[\\]"),
        (HEADER | {"format": "tauspan-vector/2"}, "format='tauspan-vector/2'; this version reads"),
        (HEADER | {"regime": "posthoc"}, "regime='posthoc'"),
        (HEADER | {"base": 7}, "base=7"),
        (HEADER | {"info": None}, "info=None"),
        ({key: value for key, value in HEADER.items() if key != "label"}, "label=None"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(tmp_path, header, said):
    with pytest.raises(StoreError, match=said):
        TaskVector.from_pretrained(write(tmp_path / "tau.safetensors", header))


def test_weights_without_a_header_are_refused_with_the_repair(tmp_path):
    store.write_tensors(tmp_path / "model.safetensors", {"w": torch.ones(2)})
    with pytest.raises(StoreError, match="tauspan vector diff"):
        TaskVector.from_pretrained(tmp_path / "model.safetensors")


def test_a_pickle_or_nothing_is_refused(tmp_path):
    with pytest.raises(PickleRefusedError):
        TaskVector.from_pretrained(tmp_path / "tau.pt")
    with pytest.raises(PickleRefusedError):
        vector(w=[1]).save_pretrained(tmp_path / "tau.bin")
    with pytest.raises(StoreError, match="does not exist"):
        TaskVector.from_pretrained(tmp_path / "nowhere")


def test_another_file_and_a_model_are_no_vectors(tmp_path):
    (tmp_path / "notes.txt").write_text("a")
    with pytest.raises(StoreError, match=r"notes.txt is no task vector, whose file ends in .safetensors"):
        TaskVector.from_pretrained(tmp_path / "notes.txt")
    store.write_tensors(tmp_path / "model" / "model.safetensors", {"w": torch.ones(2)})
    with pytest.raises(StoreError, match=r"holds weights and no vector.safetensors.*tauspan vector diff"):
        TaskVector.from_pretrained(tmp_path / "model")


# -- made from two checkpoints -------------------------------------------------------------------------------


def forms(path, module):
    """One module in every form that `from_checkpoints` reads, with what each is called in provenance."""
    file, folder = path / "model.safetensors", path / "folder"
    store.write_tensors(file, state_of(module))
    store.write_tensors(folder / "weights.safetensors", state_of(module))
    return {"module": module, "mapping": state_of(module), "file": file, "text": str(file), "folder": folder}


def test_modules_mappings_files_and_folders_give_one_vector(tmp_path):
    base = tiny.mlp()
    first, second = forms(tmp_path / "base", base), forms(tmp_path / "tuned", tiny.moved(base, 2.0))
    expected = {name: torch.full(tensor.shape, 2.0) for name, tensor in state_of(base).items()}
    for kind, source in first.items():
        for tuned in second.values():
            tau = TaskVector.from_checkpoints(source, tuned, label=kind)
            assert equal(tau.deltas, expected)
            assert tau.base == params.fingerprint(state_of(base))
            assert (tau.regime, tau.label) == ("standard", kind)


def test_transformers_directories_encoders_and_weight_files_give_one_vector(tmp_path):
    base = tiny.bert()
    tuned = tiny.moved(base, 0.25)
    before, after = tiny.save_bert(tmp_path / "base", base), tiny.save_bert(tmp_path / "tuned", tuned)
    expected = TaskVector.from_checkpoints(base, tuned)
    assert sorted(expected.deltas) == sorted(name for name, _ in base.named_parameters())
    pairs = [
        (before, str(after)),
        (load_model(before), load_model(after)),
        (before / "model.safetensors", after / "model.safetensors"),
    ]
    for first, second in pairs:
        tau = TaskVector.from_checkpoints(first, second)
        assert equal(tau.deltas, expected.deltas)
        assert tau.base == expected.base
    back = load_model(before)
    back.backbone.load_state_dict(expected.apply(state_of(back)))
    assert TaskVector.from_checkpoints(after, back).norm() == pytest.approx(0, abs=1e-6)


def test_provenance_says_what_the_base_was(tmp_path):
    module = tiny.mlp()
    file = forms(tmp_path, module)["file"]
    assert TaskVector.from_checkpoints(module, module).info["base_id"] == "Sequential"
    assert TaskVector.from_checkpoints(file, module).info["base_id"] == str(file)
    assert {"python", "torch"} <= set(TaskVector.from_checkpoints(module, module).info["versions"])


def test_the_difference_is_formed_in_float64_and_rounded_once():
    before = {"w": torch.tensor([1.0], dtype=torch.float64), "ids": torch.arange(2)}
    after = {"w": torch.tensor([1.0 + 2.0**-40], dtype=torch.float64), "ids": torch.arange(2)}
    tau = TaskVector.from_checkpoints(before, after)
    assert tau.deltas["w"].item() == 2.0**-40
    assert list(tau.deltas) == ["w"]
    assert TaskVector.from_checkpoints(before, after, dtype=torch.float64).deltas["w"].dtype == torch.float64


def test_vectors_from_bfloat16_and_float32_copies_are_one():
    base, tuned = state_of(tiny.mlp()), state_of(tiny.moved(tiny.mlp(), 1.0))
    narrow = [{name: t.bfloat16() for name, t in side.items()} for side in (base, tuned)]
    first, second = TaskVector.from_checkpoints(base, tuned), TaskVector.from_checkpoints(*narrow)
    assert equal(first.deltas, second.deltas)
    assert first.base == second.base


@pytest.mark.parametrize("broken", ["base", "fine-tuned model"])
def test_a_checkpoint_with_nan_names_the_side(broken):
    good, bad = {"w": torch.ones(2)}, {"w": torch.tensor([1.0, math.nan])}
    sides = (bad, good) if broken == "base" else (good, bad)
    with pytest.raises(NonFiniteError, match=f"'w' of the {broken}"):
        TaskVector.from_checkpoints(*sides)


def test_checkpoints_of_two_architectures_do_not_subtract():
    with pytest.raises(MismatchError, match="the fine-tuned model lacks 1 of the base's tensors"):
        TaskVector.from_checkpoints({"w": torch.ones(2), "b": torch.ones(1)}, {"w": torch.ones(2)})


def test_making_a_vector_leaves_no_gradient_behind():
    module = tiny.mlp()
    tau = TaskVector.from_checkpoints(
        dict(module.named_parameters()), dict(tiny.moved(module).named_parameters())
    )
    assert not any(delta.requires_grad for delta in tau.deltas.values())


# -- applied to a point --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_apply_keeps_types_passes_other_tensors_on_and_takes_a_scale(dtype):
    point = {"w": torch.tensor([1, 2], dtype=dtype), "ids": torch.arange(3), "v": torch.ones(1)}
    new = vector(w=[1, 2]).rebased(params.fingerprint(point)).apply(point, 0.5)
    assert equal({"w": new["w"]}, {"w": torch.tensor([1.5, 3], dtype=dtype)})
    assert list(new) == list(point)
    assert new["ids"] is point["ids"]
    assert new["v"] is point["v"]
    assert point["w"].tolist() == [1, 2]


def test_apply_rounds_once():
    point = {"w": torch.tensor([256.0], dtype=torch.bfloat16)}
    tau = vector(params.fingerprint(point), w=[1.001])
    assert tau.apply(point)["w"].item() == 258.0  # with 1.001 rounded to bfloat16 first it would be 256


def test_apply_elsewhere_names_both_bases_and_the_way_out():
    tau = TaskVector({"w": torch.ones(2)}, BASE, "standard", info={"base_id": "org/model"})
    other = {"w": torch.zeros(2)}
    with pytest.raises(BaseMismatchError) as caught:
        tau.apply(other)
    said = (BASE[:12], params.fingerprint(other)[:12], "org/model", "rebased")
    assert all(part in str(caught.value) for part in said)
    assert tau.rebased(params.fingerprint(other)).apply(other)["w"].tolist() == [1, 1]


def test_apply_refuses_tensors_that_the_point_lacks():
    point = {"v": torch.zeros(2)}
    with pytest.raises(MismatchError, match=r"base lacks 1 of tau's tensors \(w\)"):
        vector(params.fingerprint(point), w=[1, 2]).apply(point)


def test_rebased_on_a_module_takes_its_fingerprint():
    module = tiny.mlp()
    tau = TaskVector.from_checkpoints(module, tiny.moved(module))
    assert vector(w=[1, 2]).rebased(module).base == tau.base
