"""Reading checkpoints: pickles refused, directories that hold too little or too much, shards."""

import json
import pickle
import struct

import pytest
import torch

from tauspan import store
from tauspan.core.errors import PickleRefusedError, StoreError
from tauspan.store import Checkpoint

ONE = {"w": torch.tensor([1.0, 2.0])}
INDEX = "model.safetensors.index.json"


def shards(folder, files, **lies):
    """A directory of shards, `{file name: tensors}`, with its index; `lies` are added to the weight map."""
    for name, tensors in files.items():
        store.write_tensors(folder / name, tensors)
    told = {tensor: name for name, tensors in files.items() for tensor in tensors}
    store.write_json(folder / INDEX, {"weight_map": told | lies})
    return folder


# -- pickles -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".PTH", ".ckpt", ".pkl", ".pickle", ".mar"])
def test_a_pickle_is_known_by_its_suffix(tmp_path, suffix):
    (tmp_path / f"weights{suffix}").write_bytes(b"anything")
    with pytest.raises(PickleRefusedError, match=r"can run any code.*save_pretrained"):
        Checkpoint(tmp_path / f"weights{suffix}")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_known_by_its_first_bytes(tmp_path, protocol):
    (tmp_path / "w.safetensors").write_bytes(pickle.dumps({"w": [1.0] * 100}, protocol))
    with pytest.raises(PickleRefusedError, match=r"w\.safetensors is a pickle"):
        Checkpoint(tmp_path / "w.safetensors")


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_is_known_by_its_first_bytes(tmp_path, zipped):
    torch.save(ONE, tmp_path / "w.safetensors", _use_new_zipfile_serialization=zipped)
    with pytest.raises(PickleRefusedError):
        Checkpoint(tmp_path / "w.safetensors")


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x0580])
def test_a_header_whose_length_is_spelt_like_a_pickle_is_read(tmp_path, length):
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).ljust(length).encode()
    file = tmp_path / "w.safetensors"
    file.write_bytes(struct.pack("<Q", length) + header + struct.pack("<f", 3.0))
    assert file.read_bytes()[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    assert Checkpoint(file)["w"].tolist() == [3.0]


# -- directories ---------------------------------------------------------------------------------------------


def test_the_only_weight_file_of_a_directory_is_read(tmp_path):
    store.write_tensors(tmp_path / "model.safetensors", ONE)
    store.write_tensors(tmp_path / "vector.safetensors", {"tau": torch.ones(1)})
    (tmp_path / "pytorch_model.bin").write_bytes(b"left over")
    checkpoint = Checkpoint(tmp_path)
    assert (list(checkpoint), len(checkpoint), "w" in checkpoint, "tau" in checkpoint) == (
        ["w"],
        1,
        True,
        False,
    )
    assert torch.equal(checkpoint["w"], ONE["w"])


def test_a_directory_without_weights_says_what_it_holds(tmp_path):
    with pytest.raises(StoreError, match=r"holds no \.safetensors weights; found nothing"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(StoreError, match=r"found config\.json"):
        Checkpoint(tmp_path)


def test_a_directory_with_only_a_pickle_is_refused_with_the_repair(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(PickleRefusedError, match=r"pytorch_model\.bin is a pickle.*Convert it"):
        Checkpoint(tmp_path)


def test_several_weight_files_without_an_index_are_ambiguous(tmp_path):
    for name in ("a", "b"):
        store.write_tensors(tmp_path / f"{name}.safetensors", ONE)
    with pytest.raises(
        StoreError, match=r"several weight files and no index \(a.safetensors, b.safetensors\)"
    ):
        Checkpoint(tmp_path)


def test_several_indexes_are_ambiguous(tmp_path):
    for name in ("other", "model.fp16"):
        store.write_json(
            tmp_path / f"{name}.safetensors.index.json", {"weight_map": {"w": "one.safetensors"}}
        )
    with pytest.raises(StoreError, match="several indexes"):
        Checkpoint(tmp_path)


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"nowhere\.safetensors does not exist"):
        Checkpoint(tmp_path / "nowhere.safetensors")


# -- shards --------------------------------------------------------------------------------------------------

TWO = {"one.safetensors": {"a": torch.ones(2)}, "two.safetensors": {"b": torch.zeros(3), "c": torch.ones(())}}


@pytest.mark.parametrize("by", ["directory", "index"])
def test_shards_are_read_as_one(tmp_path, by):
    shards(tmp_path, TWO)
    store.write_tensors(tmp_path / "consolidated.safetensors", ONE)
    checkpoint = Checkpoint(tmp_path if by == "directory" else tmp_path / INDEX)
    assert list(checkpoint.read()) == list(checkpoint) == ["a", "b", "c"]
    assert torch.equal(checkpoint["b"], torch.zeros(3))


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/one.safetensors", ".."])
def test_an_index_that_points_elsewhere_is_refused(tmp_path, name):
    store.write_tensors(tmp_path / "secret.safetensors", ONE)
    store.write_tensors(tmp_path / "model" / "sub" / "one.safetensors", ONE)
    with pytest.raises(StoreError, match=r"index's own directory|not there"):
        Checkpoint(shards(tmp_path / "model", TWO, w=name))


def test_a_missing_shard_is_named(tmp_path):
    shards(tmp_path, TWO)
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(StoreError, match=r"names the shard 'two\.safetensors', which is not there"):
        Checkpoint(tmp_path)


def test_a_tensor_that_its_shard_lacks_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"'two\.safetensors' holds lost, and it does not"):
        Checkpoint(shards(tmp_path, TWO, lost="two.safetensors"))


def test_a_tensor_in_two_shards_names_both(tmp_path):
    both = {"one.safetensors": ONE | {"u": torch.ones(1)}, "two.safetensors": ONE | {"v": torch.ones(1)}}
    with pytest.raises(StoreError, match=r"'w' stands in .*two\.safetensors and again in .*one\.safetensors"):
        Checkpoint(shards(tmp_path, both))


def test_a_damaged_shard_is_named(tmp_path):
    shards(tmp_path, TWO)
    (tmp_path / "two.safetensors").write_bytes(b"short")
    with pytest.raises(StoreError, match=r"two\.safetensors is not a whole safetensors file"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("content", [{}, [], {"weight_map": ["a"]}, {"weight_map": {}}])
def test_an_index_without_a_weight_map_is_refused(tmp_path, content):
    store.write_json(tmp_path / INDEX, content)
    with pytest.raises(StoreError, match="no `weight_map`"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    "content", [b"{", b"\xff", b"[" * 100_000, b"9" * 5000], ids=["cut", "bytes", "deep", "long"]
)
def test_an_index_that_is_not_json_is_named(tmp_path, content):
    (tmp_path / INDEX).write_bytes(content)
    with pytest.raises(StoreError, match=r"index\.json cannot be read as JSON"):
        Checkpoint(tmp_path)
