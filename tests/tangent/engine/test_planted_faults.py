"""Faults planted into the library are caught when it runs: the answer is right all the same, or there is none.

Each plant changes one thing that an engine, a cache, a kernel or a solver stands on. What then happens must be an error
of the library, or the right answer together with a warning.
"""

import gzip
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tauspan as ts
from helpers import zoo
from helpers.kinds import X, kind, truth
from tauspan.core.errors import DataError, StoreError, TauspanError
from tauspan.kernel.operator import tangent as operator
from tauspan.kernel.rows import contract, layers, tiles
from tauspan.kernel.rows import jacobian as jacobian_module
from tauspan.kernel.rows.pieces import Lookup, Product, Written
from tauspan.models.at import At
from tauspan.store import Checkpoint
from tauspan.tangent import contributions as contributions_module
from tauspan.tangent import linearize
from tauspan.tangent.cache import factors, sensitivities
from tauspan.tangent.engine import backward, engines, onepass, table
from tauspan.tangent.engine import maps as maps_module
from tauspan.tasks import Task, build_head

Plant = Callable[[pytest.MonkeyPatch], None]


def caught(run: Callable[[], Any], right: Callable[[Any], bool], told: bool = True) -> None:
    """The call raises an error of the library, or gives the right answer and, if it should, says what it did."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = run()
        except TauspanError:
            return
    assert right(found), "a wrong answer came out"
    assert not told or any(issubclass(w.category, RuntimeWarning) for w in said), "the fault was not met"


# -- tangents --------------------------------------------------------------------------------------------------------


def net() -> nn.Module:
    """Linear layers, a norm, an attention, a softmax: what most rules are about."""

    def forward(s: Any, x: Tensor) -> Tensor:
        h = s.n(s.a(x)).view(len(x), 3, 2)
        h = h + nn.functional.scaled_dot_product_attention(h, s.w(x).view(len(x), 3, 2), h)
        return s.o(torch.softmax(h.flatten(1), -1) * nn.functional.gelu(s.w(x)))

    return kind(forward, n=lambda: nn.LayerNorm(6))


def rule(name: str, change: Callable[[Any, tuple[Any, ...]], Any]) -> Plant:
    """A tangent rule whose push gives something else."""
    known = table.RULES[name]

    def wrong(func: Any, *args: Any, **kwargs: Any) -> Any:
        value, push = known(func, *args, **kwargs)
        return value, lambda *tangents, **named: change(push(*tangents, **named), tangents)

    # the signature decides how arguments are bound, so the arguments are taken in the known rule's order
    def plant(patch: pytest.MonkeyPatch) -> None:
        bound = table.bound
        patch.setitem(table.RULES, name, wrong)
        patch.setattr(table, "bound", lambda r, args, kwargs: bound(known if r is wrong else r, args, kwargs))

    return plant


def dropped(name: str, place: int) -> Plant:
    """A rule that leaves out the term of one argument."""
    known = table.RULES[name]

    def wrong(func: Any, *args: Any, **kwargs: Any) -> Any:
        value, push = known(func, *args, **kwargs)

        def part(*tangents: Any, **named: Any) -> Any:
            return push(*(None if n == place else t for n, t in enumerate(tangents)), **named)

        return value, part

    def plant(patch: pytest.MonkeyPatch) -> None:
        bound = table.bound
        patch.setitem(table.RULES, name, wrong)
        patch.setattr(table, "bound", lambda r, args, kwargs: bound(known if r is wrong else r, args, kwargs))

    return plant


def cut_graph(patch: pytest.MonkeyPatch) -> None:
    """A rule whose value has left the graph: J tau is right and J^T g is not."""
    known = table.RULES["gelu"]

    def wrong(func: Any, x: Tensor, approximate: str = "none") -> Any:
        value, push = known(func, x, approximate)
        return value.detach(), push

    patch.setitem(table.RULES, "gelu", wrong)


def scaled_gradient(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(onepass, "once", lambda gradient, tau: 1.01 * maps_module.once(gradient, tau))


def renamed(patch: pytest.MonkeyPatch) -> None:
    """Two tensors of one shape change names on the way to the module."""
    made = At.__init__

    def wrong(self: At, module: nn.Module, point: Any, custom: Any = None) -> None:
        swap = {"a.weight": "w.weight", "w.weight": "a.weight"}
        made(self, module, {swap.get(name, name): tensor for name, tensor in point.items()}, custom)

    patch.setattr(At, "__init__", wrong)


def left_out(patch: pytest.MonkeyPatch) -> None:
    """One parameter stays where it is."""
    made = At.__init__

    def wrong(self: At, module: nn.Module, point: Any, custom: Any = None) -> None:
        made(self, module, {name: tensor for name, tensor in point.items() if name != "n.bias"}, custom)

    patch.setattr(At, "__init__", wrong)


def other_output(patch: pytest.MonkeyPatch) -> None:
    parted = onepass.parted
    patch.setattr(
        onepass, "parted", lambda out, tracked: (parted(out, tracked)[0] + 0.1, parted(out, tracked)[1])
    )


TANGENTS: dict[str, Plant] = {
    "linear without the input's tangent": dropped("linear", 0),
    "linear without the bias": dropped("linear", 2),
    "layer norm without the scale": dropped("layer_norm", 2),
    "attention without the keys": dropped("scaled_dot_product_attention", 1),
    "softmax with the other sign": rule("softmax", lambda found, _: -found),
    "gelu without its factor": rule("gelu", lambda found, tangents: tangents[0]),
    "addition of one side alone": dropped("add", 1),
    "a value that left the graph": cut_graph,
    "a gradient off by a percent": scaled_gradient,
    "a renamed tensor": renamed,
    "a tensor left out": left_out,
    "another output": other_output,
}  # fmt: skip


@pytest.mark.parametrize("name", TANGENTS)
def test_a_fault_in_one_pass_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = truth(net(), X)
    TANGENTS[name](monkeypatch)

    def run() -> tuple[Tensor, dict[str, Tensor]]:
        lin = linearize(net())
        with torch.no_grad():
            for key, tau in lin.tau.items():
                tau.copy_(wanted.tau[key])
        tangent = lin.tangent(X)[1]
        found = torch.autograd.grad(tangent, list(lin.tau.values()), wanted.weights, allow_unused=True)
        pairs = zip(lin.tau.items(), found, strict=True)
        return tangent, {key: torch.zeros_like(tau) if g is None else g for (key, tau), g in pairs}

    caught(run, lambda found: zoo.close(found[0], wanted.tangent) and zoo.all_close(found[1], wanted.pulled))


def test_a_fault_in_the_reference_engine_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = truth(net(), X)
    jvp = engines.reference.jvp
    monkeypatch.setattr(
        engines.reference,
        "jvp",
        lambda call, theta0, tau: jvp(call, theta0, {**tau, "n.bias": tau["n.bias"] * 2}),
    )
    run = lambda: linearize(net(), engine="reference").tangent(X, vectors=[wanted.tau])[1][0]  # noqa: E731
    caught(run, lambda found: zoo.close(found, wanted.tangent))


def test_a_fault_in_the_backward_engine_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = truth(net(), X)
    turned = backward.turned
    monkeypatch.setattr(backward, "turned", lambda *args: [2 * found for found in turned(*args)])
    run = lambda: linearize(net(), engine="backward").tangent(X, vectors=[wanted.tau])[1][0]  # noqa: E731
    caught(run, lambda found: zoo.close(found, wanted.tangent))


def test_without_the_check_a_planted_fault_goes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above show is the check's doing."""
    wanted = truth(net(), X)
    TANGENTS["linear without the bias"](monkeypatch)
    found = linearize(net(), check="off").tangent(X, vectors=[wanted.tau])[1][0]
    assert not zoo.close(found, wanted.tangent, 1e-3)


# -- caches ----------------------------------------------------------------------------------------------------------


def shifted_rows(patch: pytest.MonkeyPatch) -> None:
    of = sensitivities.Sensitivities.of
    patch.setattr(
        sensitivities.Sensitivities,
        "of",
        lambda self, place: None if of(self, place) is None else of(self, place).roll(1, 0),
    )


def lost_part(patch: pytest.MonkeyPatch) -> None:
    parts = factors._parts
    patch.setattr(
        factors, "_parts", lambda entry, *rest: [] if entry.name == "layer_norm" else parts(entry, *rest)
    )


def early(patch: pytest.MonkeyPatch) -> None:
    """Rows are never looked at, so that operations on parameters alone are taken for rows of the batch."""
    patch.setattr(sensitivities.Sensitivities, "by_rows", lambda self, place: True)


CACHES: dict[str, Plant] = {
    "rows shifted by one": shifted_rows,
    "a part lost": lost_part,
    "rows not looked at": early,
}


@pytest.mark.parametrize("name", CACHES)
def test_a_fault_in_a_cache_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        return s.o(s.n(s.a(x) * s.w(s.q.expand(6, -1)).tanh().sum(0)))

    def make() -> nn.Module:
        return kind(forward, n=lambda: nn.LayerNorm(6))

    wanted = truth(make(), X)
    CACHES[name](monkeypatch)
    run = lambda: linearize(make()).cache([X], "factors")[0].cell  # noqa: E731

    def right(cell: Any) -> bool:
        pulled = zoo.all_close(cell.pull(wanted.weights), wanted.pulled)
        return pulled and zoo.close(cell.push(wanted.tau), wanted.tangent)

    caught(run, right, told=False)


def test_a_stale_cache_is_caught() -> None:
    module = net()
    cache = linearize(module).cache([X], "primal")
    module.w.weight.data += 1
    with pytest.raises(ts.BaseMismatchError):
        cache[0]()


# -- kernels ---------------------------------------------------------------------------------------------------------


def words() -> nn.Module:
    """An embedding with a padding row, under linear layers."""

    def forward(s: Any, ids: Tensor) -> Tensor:
        return s.o(s.n(s.a(s.e(ids))).tanh().mean(1))

    return kind(forward, e=lambda: nn.Embedding(9, 6, padding_idx=0), n=lambda: nn.LayerNorm(6))


IDS = torch.tensor([[1, 2, 0], [3, 0, 0], [4, 4, 5], [6, 7, 8], [2, 1, 3]])


def lost_piece(patch: pytest.MonkeyPatch) -> None:
    gathered = layers._gathered
    patch.setattr(
        layers, "_gathered", lambda *args: {k: v for k, v in gathered(*args).items() if k != "o.bias"}
    )


def without_padding(patch: pytest.MonkeyPatch) -> None:
    lookup = layers._lookup

    def wrong(entry: Any, sensitivity: Tensor, names: Any) -> Any:
        return lookup(replace(entry, arguments=(*entry.arguments[:2], None)), sensitivity, names)

    patch.setitem(layers._LAYERS, "embedding", wrong)


def other_inputs(patch: pytest.MonkeyPatch) -> None:
    linear = layers._linear

    def wrong(entry: Any, sensitivity: Tensor, names: Any) -> Any:
        return [
            (name, replace(piece, inputs=piece.inputs.roll(1, 0)) if isinstance(piece, Product) else piece)
            for name, piece in linear(entry, sensitivity, names)
        ]

    patch.setitem(layers._LAYERS, "linear", wrong)


def contracted_twice(patch: pytest.MonkeyPatch) -> None:
    """After the pieces were checked."""
    add = contract._add

    def wrong(total: Tensor, left: Any, right: Any, chunk: Any = None) -> None:
        add(total, left, right, chunk)
        if isinstance(left[0], Lookup):
            add(total, left, right, chunk)

    patch.setattr(contract, "_add", wrong)


def lost_rows(patch: pytest.MonkeyPatch) -> None:
    product = operator.product
    patch.setattr(operator, "product", lambda *args: product(*args).roll(1, 0))


def lost_parameter(patch: pytest.MonkeyPatch) -> None:
    joined = tiles.joined
    patch.setattr(tiles, "joined", lambda parts: {k: v for k, v in joined(parts).items() if k != "a.weight"})


KERNELS: dict[str, Plant] = {
    "a piece left out": lost_piece, "the padding row counted": without_padding, "inputs of another row": other_inputs,
    "a product added twice": contracted_twice, "rows shifted by one": lost_rows, "a parameter lost": lost_parameter,
}  # fmt: skip


@pytest.mark.parametrize("name", KERNELS)
def test_a_fault_in_a_kernel_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    j = truth(words(), IDS).jacobian
    KERNELS[name](monkeypatch)
    caught(
        lambda: ts.TangentKernel(words(), IDS).dense(), lambda found: zoo.close(found, j @ j.T), told=False
    )


def test_a_fault_in_written_out_rows_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    j = truth(words(), IDS).jacobian
    rows_of_j = jacobian_module.Jacobian.dense_rows

    def wrong(self: Any, places: Any = None) -> Any:
        for rows, found in rows_of_j(self, places):
            yield rows, {**found, "o.bias": 0 * found["o.bias"]}

    monkeypatch.setattr(jacobian_module.Jacobian, "dense_rows", wrong)
    run = lambda: ts.TangentKernel(words(), IDS, backend="contraction").dense()  # noqa: E731
    caught(run, lambda found: zoo.close(found, j @ j.T), told=False)


def test_a_closed_form_of_another_gradient_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    data = {"train": (X, labels), "validation": (X, labels), "test": (X, labels)}
    task = ts.Task.from_tensors("toy", ["a", "b"], **data)
    pull = jacobian_module.Jacobian.pull
    monkeypatch.setattr(
        jacobian_module.Jacobian,
        "pull",
        lambda self, alphas: [
            {k: -v if k == "a.bias" else v for k, v in one.items()} for one in pull(self, alphas)
        ],
    )
    with pytest.raises(ts.ModelError, match="certificate does not hold"):
        ts.closed_form(ts.load(net()), task, ridge=0.1)


# -- passes over data ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [1, 2])
def test_outputs_at_the_places_of_other_rows_are_caught(shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    in_order = contributions_module.in_order
    monkeypatch.setattr(
        contributions_module, "in_order", lambda parts, axis: in_order(parts, axis).roll(shift, axis)
    )
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    data = {"train": (X, labels), "validation": (X, labels), "test": (X, labels)}
    task = ts.Task.from_tensors("toy", ["a", "b"], **data)
    encoder = ts.load(net())
    vector = ts.finetune(encoder, task, ts.Settings(max_steps=1)).task_vector
    with pytest.raises(ts.ModelError, match="order of the rows"):
        ts.evaluate(
            encoder,
            [task],
            vector,
        ).report()


def test_pieces_are_of_the_kinds_that_the_plants_are_about() -> None:
    """Or the plants above would miss their aim."""
    kernel = ts.TangentKernel(words(), IDS)
    found = layers.pieces(kernel.left, [0, 1], IDS[:2], {})
    assert isinstance(found["e.weight"], Lookup)
    assert isinstance(found["a.weight"], Product)
    assert isinstance(found["o.bias"], Written)


# -- heads and labels ------------------------------------------------------------------------------------------------


def points(name: str, labels: Tensor) -> ts.Task:
    rows = (torch.randn(6, 4, generator=torch.Generator().manual_seed(len(name))), labels)
    return ts.Task.from_tensors(name, ["a", "b"], train=rows, validation=rows, test=rows)


def test_swapped_heads_are_caught(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder, labels = ts.models.Encoder(nn.Linear(4, 3).eval()), torch.arange(6) % 2
    for name in ("one", "other"):
        build_head(points(name, labels), encoder)
    ts.save(encoder, tmp_path / "saved")
    files = [tmp_path / "saved" / "heads" / f"{name}.safetensors" for name in ("one", "other")]
    tensors, facts = [load_file(file) for file in files], [Checkpoint(file).metadata for file in files]
    assert set(ts.load(tmp_path / "saved", module=encoder.backbone).frozen) == {"one", "other"}
    for file, swapped, own in zip(files, reversed(tensors), facts, strict=True):
        save_file(swapped, file, own)
    with pytest.raises(StoreError, match="not those that were saved for this task"):
        ts.load(tmp_path / "saved", module=encoder.backbone)


@pytest.mark.parametrize("shift", [1, 2, -1])
def test_shifted_labels_are_caught(shift: int) -> None:
    with pytest.raises(DataError, match="label"):
        points("t", torch.arange(6) % 2 + shift)


def test_labels_that_were_shifted_in_a_file_are_caught(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(
        "text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(40))
    )
    Task.from_files("t", tmp_path / "rows.csv").to_directory(tmp_path / "t")
    file = tmp_path / "t" / "train.csv.gz"
    lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    labels = [line.rpartition(",")[2] for line in lines[1:]]
    shifted = [
        f"{line.rpartition(',')[0]},{label}"
        for line, label in zip(lines[1:], labels[1:] + labels[:1], strict=True)
    ]
    file.write_bytes(gzip.compress("\n".join([lines[0], *shifted, ""]).encode()))
    with pytest.raises(DataError, match=r"checksum|SHA-256"):
        Task.from_directory(tmp_path / "t")
