"""What a merge reads: headers that lie, values bit for bit, sources of every kind, and what is refused."""

import gc
import json
import os
import pickle
import struct
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file, save_model

from helpers import tiny
from tauspan import store
from tauspan.core.errors import (
    MismatchError,
    ModelError,
    PickleRefusedError,
    StoreError,
    TauspanError,
    UsageError,
)
from tauspan.merge.lora.adapters import CONFIG, WEIGHTS
from tauspan.merge.sources import opening
from tauspan.merge.sources.opening import open_source
from tauspan.merge.sources.source import aliases_of
from tauspan.store import read_header
from tauspan.store.values import _OPEN, ACCESS, Values

INDEX = "model.safetensors.index.json"


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def raw(file, header, data=b"", length=None):
    """A file with any header: a JSON value, text or bytes."""
    if not isinstance(header, bytes):
        header = (header if isinstance(header, str) else json.dumps(header)).encode()
    file.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return file


def refused(tmp_path, match, *args, **more):
    file = raw(tmp_path / "w.safetensors", *args, **more)
    with pytest.raises(StoreError, match=match) as caught:
        read_header(file)
    assert str(file) in str(caught.value)


# -- headers -------------------------------------------------------------------------------------------------


def test_a_header_says_where_the_bytes_lie(tmp_path):
    file = raw(
        tmp_path / "w.safetensors",
        {
            "b": entry(shape=[1, 2], offsets=[2, 10]),
            "a": entry("BF16", [], [0, 2]),
            "__metadata__": {"k": "v"},
        },
        struct.pack("<Hff", 0x3F80, 2.0, 3.0),
    )
    header = read_header(file)
    assert list(header.tensors) == ["a", "b"]  # the order of bytes, not of JSON
    assert header.metadata == {"k": "v"}
    assert header.nbytes == file.stat().st_size
    stored = header.tensors["b"]
    assert (stored.dtype, stored.shape, stored.nbytes) == (torch.float32, torch.Size([1, 2]), 8)
    assert file.read_bytes()[stored.offset : stored.offset + 8] == struct.pack("<ff", 2.0, 3.0)


def test_the_hash_is_of_the_header_and_not_of_values(tmp_path):
    files = [raw(tmp_path / f"{n}.safetensors", {"w": entry()}, struct.pack("<ff", n, n)) for n in range(2)]
    other = raw(tmp_path / "v.safetensors", {"v": entry()}, bytes(8))
    first, second, third = (read_header(file).sha256 for file in (*files, other))
    assert first == second != third


def test_lengths_that_do_not_fit_the_file_are_refused(tmp_path):
    refused(
        tmp_path,
        r"header should have 999 bytes.*10 bytes on disk.*copy or create it again",
        b"{}",
        length=999,
    )
    refused(tmp_path, "header should have", b"{}", length=2**63)
    (tmp_path / "short.safetensors").write_bytes(b"1234")
    with pytest.raises(StoreError, match="shorter than the eight bytes"):
        read_header(tmp_path / "short.safetensors")


def test_a_header_longer_than_safetensors_allows_is_not_read(tmp_path):
    file = raw(tmp_path / "w.safetensors", b"{}", length=100_000_001)
    os.truncate(file, 200_000_000)  # sparse
    with pytest.raises(StoreError, match="header should have 100,000,001 bytes"):
        read_header(file)


@pytest.mark.parametrize(
    ("header", "match"),
    [
        (b"\xff{}", "not JSON"),
        (b"{nonsense", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"w": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[]", "not a JSON object"),
        (f'{{"w": {json.dumps(entry())}, "w": {json.dumps(entry())}}}', "'w' twice"),
        ({"__metadata__": {"a": 1}}, "__metadata__"),
        ({"__metadata__": []}, "__metadata__"),
        ({"w": 3}, "'w' has no dtype, shape and data_offsets"),
        ({"w": {"dtype": "F32", "shape": [2]}}, "'w' has no dtype, shape and data_offsets"),
        ({"w": entry("F4")}, r"'w' of .* has the dtype 'F4', which this version does not read"),
        ({"w": entry(["F32"])}, "does not read"),
        ({"w": entry(shape=[-2])}, r"'w' has shape \[-2\]"),
        ({"w": entry(shape=[2.0])}, "'w' has shape"),
        ({"w": entry(shape=[True, 2])}, "'w' has shape"),
        ({"w": entry(shape=[2**63])}, "'w' has shape"),
        ({"w": entry(shape=[1] * 65)}, "'w' has shape"),
        ({"w": entry(shape=[0, 2**62, 2**62], offsets=[0, 0])}, "'w' of shape"),
        ({"w": entry(offsets=[8])}, "data_offsets"),
        ({"w": entry(offsets=[8, 0])}, r"'w' of shape \[2\] and dtype F32 has -8 bytes"),
        ({"w": entry(shape=[3])}, r"'w' of shape \[3\] and dtype F32 has 8 bytes"),
        ({"w": entry(offsets=[8, 16])}, "'w' begins at .* leaves a gap"),
        ({"w": entry(), "v": entry(offsets=[4, 12])}, "'v' begins at .* overlaps"),
        ({"w": entry(offsets=[0, 16], shape=[4])}, "its tensors end at byte"),
        ({}, "its tensors end at byte"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, header, match):
    refused(tmp_path, match, header, bytes(8))


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"gone\.safetensors cannot be read"):
        read_header(tmp_path / "gone.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    file = tmp_path_factory.mktemp("whole") / "w.safetensors"
    save_file({"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.ones(())}, file)
    return file


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_gives_an_error_of_ours_or_a_header_that_fits(tmp_path, whole, data):
    content = bytearray(whole.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    for place, bit in data.draw(
        st.lists(st.tuples(st.integers(0, header - 1), st.integers(0, 7)), max_size=6)
    ):
        content[place] ^= 1 << bit
    file = tmp_path / "w.safetensors"
    file.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    try:
        source = open_source(file)
    except PickleRefusedError:
        assert bytes(content[:2]) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    except StoreError as error:
        message = str(error)
        assert str(file) in message
    else:
        for name, stored in source.tensors.items():
            assert source.read(name, 0, stored.shape.numel()).numel() == stored.shape.numel()


# -- values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("access", ACCESS)
@pytest.mark.parametrize("code", store.DTYPES)
def test_every_dtype_is_read_bit_for_bit(tmp_path, access, code):
    dtype = store.DTYPES[code]
    bits = torch.randint(0, 256, (60 * dtype.itemsize,), dtype=torch.uint8)
    if dtype == torch.bool:
        bits %= 2
    tensors = {"pad": torch.zeros(3, dtype=torch.uint8), "w": bits.view(dtype).view(3, 4, 5)}
    save_file(
        tensors | {"scalar": tensors["w"][0, 0, 0].clone(), "none": tensors["w"][:0].clone()},
        tmp_path / "w.safetensors",
    )
    source = open_source(tmp_path / "w.safetensors", access=access)
    with safe_open(tmp_path / "w.safetensors", "pt") as theirs:
        assert set(theirs.keys()) == set(source.tensors)
        for name in theirs.keys():  # noqa: SIM118 - no mapping
            tensor = theirs.get_tensor(name)
            stored = source.tensors[name]
            assert (stored.dtype, stored.shape) == (tensor.dtype, tensor.shape)
            read = source.read(name, 0, tensor.numel())
            assert (read.dtype, tiny.raw(read)) == (tensor.dtype, tiny.raw(tensor))
            for start, stop in ((0, 0), (7, 7), (1, 2), (13, 60)):
                if stop <= tensor.numel():
                    part = source.read(name, start, stop)
                    assert tiny.raw(part) == tiny.raw(tensor.flatten()[start:stop])
    source.close()


@pytest.mark.parametrize("access", ACCESS)
def test_tensors_that_are_not_aligned_are_read(tmp_path, access):
    header = {"a": entry("U8", [1], [0, 1]), "b": entry("F64", [2], [1, 17])}
    text = json.dumps(header).ljust(200).encode()
    source = open_source(
        raw(tmp_path / "w.safetensors", text, b"\1" + struct.pack("<dd", 2.5, -3.0)), access=access
    )
    assert source.read("b", 0, 2).tolist() == [2.5, -3.0]
    assert source.read("b", 1, 2).data_ptr() % 8 == 0


def test_a_mapped_read_copies_nothing_and_writing_to_it_leaves_the_file_alone(tmp_path):
    store.write_tensors(tmp_path / "w.safetensors", {"w": torch.arange(8.0)})
    before = (tmp_path / "w.safetensors").read_bytes()
    source = open_source(tmp_path / "w.safetensors", access="mmap")
    first, second = source.read("w", 0, 8), source.read("w", 2, 4)
    assert second.data_ptr() == first.data_ptr() + 8
    first.zero_()
    source.close()
    assert first.sum() == 0  # still mapped
    assert (tmp_path / "w.safetensors").read_bytes() == before
    assert torch.equal(source.read("w", 0, 8), torch.arange(8.0))  # opened again


@pytest.mark.parametrize("access", ACCESS)
def test_ranges_outside_and_unknown_names_are_refused(tmp_path, access):
    store.write_tensors(tmp_path / "w.safetensors", {"w": torch.ones(4)})
    source = open_source(tmp_path / "w.safetensors", access=access)
    for start, stop in ((-1, 2), (3, 2), (0, 5)):
        with pytest.raises(UsageError, match=f"entries {start} to {stop} of 'w', which has 4"):
            source.read("w", start, stop)
    with pytest.raises(StoreError, match=r"w\.safetensors has no tensor 'v'; it has w"):
        source.read("v", 0, 1)


@pytest.mark.parametrize("access", ACCESS)
def test_a_file_cut_short_after_it_was_opened_is_an_error(tmp_path, access):
    store.write_tensors(tmp_path / "w.safetensors", {"w": torch.ones(4096)})
    source = open_source(tmp_path / "w.safetensors", access=access)
    os.truncate(tmp_path / "w.safetensors", 4096)
    with pytest.raises(StoreError, match=r"w\.safetensors is not a whole .*'w'.*4096 bytes on disk"):
        source.read("w", 0, 4096)
    (tmp_path / "w.safetensors").unlink()
    source.close()
    with pytest.raises(StoreError, match=r"w\.safetensors cannot be read"):
        source.read("w", 0, 1)


@pytest.mark.parametrize("access", ACCESS)
def test_threads_read_many_files_with_few_of_them_open(tmp_path, access):
    count = 2 * _OPEN
    for n in range(count):
        store.write_tensors(tmp_path / f"{n}.safetensors", {f"w{n}": torch.full((64,), float(n))})
    weight_map = {f"w{n}": f"{n}.safetensors" for n in range(count)}
    store.write_json(tmp_path / INDEX, {"weight_map": weight_map})
    source = open_source(tmp_path, access=access)
    gc.collect()  # what counts covered lines may hold frames, and what they have open, in cycles
    before, wrong = len(os.listdir("/proc/self/fd")), []

    def work(seed):
        for step in range(3 * count):
            n = (seed * 7 + step * 5) % count
            wrong.extend([n] if bool((source.read(f"w{n}", 3, 60) != n).any()) else [])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) - before <= 2 * _OPEN
    source.close()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_unknown_access_is_refused():
    with pytest.raises(UsageError, match=r"access is 'mmpa'\. Did you mean 'mmap'"):
        Values("mmpa")


# -- sources -------------------------------------------------------------------------------------------------


def model(folder, config=None, file="model.safetensors", **tensors):
    """A directory as transformers writes it."""
    given = tensors or {"w": torch.tensor([1.0, 2.0])}
    store.write_tensors(folder / file, given, {"format": "pt"})
    if config is not None:
        store.write_json(folder / "config.json", config)
    return folder


def adapter(folder, target="layer", rows=4, columns=3):
    a = torch.arange(2.0 * columns).view(2, columns)
    b = torch.arange(2.0 * rows).view(rows, 2) - 3
    prefix = f"base_model.model.{target}.lora_"
    store.write_tensors(folder / WEIGHTS, {f"{prefix}A.weight": a, f"{prefix}B.weight": b})
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [target]}
    store.write_json(folder / CONFIG, settings)
    return folder, 2.0 * (b @ a)


def test_a_file_a_directory_and_shards_are_points(tmp_path):
    model(tmp_path / "one", {})
    model(tmp_path / "two", {}, "a.safetensors", x=torch.ones(2))
    store.write_tensors(tmp_path / "two" / "b.safetensors", {"w": torch.tensor([1.0, 2.0])})
    weight_map = {"w": "b.safetensors", "x": "a.safetensors"}
    store.write_json(tmp_path / "two" / INDEX, {"weight_map": weight_map})
    places = {"one": "one", "one/model.safetensors": "one", "two": "two", f"two/{INDEX}": "two"}
    for place, label in places.items():
        source = open_source(tmp_path / place)
        assert (source.kind, source.label, source.path) == ("point", label, tmp_path / place)
        assert source.read("w", 0, 2).tolist() == [1.0, 2.0]
    assert list(source.tensors) == ["w", "x"]  # shards in the index's order
    files = source.identity["files"]
    assert [file["name"] for file in files] == ["b.safetensors", "a.safetensors"]
    assert files[0]["bytes"] == (tmp_path / "two" / "b.safetensors").stat().st_size
    assert json.loads(json.dumps(source.identity)) == source.identity
    assert open_source(tmp_path / "two" / "b.safetensors", label="mine").label == "mine"
    assert open_source(tmp_path / "two" / "b.safetensors").label == "b"


def test_vectors_are_deltas_with_their_base_and_regime(tmp_path):
    vector = tiny.vector(regime="linear", label="task", w=[1, 2])
    vector.save_pretrained(tmp_path / "folder")
    vector.save_pretrained(tmp_path / "file.safetensors")
    store.write_tensors(tmp_path / "folder" / "checkpoint.txt", {"w": torch.ones(1)})
    for place in ("folder", "file.safetensors", "folder/vector.safetensors"):
        source = open_source(tmp_path / place)
        assert (source.kind, source.label) == ("delta", "task")
        assert (source.identity["base"], source.identity["regime"]) == (tiny.BASE, "linear")
        assert source.read("w", 0, 2).tolist() == [1.0, 2.0]


def test_a_model_beside_a_vector_is_the_model(tmp_path):
    tiny.vector(w=[1, 2]).save_pretrained(model(tmp_path / "m", {}) / "vector.safetensors")
    assert open_source(tmp_path / "m").kind == "point"


def test_another_file_of_ours_is_not_taken_for_a_model(tmp_path):
    store.write_tensors(
        tmp_path / "c.safetensors",
        {"value": torch.ones(1)},
        {"tauspan": '{"format": "tauspan-contributions/1"}'},
    )
    with pytest.raises(StoreError, match="format='tauspan-contributions/1'"):
        open_source(tmp_path / "c.safetensors")


def test_the_packaged_model_opens_by_its_name():
    source = open_source("minilm")
    assert (source.label, source.kind, len(source.tensors)) == ("minilm", "point", 104)


def test_ids_go_to_the_hub_and_the_commit_is_noted(tmp_path, monkeypatch):
    snapshot = model(tmp_path / "snapshots" / "c0ffee", {})
    monkeypatch.setattr(opening, "model_directory", {"org/name@main": snapshot}.__getitem__)
    source = open_source("org/name@main")
    assert (source.label, source.identity["commit"]) == ("name", "c0ffee")
    assert source.identity["path"] == "org/name@main"


def test_a_name_that_is_nothing_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no model .*nowhere"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(StoreError, match=r"nowhere\.safetensors does not exist"):
        open_source(tmp_path / "nowhere.safetensors")


def test_an_adapter_is_a_delta_and_is_added_to_a_model_unrounded(tmp_path):
    folder, delta = adapter(tmp_path / "lora")
    weight = tiny.whole((4, 3), 0).bfloat16()
    model(tmp_path / "m", {}, **{"layer.weight": weight, "layer.bias": torch.ones(4)})
    assert open_source(folder).kind == "delta"
    source = open_source(f"{tmp_path / 'm'}+{folder}")
    assert (source.kind, source.label, source.path) == ("point", "m+lora", tmp_path / "m")
    assert set(source.tensors) == {"layer.bias", "layer.weight"}
    read = source.read("layer.weight", 2, 11)
    assert read.dtype == torch.float32
    assert torch.equal(read, (weight.float() + delta).flatten()[2:11])
    assert torch.equal(source.read("layer.bias", 1, 3), torch.ones(2))
    assert source.identity["path"] == f"{tmp_path / 'm'}+{folder}"
    assert source.tensors["layer.weight"].dtype == torch.bfloat16
    source.close()


def test_a_directory_with_a_plus_in_its_name_is_a_directory(tmp_path):
    assert open_source(model(tmp_path / "a+b", {})).label == "a+b"


def test_sums_of_other_things_are_refused(tmp_path):
    folder, _ = adapter(tmp_path / "lora")
    model(tmp_path / "m", {}, **{"layer.weight": torch.ones(4, 4)})
    with pytest.raises(UsageError, match=r"is a delta \+ a point .* must be MODEL\+ADAPTER"):
        open_source(f"{folder}+{tmp_path / 'm'}")
    with pytest.raises(
        MismatchError, match=r"lora changes 'layer.weight', shape \(4, 3\), which has shape \(4, 4\)"
    ):
        open_source(f"{tmp_path / 'm'}+{folder}")
    model(tmp_path / "other", {})
    with pytest.raises(MismatchError, match=r"which is not there in .*other"):
        open_source(f"{tmp_path / 'other'}+{folder}")


# -- refusals ------------------------------------------------------------------------------------------------


def test_pickles_are_refused(tmp_path):
    (tmp_path / "w.bin").write_bytes(b"")
    (tmp_path / "w.safetensors").write_bytes(pickle.dumps([1] * 100, 4))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"")
    for name in ("w.bin", "w.safetensors", "m"):
        with pytest.raises(PickleRefusedError, match="is a pickle"):
            open_source(tmp_path / name)


def test_a_pickled_shard_is_refused(tmp_path):
    store.write_json(tmp_path / INDEX, {"weight_map": {"w": "w.bin"}})
    torch.save({"w": torch.ones(1)}, tmp_path / "w.bin")
    with pytest.raises(PickleRefusedError, match=r"w\.bin is a pickle"):
        open_source(tmp_path)


@pytest.mark.parametrize("name", ["m/w.gguf", "m/w.safetensors", "m"])
def test_gguf_is_refused_with_the_repair(tmp_path, name):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "w.gguf").write_bytes(b"GGUF\3\0\0\0")
    if name.endswith("safetensors"):
        (tmp_path / name).write_bytes(b"GGUF\3\0\0\0" + bytes(100))
    with pytest.raises(ModelError, match=r"w\.\w+ is a GGUF file.*gguf_file=name"):
        open_source(tmp_path / name)


def test_a_quantised_configuration_is_refused(tmp_path):
    folder = model(tmp_path / "a", {"quantization_config": {"quant_method": "gptq"}}, **{
        "a.qweight": torch.ones(2, 2, dtype=torch.int32)
    })  # fmt: skip
    with pytest.raises(ModelError, match=r"quantised: config.json has .*\(gptq\).*dequantize\(\)"):
        open_source(folder)
    eight = model(tmp_path / "b", {"quantization_config": {"quant_method": "fp8"}}, **{
        "a.weight": torch.ones(2, 2).to(torch.float8_e4m3fn)
    })  # fmt: skip
    with pytest.raises(ModelError, match=r"quantised: config.json has .*\(fp8\)"):
        open_source(eight)


def test_a_configuration_left_over_from_training_is_no_quantisation(tmp_path):
    folder = model(
        tmp_path / "a", {"quantization_config": {"quant_method": "bitsandbytes"}}, w=torch.ones(2, 2)
    )
    assert list(open_source(folder).tensors) == ["w"]


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("a.weight_scale", torch.ones(1)),
        ("a.weight_scale_inv", torch.ones(1)),
        ("a.SCB", torch.ones(1)),
        ("a.qweight", torch.ones(2, dtype=torch.int32)),
        ("a.weight.absmax", torch.ones(1)),
        ("a.weight.quant_state.bitsandbytes__nf4", torch.ones(1, dtype=torch.uint8)),
        ("a.weight", torch.ones(2, 2, dtype=torch.int8)),
    ],
)
def test_quantised_weights_are_refused_by_name(tmp_path, name, tensor):
    file = tmp_path / "w.safetensors"
    store.write_tensors(file, {"ok": torch.ones(1), name: tensor})
    with pytest.raises(ModelError) as caught:
        open_source(file)
    assert all(part in str(caught.value) for part in (str(file), repr(name), "dequantise"))


def test_integers_that_are_no_weights_are_read(tmp_path):
    buffers = {"position_ids": torch.arange(4)[None], "counts": torch.ones(2, 2, dtype=torch.int8)}
    store.write_tensors(tmp_path / "w.safetensors", buffers)
    assert open_source(tmp_path / "w.safetensors").read("counts", 0, 4).dtype == torch.int8


def test_a_configuration_that_is_no_object_is_refused(tmp_path):
    with pytest.raises(StoreError, match=r"config\.json is not a JSON object"):
        open_source(model(tmp_path, [1]))


def test_shards_with_an_index_that_lies_are_refused(tmp_path):
    model(tmp_path, {}, "a.safetensors")
    cases = {"../a.safetensors": "own directory", "b.safetensors": "not there", "a.safetensors": "holds v"}
    for shard, match in cases.items():
        store.write_json(tmp_path / INDEX, {"weight_map": {"w": "a.safetensors", "v": shard}})
        with pytest.raises(StoreError, match=match):
            open_source(tmp_path)


# -- ties ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "tied"),
    [
        ("model.embed_tokens.weight", ["lm_head.weight"]),
        ("model.decoder.embed_tokens.weight", ["lm_head.weight"]),
        ("transformer.wte.weight", ["lm_head.weight"]),
        ("transformer.word_embeddings.weight", ["lm_head.weight"]),
        ("bert.embeddings.word_embeddings.weight", ["cls.predictions.decoder.weight"]),
        ("roberta.embeddings.word_embeddings.weight", ["lm_head.decoder.weight"]),
        ("shared.weight", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"]),
        ("language_model.model.embed_tokens.weight", ["language_model.lm_head.weight", "lm_head.weight"]),
        ("embeddings.word_embeddings.weight", []),
    ],
)
def test_usual_ties_are_known_from_the_configuration(tmp_path, stored, tied):
    model(tmp_path, {"tie_word_embeddings": True}, **{stored: torch.arange(6.0)})
    source = open_source(tmp_path)
    assert source.aliases == dict.fromkeys(tied, stored)
    for name in tied:
        assert source.read(name, 2, 4).tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    ("config", "ties"),
    [
        ({}, False),  # no configuration: nothing is known
        ({"model_type": "x"}, True),  # transformers ties unless told otherwise
        ({"tie_word_embeddings": False}, False),
        ({"text_config": {"tie_word_embeddings": False}}, False),
        ({"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": False}}, True),
    ],
)
def test_ties_are_assumed_only_where_the_configuration_allows(config, ties):
    stored = {"model.embed_tokens.weight": None}
    assert bool(aliases_of(stored, {}, config)) == ties
    assert aliases_of(stored | {"lm_head.weight": None}, {}, config) == {}


def test_names_that_safetensors_dropped_are_known(tmp_path):
    module = tiny.mlp()
    module.extra = module[0]
    save_model(module, str(tmp_path / "m.safetensors"))
    source = open_source(tmp_path / "m.safetensors")
    assert len(source.aliases) == 2
    for name, kept in source.aliases.items():
        assert name not in source.tensors
        assert torch.equal(source.read(name, 0, 3), source.read(kept, 0, 3))


def test_every_error_of_opening_is_ours(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "e.safetensors").write_bytes(b"")
    for name in ("d", "e.safetensors", "x.index.json"):
        with pytest.raises(TauspanError, match=str(Path(name).stem)):
            open_source(tmp_path / name)
