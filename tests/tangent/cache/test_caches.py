"""Caches across epochs give what the reference engine gives, tell their size first, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from helpers import zoo
from helpers.zoo import all_close, at, close, direction
from tauspan.core.errors import BaseMismatchError, ModelError, StoreError, UsageError
from tauspan.tangent import Cache, Linearized, linearize

KINDS = ("none", "features", "primal", "factors")
MODELS = [name for name in zoo.ZOO if name not in ("gpt2_lm", "torch_transformer", "timm_vit")]
CASES = [
    (model, choice, kind)
    for model in MODELS
    for choice in ("all", "attention", "last:1", "*bias")
    for kind in KINDS
]


def selected(name: str, choice: str, engine: str = "onepass") -> tuple[Linearized, zoo.Example]:
    example = zoo.ZOO[name].make()
    try:
        return linearize(example.model, choice, engine=engine), example
    except UsageError as error:
        pytest.skip(str(error)[:60])


def gradients(lin: Linearized, tangent: Tensor, weights: Tensor) -> dict[str, Tensor]:
    lin.zero_grad()
    (tangent * weights).sum().backward()
    return {n: torch.zeros_like(tau) if tau.grad is None else tau.grad.clone() for n, tau in lin.tau.items()}


@pytest.mark.thinned(15)
@pytest.mark.parametrize(("name", "choice", "kind"), CASES)
def test_every_cache_agrees_with_the_reference_engine(
    name: str, choice: str, kind: str, tmp_path: Path
) -> None:
    lin, example = selected(name, choice)
    oracle = linearize(example.model, choice, engine="reference")
    try:
        cache = lin.cache([example.args[0]], kind)
    except ModelError as error:
        assert kind in ("features", "factors")
        pytest.skip(str(error)[:80])
    on_disk = lin.cache([example.args[0]], kind, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    tau = direction(lin)
    value, tangent = at(oracle, tau).tangent(*example.args)
    weights = zoo.normal(*tangent.shape, seed=9)
    expected = gradients(oracle, tangent, weights)
    at(lin, tau)
    digits = zoo.ZOO[name].digits
    for one in (cache[0], cache[0], on_disk[0]):  # twice: the kept graph survives a backward
        found_value, found = one.tangent()
        assert close(found_value, value, digits)
        assert close(found, tangent, digits)
        assert all_close(gradients(lin, found, weights), expected, digits)
        assert close(one.cell.push(tau), tangent, digits)
        assert all_close(one.cell.pull(weights), expected, digits)


def classifier(choice: str = "all") -> tuple[Linearized, list[dict[str, Tensor]]]:
    lin = linearize(zoo.classifier(zoo.bert()), choice, "logits")
    return lin, [zoo.tokens(rows, 6, types=True) for rows in (3, 2)]


def test_a_cached_batch_is_called_as_the_model_is() -> None:
    lin, batches = classifier()
    at(lin, direction(lin))
    for kind in KINDS[2:]:
        cache = lin.cache(batches, kind)
        assert [len(batch()) for batch in cache] == [3, 2]
        for batch, inputs in zip(cache, batches, strict=True):
            assert close(batch(), lin(inputs))


def test_the_head_after_an_encoder_point_is_applied() -> None:
    lin = linearize(zoo.classifier(zoo.bert()), "all", "encoder")
    batch = zoo.tokens(3, 6, types=True)
    at(lin, direction(lin))
    assert close(lin.cache([batch], "primal")[0](), lin(batch))


def test_auto_takes_factors_while_outputs_are_few_and_the_primal_state_otherwise() -> None:
    lin, batches = classifier()
    assert lin.cache(batches).kind == "factors"
    many = linearize(zoo.classifier(zoo.bert(), classes=9))
    assert many.cache(batches).kind == "primal"
    assert many.cache(batches, room=10).kind == "none"


def test_the_size_is_told_before_anything_is_kept() -> None:
    lin, batches = classifier()
    held = lin.cache(batches, "primal").bytes
    with pytest.raises(UsageError, match=r"primal cache of 2 batches needs .* MiB and room=.* is allowed"):
        lin.cache(batches, "primal", room=held // 2)
    assert lin.cache(batches, "primal", room=2 * held).bytes == held


def test_a_full_disk_is_told_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lin, batches = classifier()
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(StoreError, match="has 0 MiB free"):
        lin.cache(batches, "primal", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"kind": "factor"}, "factors"), ({"batches": []}, "at least one batch")],
)
def test_impossible_requests_are_refused(arguments: dict[str, object], message: str) -> None:
    lin, batches = classifier()
    with pytest.raises(UsageError, match=message):
        lin.cache(**{"batches": batches, **arguments})


def test_features_need_blocks_below_the_first_that_trains() -> None:
    lin, batches = classifier("all")
    with pytest.raises(ModelError, match="last:k"):
        lin.cache(batches, "features")


def test_rows_that_depend_on_one_another_are_cached_exactly() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            states = torch.tanh(self.inner(x))
            return self.outer(states - states.mean(0))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        lin = linearize(Mixing().double())
    at(lin, direction(lin))
    x = zoo.normal(4, 3)
    expected = lin.tangent(x)[1]
    weights = zoo.normal(*expected.shape, seed=9)
    for kind in ("factors", "primal"):
        cached = lin.cache([x], kind)[0].tangent()[1]
        assert close(cached, expected)
        assert all_close(gradients(lin, cached, weights), gradients(lin, lin.tangent(x)[1], weights))


def test_a_cache_holds_nothing_of_the_parameters() -> None:
    lin, batches = classifier()
    parameters = sum(p.numel() * p.element_size() for p in lin.base.parameters())
    cache = lin.cache(batches[1:], "primal")
    with torch.no_grad():
        pointers = {p.untyped_storage().data_ptr() for p in lin.base.parameters()}
    assert cache.bytes < 20 * parameters
    assert pointers  # the base's own memory is shared, not copied: see Room


@pytest.mark.slow
def test_a_killed_build_leaves_no_file(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys, os, signal, torch
        sys.path.insert(0, sys.argv[2])
        from helpers import zoo
        from tauspan.tangent import linearize
        from tauspan.tangent.cache import room
        lin = linearize(zoo.classifier(zoo.bert()))
        settle = room.Room.settle
        def killed(self):
            settle(self)
            os.kill(os.getpid(), signal.SIGKILL)
        room.Room.settle = killed
        lin.cache([zoo.tokens(3, 6, types=True)], "primal", folder=sys.argv[1])
        """
    )
    here = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), here], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-500:]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_of_a_base_that_changed_is_refused(kind: str) -> None:
    lin, batches = classifier("last:1")
    cache = lin.cache(batches, kind)
    with torch.no_grad():
        next(lin.base.parameters()).add_(1)
    with pytest.raises(BaseMismatchError, match="changed since this cache was built"):
        cache[0]()


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_cannot_be_derived_again(kind: str) -> None:
    lin, batches = classifier("last:1")
    at(lin, direction(lin))
    loss = lin.cache(batches, kind)[0]().square().sum()
    gradients = torch.autograd.grad(loss, list(lin.tau.values()), create_graph=True)
    with pytest.raises(ModelError, match="engine='reference'"):
        sum(g.square().sum() for g in gradients).backward()


def test_a_cache_says_what_it_is() -> None:
    lin, batches = classifier("last:1")
    cache = lin.cache(batches, "features")
    assert isinstance(cache, Cache)
    assert str(cache).startswith("Cache(features, 2 batches")
