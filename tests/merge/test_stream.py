"""The stream: the same numbers as in memory, the same bytes for any cut and any threads, files that others read."""

import json
import re

import pytest
import torch
from safetensors import safe_open

from helpers import merging, tiny
from tauspan.core.errors import MismatchError, NonFiniteError, StoreError, UsageError
from tauspan.merge import METHODS, Method, merge
from tauspan.merge.stream.stream import execute
from tauspan.store import Checkpoint, write_tensors
from tauspan.vector import TaskVector

WIDE = torch.float64
PLAIN = [
    method
    for method in METHODS.values()
    if set(method.needs) <= {"base"} and (method.most or 3) >= method.fewest
]


def run(recipe, out, block=16, workers=2, access="mmap", **options):
    return execute(merging.plan(recipe, block, workers, access), out, **options)


def required(method):
    """Options without a default, and few steps where a method iterates."""
    empty = [option for option in method.options if option.default is None and not option.choices]
    given: dict[str, float] = {option.name: max(0.5, option.low or 0) for option in empty}
    return given | {option.name: 3 for option in method.options if option.name in ("steps", "iterations")}


# -- the same as in memory -----------------------------------------------------------------------------------


@pytest.mark.thinned(9)
@pytest.mark.parametrize("method", PLAIN, ids=lambda method: method.name)
def test_the_stream_is_the_merge_in_memory(method, tmp_path):
    paths = merging.checkpoints(tmp_path, min(3, method.most or 3), WIDE)
    base = Checkpoint(paths[0]).read()
    vectors = [TaskVector.from_checkpoints(paths[0], path, label=path.stem, dtype=WIDE) for path in paths[1:]]
    wanted = merge(vectors, method, required(method), base=base)
    recipe = merging.recipe(
        paths, method, required(method), dtype="float64", out_dtype="float64", output="vector"
    )
    run(recipe, tmp_path / "v.safetensors", block=7)
    got = TaskVector.from_pretrained(tmp_path / "v.safetensors")
    assert list(got.deltas) == list(wanted.deltas)
    for name, delta in wanted.deltas.items():
        torch.testing.assert_close(got.deltas[name], delta, rtol=1e-9, atol=1e-9)
    assert (got.base, got.regime) == (wanted.base, "standard")


@pytest.mark.thinned(12)
@pytest.mark.parametrize("method", PLAIN, ids=lambda method: method.name)
def test_bytes_do_not_depend_on_threads_cut_or_access(method, tmp_path):
    paths = merging.checkpoints(tmp_path, min(3, method.most or 3), torch.bfloat16)
    seen = set()
    for number, (block, workers, access) in enumerate(
        ((1 << 18, 1, "mmap"), (5, 3, "pread"), (16, 2, "mmap"))
    ):
        out = tmp_path / str(number)
        run(merging.recipe(paths, method, required(method)), out, block, workers, access)
        seen.add(merging.sha(out))
    assert len(seen) == 1


def test_the_digest_does_not_depend_on_threads_or_access(tmp_path):
    paths = merging.checkpoints(tmp_path)
    reports = [
        run(merging.recipe(paths), tmp_path / access, workers=workers, access=access)
        for access, workers in (("mmap", 1), ("pread", 4))
    ]
    assert len({report.digest for report in reports}) == 1
    run(merging.recipe(paths, options={"scale": 0.5}), tmp_path / "other")
    assert merging.sha(tmp_path / "other") != merging.sha(tmp_path / "mmap")


# -- identities ----------------------------------------------------------------------------------------------

STORED = [torch.float32, torch.bfloat16, torch.float16]


def rough(folder, dtype):
    """Models whose differences are not exact in float32: magnitudes from 1e-30 (float16: 1e-7) to 1e4."""
    paths, spread = [], (-7, 4) if dtype == torch.float16 else (-30, 4)
    for name in ("base", "m1", "m2"):
        power = torch.rand(1000) * (spread[1] - spread[0]) + spread[0]
        paths.append(folder / f"{name}.safetensors")
        write_tensors(paths[-1], {"w": (torch.randn(1000).sign() * 10**power).to(dtype)})
    return paths


@pytest.mark.parametrize("dtype", STORED)
def test_one_model_at_weight_one_is_the_model_bit_for_bit(dtype, tmp_path):
    paths = rough(tmp_path, dtype)[:2]
    run(merging.recipe(paths), tmp_path / "out")
    base, model = (Checkpoint(path)["w"] for path in paths)
    assert tiny.same_bits(merging.read(tmp_path / "out"), {"w": model})
    summed = (base.float() + (model.float() - base.float())).to(dtype)
    assert dtype == torch.float16 or not torch.equal(summed, model)  # it is not so by itself


@pytest.mark.parametrize("dtype", STORED)
def test_weights_one_and_zero_choose_a_model_bit_for_bit(dtype, tmp_path):
    for name in ("base", "m1", "m2"):
        write_tensors(tmp_path / f"{name}.safetensors", {"w": torch.randn(1000).to(dtype)})
    paths = [tmp_path / f"{name}.safetensors" for name in ("base", "m1", "m2")]
    run(merging.recipe(paths, options={"weight": [0.0, 1.0]}), tmp_path / "out")
    assert tiny.same_bits(merging.read(tmp_path / "out"), Checkpoint(paths[2]).read())


@pytest.mark.parametrize("dtype", STORED)
def test_weight_zero_is_the_base_bit_for_bit(dtype, tmp_path):
    paths = rough(tmp_path, dtype)
    zeros = {"w": torch.tensor([-0.0, 0.0, -0.0, 1.0]).to(dtype)}
    write_tensors(paths[0], zeros)
    for path in paths[1:]:
        write_tensors(path, {"w": torch.tensor([0.0, -0.0, 3.0, 2.0]).to(dtype)})
    run(merging.recipe(paths, options={"weight": 0.0}), tmp_path / "out")
    assert tiny.same_bits(merging.read(tmp_path / "out"), zeros)


def test_stochastic_rounding_keeps_what_did_not_move(tmp_path):
    paths = rough(tmp_path, torch.float32)
    recipe = merging.recipe(paths, options={"weight": 0.0}, out_dtype="bfloat16", rounding="stochastic")
    run(recipe, tmp_path / "out")
    assert torch.equal(merging.read(tmp_path / "out")["w"], Checkpoint(paths[0])["w"].bfloat16())


def test_a_vector_at_weight_one_moves_the_base_onto_the_model(tmp_path):
    paths = merging.checkpoints(tmp_path, 1)
    TaskVector.from_checkpoints(paths[0], paths[1], label="v").save_pretrained(tmp_path / "v.safetensors")
    run(merging.recipe([paths[0], tmp_path / "v.safetensors"]), tmp_path / "out")
    assert tiny.equal(merging.read(tmp_path / "out"), Checkpoint(paths[1]).read())


def test_what_a_vector_does_not_hold_stays_the_base(tmp_path):
    paths = merging.checkpoints(tmp_path, 1)
    vector = TaskVector.from_checkpoints(paths[0], paths[1])
    one = TaskVector({"h.0.w": vector.deltas["h.0.w"]}, vector.base, "standard")
    one.save_pretrained(tmp_path / "v.safetensors")
    report = run(merging.recipe([paths[0], tmp_path / "v.safetensors"]), tmp_path / "out")
    wanted = Checkpoint(paths[0]).read() | {"h.0.w": Checkpoint(paths[1])["h.0.w"]}
    assert tiny.same_bits(merging.read(tmp_path / "out"), wanted)
    assert {one.name for one in report.tensors if one.account.changed} == {"h.0.w"}


# -- files ---------------------------------------------------------------------------------------------------


def test_one_file_or_shards_hold_the_same(tmp_path):
    paths = merging.checkpoints(tmp_path, ids=torch.arange(5), flags=torch.tensor([True, False]))
    run(merging.recipe(paths), tmp_path / "one")
    run(merging.recipe(paths, shard_size="0.2KB"), tmp_path / "many")
    assert [file.name for file in (tmp_path / "one").iterdir()] == ["model.safetensors"]
    names = sorted(file.name for file in (tmp_path / "many").iterdir())
    assert names[-1] == "model.safetensors.index.json"
    assert all(
        re.fullmatch(rf"model-0000\d-of-0000{len(names) - 1}\.safetensors", name) for name in names[:-1]
    )
    assert tiny.same_bits(merging.read(tmp_path / "one"), merging.read(tmp_path / "many"))
    tensors = merging.read(tmp_path / "one")
    index = json.loads((tmp_path / "many" / names[-1]).read_text())
    assert index["metadata"] == {
        "total_parameters": sum(tensor.numel() for tensor in tensors.values()),
        "total_size": sum(tensor.nbytes for tensor in tensors.values()),
    }
    assert list(tensors) == list(Checkpoint(paths[0]))
    for name in names[:-1]:
        with safe_open(tmp_path / "many" / name, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            assert sum(file.get_tensor(key).nbytes for key in file.keys()) <= 264  # noqa: SIM118 - largest tensor


def test_transformers_loads_the_result(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    paths = []
    for name in ("base", "a", "b"):
        transformers.BertModel(config).save_pretrained(tmp_path / name)
        paths.append(tmp_path / name)
    run(merging.recipe(paths, options={"weight": [0.25, 0.5]}, shard_size="2KB"), tmp_path / "out", block=100)
    config.save_pretrained(tmp_path / "out")
    states = [
        transformers.BertModel.from_pretrained(path).state_dict() for path in (*paths, tmp_path / "out")
    ]
    for name, base in states[0].items():
        wanted = base.double() + sum(
            w * (s[name].double() - base.double()) for w, s in zip((0.25, 0.5), states[1:3], strict=True)
        )
        torch.testing.assert_close(states[3][name].double(), wanted, rtol=1e-6, atol=1e-7)


def test_the_base_decides_order_names_and_dtypes(tmp_path):
    base = {"b": torch.ones(2, dtype=torch.float16), "a": torch.ones(3), "e": torch.zeros(0, 3)}
    model = {"a": torch.full((3,), 2.0), "e": torch.zeros(0, 3), "b": torch.full((2,), 3.0)}
    write_tensors(tmp_path / "base.safetensors", base)
    write_tensors(tmp_path / "m.safetensors", model)
    run(merging.recipe([tmp_path / "base.safetensors", tmp_path / "m.safetensors"]), tmp_path / "out")
    got = merging.read(tmp_path / "out")
    assert list(got) == list(Checkpoint(tmp_path / "base.safetensors"))
    assert {name: tensor.dtype for name, tensor in got.items()} == {n: t.dtype for n, t in base.items()}
    assert torch.equal(got["a"], model["a"])


def test_out_dtype_is_of_floating_point_tensors(tmp_path):
    paths = merging.checkpoints(tmp_path, ids=torch.arange(5))
    report = run(merging.recipe(paths, options={"scale": 0.01}, out_dtype="bfloat16"), tmp_path / "out")
    assert {tensor.dtype for tensor in merging.read(tmp_path / "out").values()} == {
        torch.bfloat16,
        torch.int64,
    }
    assert 0 < report.loss < 1
    assert 0 < report.swallowed < 1


# -- errors --------------------------------------------------------------------------------------------------


def left(folder):
    return [file.name for file in folder.iterdir() if file.name.startswith((".", "out"))]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 2])
def test_a_value_that_is_not_finite_is_named_and_nothing_is_left(bad, place, tmp_path):
    paths = merging.checkpoints(tmp_path)
    tensors = Checkpoint(paths[place]).read()
    tensors["h.1.w"][4, 2] = bad
    write_tensors(paths[place], tensors)
    with pytest.raises(
        NonFiniteError,
        match=rf"'h\.1\.w' of '{paths[place].stem}' holds {bad} at entry 30 .*{paths[place].name}",
    ):
        run(merging.recipe(paths), tmp_path / "out")
    assert left(tmp_path) == []


def test_a_method_that_drops_what_it_compares_does_not_hide_nan(tmp_path):
    paths = merging.checkpoints(tmp_path)
    tensors = Checkpoint(paths[1]).read()
    tensors["h.0.b"][0] = float("nan")
    write_tensors(paths[1], tensors)
    zero = Method("zero", "", "", "0", lambda block, _: torch.zeros_like(block.values[0]))
    with pytest.raises(NonFiniteError, match="'m1'"):
        run(merging.recipe(paths, zero), tmp_path / "out")


def test_overflow_of_the_output_dtype_says_so(tmp_path):
    paths = merging.checkpoints(tmp_path)
    with pytest.raises(NonFiniteError, match=r"not finite in float16 .*ends at 65504.*bfloat16"):
        run(merging.recipe(paths, options={"scale": 1e7}, out_dtype="float16"), tmp_path / "out")
    run(
        merging.recipe(paths, options={"scale": 1e25}), tmp_path / "out"
    )  # its square overflows, and it does not


def test_integers_that_differ_are_named(tmp_path):
    paths = merging.checkpoints(tmp_path, ids=torch.arange(100_000))
    write_tensors(paths[2], Checkpoint(paths[2]).read() | {"ids": torch.arange(100_000).flip(0)})
    with pytest.raises(MismatchError, match=r"'ids'.*m2"):
        run(merging.recipe(paths), tmp_path / "out")
    assert left(tmp_path) == []


def test_what_is_there_stays_without_overwrite(tmp_path):
    paths = merging.checkpoints(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(StoreError, match="already there"):
        run(merging.recipe(paths), tmp_path / "out")
    assert (tmp_path / "out" / "mine").exists()
    run(merging.recipe(paths), tmp_path / "out", overwrite=True)
    assert left(tmp_path) == ["out"]
    assert not (tmp_path / "out" / "mine").exists()


def test_a_model_is_no_file(tmp_path):
    with pytest.raises(UsageError, match=r"out\.safetensors names a file"):
        run(merging.recipe(merging.checkpoints(tmp_path)), tmp_path / "out.safetensors")


def test_a_path_below_a_regular_file_cannot_be_written(tmp_path):
    paths = merging.checkpoints(tmp_path)
    with pytest.raises(StoreError, match=r"out could not be written"):
        run(merging.recipe(paths), paths[0] / "out")


def test_what_fails_at_the_end_can_go_on(tmp_path):
    paths, calls = merging.checkpoints(tmp_path), []

    def finish(folder, report):
        calls.append(report.resumed)
        (folder / "config.json").write_text("{}")
        if len(calls) == 1:
            raise StoreError("no tokenizer")

    with pytest.raises(StoreError, match="no tokenizer"):
        run(merging.recipe(paths), tmp_path / "out", finish=finish)
    assert left(tmp_path) == [".out.merging"]
    run(merging.recipe(paths), tmp_path / "out", finish=finish, resume=True)
    assert calls == [0, len(merging.SHAPES)]
    assert left(tmp_path) == ["out"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]


def test_points_without_a_base_are_no_displacements(tmp_path):
    recipe = merging.recipe(merging.checkpoints(tmp_path), based=False)
    with pytest.raises(UsageError, match=r"'task_arithmetic'.*`base_model`"):
        merging.plan(recipe)


def test_displacements_without_a_base_make_a_vector_and_no_model(tmp_path):
    a, b = (tiny.vector(label=name, w=[1.0, 2.0]) for name in "ab")
    for vector in (a, b):
        vector.save_pretrained(tmp_path / f"{vector.label}.safetensors")
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    run(merging.recipe(paths, based=False, output="vector"), tmp_path / "sum")
    got = TaskVector.from_pretrained(tmp_path / "sum")
    assert (got.base, got.deltas["w"].tolist()) == (tiny.BASE, [2.0, 4.0])
    with pytest.raises(UsageError, match="make no model"):
        merging.plan(merging.recipe(paths, based=False))


# -- the plan ------------------------------------------------------------------------------------------------


def test_the_plan_says_what_will_be_written(tmp_path):
    paths = merging.checkpoints(tmp_path, ids=torch.arange(5))
    made = merging.plan(merging.recipe(paths, shard_size="0.2KB"), workers=2)
    run(merging.recipe(paths, shard_size="0.2KB"), tmp_path / "out")
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [(shard.file, shard.nbytes) for shard in made.layout.shards] == [
        (file.name, file.stat().st_size) for file in shards
    ]
    assert made.bytes_read == sum(
        tensor.nbytes for path in paths for tensor in Checkpoint(path).read().values()
    )
    report = made.report()
    assert report.result["tensors copied"] == 1
    assert "model-00001-of-" in report.to_markdown()


def test_memory_of_the_plan_grows_with_blocks_and_not_with_tensors(tmp_path):
    paths = merging.checkpoints(tmp_path)
    entry = [merging.plan(merging.recipe(paths), block=block, workers=2).block_bytes for block in (8, 16)]
    temporaries = METHODS["task_arithmetic"].temporaries
    assert entry[1] - entry[0] == 2 * 8 * (3 + 2 + temporaries) * 4
    whole = Method("own", "", "", "", lambda block, _: block.values[0], grain="tensor")
    assert merging.plan(merging.recipe(paths, whole), block=8, workers=2).entries == 66


def test_the_key_tells_plans_apart_and_is_the_same_again(tmp_path):
    paths = merging.checkpoints(tmp_path)
    keys = [merging.plan(merging.recipe(paths)).key for _ in range(2)]
    keys += [
        merging.plan(merging.recipe(paths, options={"scale": 0.5})).key,
        merging.plan(merging.recipe(paths, seed=1)).key,
    ]
    keys += [merging.plan(merging.recipe(paths), block=8).key, merging.plan(merging.recipe(paths[:3])).key]
    assert keys[0] == keys[1]
    assert len(set(keys)) == len(keys) - 1
