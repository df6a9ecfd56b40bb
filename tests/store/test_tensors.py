"""Files: written whole or not at all, damaged ones named."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers import tiny
from tauspan import store
from tauspan.core.errors import StoreError, UsageError
from tauspan.store import Checkpoint

ONE = {"w": torch.tensor([1.0, 2.0])}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write_and_fail(path, error):
    with store.atomic(path) as temporary:
        temporary.write_text("half")
        raise error


# -- writing -------------------------------------------------------------------------------------------------


def test_an_error_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_and_fail(tmp_path / "new", ZeroDivisionError)
    assert names(tmp_path) == []


def test_an_error_while_writing_keeps_the_older_file_and_directory(tmp_path):
    store.write_text(tmp_path / "file", "old")
    store.write_text(tmp_path / "folder" / "inner", "old")
    for name in ("file", "folder"):
        with pytest.raises(KeyboardInterrupt):
            write_and_fail(tmp_path / name, KeyboardInterrupt)
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "inner").read_text() == "old"
    assert names(tmp_path) == ["file", "folder"]


def test_a_block_that_writes_nothing_keeps_the_older_directory(tmp_path):
    store.write_text(tmp_path / "folder" / "inner", "old")
    with pytest.raises(StoreError), store.atomic(tmp_path / "folder"):
        pass
    assert (tmp_path / "folder" / "inner").read_text() == "old"
    assert names(tmp_path) == ["folder"]


def test_a_directory_replaces_an_older_one_whole(tmp_path):
    store.write_text(tmp_path / "folder" / "old", "old")
    with store.atomic(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("new")
    assert names(tmp_path / "folder") == ["new"]
    assert names(tmp_path) == ["folder"]


def test_what_is_there_stays_without_overwrite(tmp_path):
    store.write_text(tmp_path / "file", "old")
    with pytest.raises(StoreError, match=r"already there.*--overwrite"):
        store.write_text(tmp_path / "file", "new", overwrite=False)
    assert (tmp_path / "file").read_text() == "old"
    store.write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"


def test_what_another_process_wrote_meanwhile_stays_without_overwrite(tmp_path):
    writer = store.atomic(tmp_path / "file", overwrite=False)
    writer.__enter__().write_text("slow")
    (tmp_path / "file").write_text("fast")
    with pytest.raises(StoreError, match="already there"):
        writer.__exit__(None, None, None)
    assert (tmp_path / "file").read_text() == "fast"
    assert names(tmp_path) == ["file"]


def test_missing_parent_directories_are_made(tmp_path):
    store.write_json(tmp_path / "a" / "b" / "c.json", {"é": 1})
    assert store.read_json(tmp_path / "a" / "b" / "c.json") == {"é": 1}


def test_files_get_the_permissions_of_a_plain_new_file(tmp_path):
    (tmp_path / "plain").touch()
    store.write_tensors(tmp_path / "w.safetensors", ONE)
    with store.atomic(tmp_path / "folder") as temporary:
        store.write_tensors(temporary / "w.safetensors", ONE)
    for path in (tmp_path / "w.safetensors", tmp_path / "folder" / "w.safetensors"):
        assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_path_below_a_regular_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(StoreError, match=r"could not be written.*Nothing was left behind"):
        store.write_tensors(tmp_path / "file" / "w.safetensors", ONE)
    assert (tmp_path / "file").read_text() == "old"


def test_a_full_disk_is_an_error_that_leaves_nothing(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root and a kernel that lets it")
    try:
        store.write_tensors(tmp_path / "w.safetensors", ONE)
        with pytest.raises(StoreError, match="No space left"):
            store.write_tensors(tmp_path / "w.safetensors", {"w": torch.ones(2**18)})
        assert torch.equal(Checkpoint(tmp_path / "w.safetensors")["w"], ONE["w"])
        assert names(tmp_path) == ["w.safetensors"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.slow
def test_a_killed_process_leaves_no_file_under_the_final_name(tmp_path):
    program = (
        "import sys, time; from tauspan import store\n"
        "with store.atomic(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half'); print('writing', flush=True); time.sleep(60)\n"
    )
    target = tmp_path / "out.safetensors"
    with subprocess.Popen([sys.executable, "-c", program, target], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not target.exists()
    (left,) = tmp_path.iterdir()
    other = left.rename(tmp_path / left.name.replace("out.", "out2."))  # of another target
    shutil.copytree(other, left)
    store.write_tensors(target, ONE)
    assert torch.equal(Checkpoint(target)["w"], ONE["w"])
    assert names(tmp_path) == sorted([other.name, target.name])


def test_what_a_living_writer_has_begun_is_left_alone(tmp_path):
    with store.atomic(tmp_path / "file") as slow:
        slow.write_text("slow")
        store.write_text(tmp_path / "file", "fast")
        assert slow.read_text() == "slow"
    assert (tmp_path / "file").read_text() == "slow"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("name", "held"),
    [
        (".file.a1b2c3.part", ()),  # made, and not locked yet
        (".file.a1b2c3.part", ("file", "file.old")),  # the old one may lie nowhere else
        (".file.txt.a1b2c3.part", ("file.txt",)),  # of another target
        ("file.a1b2c3.part", ("file",)),
        (".file.my own.part", ("file",)),
    ],
)
def test_what_may_be_someones_is_no_leftover(name, held, tmp_path):
    (tmp_path / name).mkdir()
    for inner in held:
        (tmp_path / name / inner).touch()
    store.write_text(tmp_path / "file", "new")
    assert names(tmp_path) == sorted([name, "file"])
    assert names(tmp_path / name) == sorted(held)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_only_a_folder_is_a_leftover(kind, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    left = tmp_path / ".file.a1b2c3.part"
    left.symlink_to(tmp_path / "kept") if kind == "link" else left.touch()
    store.write_text(tmp_path / "file", "new")
    assert left.exists()
    assert names(tmp_path / "kept") == ["file"]


@pytest.mark.parametrize("name", ["old", "mode"])
def test_an_output_may_have_any_name(name, tmp_path):
    for content in ("first", "second"):
        with store.atomic(tmp_path / name) as temporary:
            temporary.mkdir()
            (temporary / "file").write_text(content)
    assert (tmp_path / name / "file").read_text() == "second"


# -- tensors that are easy to get wrong ----------------------------------------------------------------------


def test_every_type_and_shape_comes_back_bit_for_bit(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "scalar": torch.tensor(-0.0),
        "empty": torch.zeros(0, 3),
        "empty too": torch.zeros(2, 0),
        "turned": base.t(),
        "strided": base[:, ::2],
        "ids": torch.arange(3),
        "flags": torch.tensor([True, False]),
        **{str(dtype): base.to(dtype) for dtype in (torch.float64, torch.bfloat16, torch.float16)},
        "grad": nn.Parameter(torch.ones(2)),
    }
    store.write_tensors(tmp_path / "w.safetensors", tensors, {"note": "é"})
    checkpoint = Checkpoint(tmp_path / "w.safetensors")
    assert tiny.same_bits(checkpoint.read(), {name: tensor.contiguous() for name, tensor in tensors.items()})
    assert checkpoint.metadata == {"note": "é"}


def test_tensors_that_share_memory_are_written_each_in_full(tmp_path):
    whole = torch.arange(6.0)
    tensors = {
        "tied": whole,
        "again": whole,
        "first": whole[:3],
        "last": whole[3:],
        "turned": whole.view(2, 3).t(),
    }
    store.write_tensors(tmp_path / "w.safetensors", tensors)
    assert tiny.equal(Checkpoint(tmp_path / "w.safetensors").read(), tensors)


@pytest.mark.parametrize("metadata", [None, {}, {"a": "b"}])
def test_no_tensors_at_all_are_still_a_file(tmp_path, metadata):
    store.write_tensors(tmp_path / "w.safetensors", {}, metadata)
    assert len(Checkpoint(tmp_path / "w.safetensors")) == 0


def test_writing_leaves_the_tensors_alone(tmp_path):
    turned = torch.arange(6.0).reshape(2, 3).t()
    store.write_tensors(tmp_path / "w.safetensors", {"w": turned})
    assert not turned.is_contiguous()


# -- damaged files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [0, 4, 8, 40, -1])
def test_a_file_cut_short_is_named_with_its_size(tmp_path, left):
    file = tmp_path / "w.safetensors"
    store.write_tensors(file, {"w": torch.ones(100)})
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(StoreError, match=rf"w\.safetensors.*{file.stat().st_size} bytes on disk.*cut short"):
        Checkpoint(file)


def with_header(header):
    return struct.pack("<Q", len(header)) + header


OVERLAP = {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 64,
        with_header(b"{not json}"),
        with_header(b'{"w": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}') + bytes(4),
        with_header(b'{"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}') + bytes(4),
        with_header(json.dumps(OVERLAP).encode()) + bytes(4),
        with_header(b"{}") + b"trailing",
    ],
    ids=["noise", "no JSON", "type", "shape", "overlap", "trailing"],
)
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(
        StoreError, match=r"w\.safetensors (is not a whole safetensors file|has the dtype 'F99')"
    ):
        Checkpoint(tmp_path / "w.safetensors")


def test_a_file_that_vanishes_after_opening_is_named(tmp_path):
    store.write_tensors(tmp_path / "w.safetensors", ONE)
    checkpoint = Checkpoint(tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").unlink()
    with pytest.raises(StoreError, match=r"w\.safetensors"):
        checkpoint["w"]


def test_an_unknown_tensor_is_an_error_that_lists_the_known_ones(tmp_path):
    store.write_tensors(tmp_path / "w.safetensors", ONE)
    with pytest.raises(StoreError, match="no tensor 'v'; it has w"):
        Checkpoint(tmp_path / "w.safetensors")["v"]


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", None])
def test_json_that_cannot_be_read_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "card.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"card\.json"):
        store.read_json(tmp_path / "card.json")


def test_a_streamed_file_holds_what_a_written_one_holds(tmp_path):
    tensors = {
        "half": torch.arange(6.0).view(2, 3).bfloat16(), "number": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4), "turned": torch.arange(6.0).view(2, 3).T,
    }  # fmt: skip
    kinds = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    written, streamed = tmp_path / "written.safetensors", tmp_path / "streamed.safetensors"
    store.write_tensors(written, tensors, {"key": "value"})
    store.stream_tensors(streamed, kinds, iter(tensors.values()), {"key": "value"})
    found = store.Checkpoint(streamed)
    assert tiny.same_bits(found.read(), store.Checkpoint(written).read())
    assert found.metadata == {"key": "value"}
    with pytest.raises(ValueError, match="shorter"):
        store.stream_tensors(streamed, kinds, [tensors["half"]])
    assert tiny.same_bits(store.Checkpoint(streamed).read(), tensors), (
        "a stream that breaks off changes nothing"
    )


# -- what is read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["model", "link", "."])
def test_an_output_that_is_or_holds_an_input_is_refused(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    store.write_text("model/weights", "kept")
    Path("link").symlink_to("model")
    with pytest.raises(UsageError, match=r"(is|holds) the input .*model.*, and nothing is written over"):
        store.require_apart(out, [None, "org/name", "model"])
    store.require_apart("model/inside", ["model"])
    store.require_apart("other", ["model", "model/weights"])
