"""accelerate itself: what it saves in shards is read whole, its hooks change no number, what it offloads is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import tauspan
from helpers import checkpoints, families, zoo
from tauspan import store
from tauspan.core.errors import ModelError, PickleRefusedError, TauspanError
from tauspan.models import Encoder, fingerprint_of
from tauspan.models.extras import quiet
from tauspan.tasks import Task
from tauspan.train import Settings
from tauspan.vector import TaskVector

pytestmark = pytest.mark.slow
TEXTS = ["a good film", "bad", "the cat sat", "a b c"]


@pytest.fixture
def accelerate() -> Any:
    return pytest.importorskip("accelerate", reason="accelerate is not installed: the extra `real`")


@pytest.fixture
def accelerator(accelerate: Any) -> Any:
    yield accelerate.Accelerator(cpu=True)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return checkpoints.write(tmp_path / "bert", "bert")


def bert(home: Path) -> Any:
    with quiet(transformers):
        return transformers.BertModel.from_pretrained(home).eval()


def require_same(found: Any, wanted: Any) -> None:
    """The same names, dtypes and bits."""
    assert found.keys() == wanted.keys()
    assert all(found[name].dtype == wanted[name].dtype for name in wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["10GB", "2KB", 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_of_its_shards_is_lost(
    size: Any, dtype: torch.dtype, accelerator: Any, home: Path, tmp_path: Path
) -> None:
    model = accelerator.prepare(bert(home).to(dtype))
    accelerator.save_model(model, tmp_path / "out", max_shard_size=size)
    shards = list((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) == 1 if size == "10GB" else len(shards) > 1
    require_same(store.Checkpoint(tmp_path / "out").read(), accelerator.get_state_dict(model))


def test_a_vector_between_shards_and_one_file_is_the_difference(
    accelerator: Any, home: Path, tmp_path: Path
) -> None:
    base, tuned = bert(home), zoo.stirred(bert(home), scale=0.1).float()
    accelerator.save_model(base, tmp_path / "base", max_shard_size="10GB")
    accelerator.save_model(tuned, tmp_path / "tuned", max_shard_size="2KB")
    for index in (tmp_path / "tuned" / "model.safetensors.index.json", tmp_path / "tuned"):
        vector = TaskVector.from_checkpoints(tmp_path / "base" / "model.safetensors", index)
        before, after = base.state_dict(), tuned.state_dict()
        assert vector.deltas.keys() == {name for name, tensor in before.items() if tensor.is_floating_point()}
        for name, delta in vector.deltas.items():
            assert torch.equal(delta, (after[name].double() - before[name].double()).float())
        assert vector.base == fingerprint_of(base)


def test_a_directory_in_its_shards_loads_with_the_same_features(
    accelerator: Any, home: Path, tmp_path: Path
) -> None:
    shutil.copytree(home, tmp_path / "sharded", ignore=shutil.ignore_patterns("*.safetensors"))
    accelerator.save_model(bert(home), tmp_path / "sharded", max_shard_size="2KB")
    one, other = tauspan.load(home), tauspan.load(tmp_path / "sharded")
    assert fingerprint_of(one) == fingerprint_of(other)
    assert torch.equal(one(one.encode(TEXTS)), other(other.encode(TEXTS)))


def test_a_tied_tensor_that_it_left_out_is_known(accelerator: Any, tmp_path: Path) -> None:
    tied = families.make("llama tied", tmp_path / "tied")
    model, _ = families.loaded(tied)
    tuned = zoo.stirred(families.loaded(tied)[0], scale=0.1).float()
    for name, one in (("base", model), ("tuned", tuned)):
        accelerator.save_model(one, tmp_path / name, max_shard_size="8KB")
        shutil.copyfile(tied / "config.json", tmp_path / name / "config.json")
    assert "lm_head.weight" not in store.Checkpoint(tmp_path / "base").kinds()
    vector = TaskVector.from_checkpoints(tmp_path / "base", tmp_path / "tuned")
    edited = tauspan.apply(model, vector)
    assert edited.lm_head.weight is edited.model.embed_tokens.weight
    for name, tensor in tuned.state_dict().items():
        torch.testing.assert_close(edited.state_dict()[name], tensor, rtol=0, atol=1e-6)


def test_a_state_is_read_beside_its_pickles_and_pickled_weights_are_refused(
    accelerator: Any, home: Path, tmp_path: Path
) -> None:
    model, _ = accelerator.prepare(bert(home), torch.optim.SGD(bert(home).parameters(), 0.1))
    accelerator.save_state(tmp_path / "state")
    assert list((tmp_path / "state").glob("*.pkl"))
    require_same(store.Checkpoint(tmp_path / "state").read(), accelerator.get_state_dict(model))
    accelerator.save_model(model, tmp_path / "pickled", safe_serialization=False)
    with pytest.raises(PickleRefusedError):
        store.Checkpoint(tmp_path / "pickled")


def test_it_loads_a_directory_that_was_written_here(accelerate: Any, home: Path, tmp_path: Path) -> None:
    encoder = tauspan.load(home)
    tau = TaskVector.from_checkpoints(bert(home), zoo.stirred(bert(home), scale=0.1).float())
    edited = tauspan.apply(encoder, tau)
    tauspan.save(edited, tmp_path / "out")
    with accelerate.init_empty_weights(), quiet(transformers):
        empty = transformers.BertModel(transformers.AutoConfig.from_pretrained(tmp_path / "out"))
    there = accelerate.load_checkpoint_and_dispatch(empty, str(tmp_path / "out"), device_map={"": "cpu"})
    require_same(dict(there.eval().named_parameters()), dict(edited.backbone.named_parameters()))
    batch = edited.encode(TEXTS)
    torch.testing.assert_close(encoder.features(there, batch), edited(batch))


# -- models that it holds --------------------------------------------------------------------------------------------

HELD: dict[str, Callable[[Any, Any, Path], Any]] = {
    "prepared": lambda library, model, _: library.Accelerator(cpu=True).prepare(model),
    "hooks": lambda library, model, _: library.dispatch_model(
        model, {"": "cpu"}, main_device="cpu", force_hooks=True
    ),
    "hooks on each block": lambda library, model, _: library.dispatch_model(
        model,
        {"embeddings": "cpu", "encoder.layer.0": "cpu", "encoder.layer.1": "cpu", "pooler": "cpu"},
        main_device="cpu",
        force_hooks=True,
    ),
}


def held(encoder: Encoder, model: Any) -> Encoder:
    """The encoder over another backbone."""
    return Encoder(model, encoder.features, encoder.inputs).eval()


def gradient(encoder: Encoder, batch: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Features, J tau and J^T g at directions that depend on the names alone."""
    lin = tauspan.linearize(encoder)
    for place, tau in enumerate(lin.tau.values()):
        tau.data.copy_(0.1 * zoo.normal(*tau.shape, seed=place))
    out, moved = lin.tangent(batch)
    (lin(batch) * zoo.normal(*out.shape, seed=99)).sum().backward()
    return (
        out.detach(),
        moved.detach(),
        {name: tau.grad for name, tau in lin.tau.items() if tau.grad is not None},
    )


@pytest.mark.parametrize("how", HELD)
def test_its_hooks_change_no_answer(how: str, accelerate: Any, home: Path, tmp_path: Path) -> None:
    plain = tauspan.load(home)
    other = held(plain, HELD[how](accelerate, bert(home), tmp_path))
    assert fingerprint_of(other) == fingerprint_of(plain)
    batch = plain.encode(TEXTS)
    wanted, found = gradient(plain, batch), gradient(other, batch)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])
    require_same(found[2], wanted[2])


def tuned(encoder: Encoder, regime: Any) -> TaskVector:
    rows = (TEXTS * 2, [0, 1, 0, 1] * 2)
    task = Task.from_tensors("t", ["no", "yes"], train=rows, validation=rows, test=rows)
    return tauspan.finetune(encoder, task, Settings(regime, epochs=1, batch_size=4, lr=1e-3)).task_vector


@pytest.mark.parametrize("how", HELD)
@pytest.mark.parametrize("regime", ["standard", "linear"])
def test_a_model_that_it_holds_is_fine_tuned_to_the_same_vector(
    how: str, regime: Any, accelerate: Any, home: Path, tmp_path: Path
) -> None:
    plain = tauspan.load(home)
    model = HELD[how](accelerate, bert(home), tmp_path)
    other = held(plain, model)
    if regime == "standard" and how != "prepared":  # a copy whose `.to` would move the model itself
        with pytest.raises(
            ModelError, match=r"accelerate put it there.*remove_hook_from_submodules\(MODEL\)"
        ):
            tuned(other, regime)
        accelerate.hooks.remove_hook_from_submodules(model)  # as the message says
    wanted, found = tuned(plain, regime), tuned(other, regime)
    assert found.base == wanted.base
    require_same(found.deltas, wanted.deltas)


OFFLOADED: dict[str, Callable[[Any, Any, Path], Any]] = {
    "to memory": lambda library, model, _: library.cpu_offload(model, torch.device("cpu")),
    "to files": lambda library, model, folder: library.disk_offload(model, str(folder), torch.device("cpu")),
}


@pytest.mark.parametrize("how", OFFLOADED)
def test_a_model_whose_weights_it_took_away_is_refused_by_name(
    how: str, accelerate: Any, home: Path, tmp_path: Path
) -> None:
    plain = tauspan.load(home)
    away = held(plain, OFFLOADED[how](accelerate, bert(home), tmp_path / "offloaded"))
    batch = plain.encode(TEXTS)
    assert torch.equal(away(batch), plain(batch))  # its hooks bring them, one module at a time
    tau = TaskVector.from_checkpoints(bert(home), zoo.stirred(bert(home), scale=0.1).float())
    with pytest.raises(ModelError, match=r"has no values \(it is on the meta device\)"):
        tauspan.linearize(away)
    for ask in (
        lambda: fingerprint_of(away),
        lambda: tauspan.apply(away, tau),
        lambda: tauspan.save(away, tmp_path / "out"),
        lambda: TaskVector.from_checkpoints(bert(home), away),
    ):
        with pytest.raises(TauspanError, match="meta"):
            ask()
