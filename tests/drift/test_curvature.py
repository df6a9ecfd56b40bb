"""Curvature factors against Jacobians, inputs and sensitivities that are written out, in float64."""

import dataclasses
import json

import pytest
import torch
from torch import nn

import tauspan as ts
from helpers import zoo
from tauspan.core.errors import BaseMismatchError, MismatchError, ModelError, StoreError, UsageError
from tauspan.drift import KINDS, Factors, compressed, exact_drift, factors, merged
from tauspan.drift.blocks import Diagonal, Table, Whole
from tauspan.drift.curvature import _Sums
from tauspan.kernel.rows.jacobian import Jacobian
from tauspan.kernel.rows.layers import pieces
from tauspan.models import Classifier, Encoder, Head
from tauspan.tangent import linearize

ROWS, LONG, WIDE = 5, 4, 3


class Layers(nn.Module):
    """Two linear layers over positions with a norm between them, then the mean over positions."""

    def __init__(self, between=nn.Tanh):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(WIDE, 6), nn.LayerNorm(6), nn.Linear(6, 4)
        self.between = between()

    def forward(self, x):
        return self.last(self.between(self.norm(self.first(x)))).mean(1)


class Plain(nn.Module):
    """Two linear layers and nothing between them: there the factors of each layer are independent."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(WIDE, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.last(self.first(x))


def encoder(kind=Layers, **options):
    torch.manual_seed(0)
    return Encoder(kind(**options).double())


def task(name="a", rows=ROWS, shape=(LONG, WIDE), classes=2):
    seed = ord(name)
    x = zoo.normal(rows, *shape, seed=seed).double()
    y = torch.arange(rows) % classes
    head = Head(zoo.normal(classes, 4, seed=seed + 1).double())
    labels = [str(place) for place in range(classes)]
    return ts.Task.from_tensors(name, labels, train=(x, y), validation=(x, y), test=(x, y), head=head)


def jacobian(model, one):
    """By parameter, the rows of J, shape (N, C, P), by ordinary autograd."""
    classifier = Classifier(model, one.head)
    named = dict(model.backbone.named_parameters())
    rows = []
    for x in one.split("train").inputs:
        logits = classifier(x[None])[0]
        rows.append([torch.autograd.grad(logit, list(named.values()), retain_graph=True) for logit in logits])
    return {
        name: torch.stack([torch.stack([out[place].flatten() for out in row]) for row in rows])
        for place, name in enumerate(named)
    }


def inside(model, one, layer):
    """Inputs (N, T, a) and sensitivities (N, C, T, b) of a layer, by hooks."""
    kept = {}
    module = getattr(model.backbone, layer)
    handle = module.register_forward_hook(lambda _, args, out: kept.update(a=args[0], y=out))
    classifier = Classifier(model, one.head)
    inputs, outputs = [], []
    for x in one.split("train").inputs:
        logits = classifier(x[None])[0]
        inputs.append(kept["a"][0].detach())
        outputs.append(
            torch.stack([torch.autograd.grad(logit, kept["y"], retain_graph=True)[0][0] for logit in logits])
        )
    handle.remove()
    return torch.stack(inputs), torch.stack(outputs)


def direction(model, *names, seed=3):
    """A random displacement of some parameters, 0 elsewhere."""
    return {
        name: zoo.normal(*p.shape, seed=seed + place).double() * (not names or name in names)
        for place, (name, p) in enumerate(model.backbone.named_parameters())
    }


def exact(wide, tau):
    """E |J tau|^2."""
    moved = sum(rows @ tau[name].flatten() for name, rows in wide.items())
    return float(moved.square().sum(1).mean())


def close(found, wanted, rel=1e-10):
    assert float(found) == pytest.approx(float(wanted), rel=rel)


@pytest.mark.parametrize("layer", ["first", "last"])
def test_expand_and_reduce_are_what_their_formulas_say(layer):
    model, one = encoder(), task()
    a, g = inside(model, one, layer)
    weight = direction(model)[f"{layer}.weight"]
    wide_a, wide_b = a.flatten(0, 1), g.flatten(0, 2)
    expand = (wide_a.T @ wide_a / len(wide_a), wide_b.T @ wide_b / ROWS)
    mean_a, sum_g = a.mean(1), g.sum(2).flatten(0, 1)
    reduce = (mean_a.T @ mean_a / ROWS, sum_g.T @ sum_g / ROWS)
    for kind, (left, right) in {"expand": expand, "reduce": reduce}.items():
        block = factors(model, one, kind).blocks[f"{layer}.weight"]
        close(block.square(weight), torch.trace(right @ weight @ left @ weight.T))


def test_what_is_exact_is_exact_parameter_by_parameter():
    model, one = encoder(), task()
    wide = jacobian(model, one)
    for kind in KINDS:
        for name, block in factors(model, one, kind).blocks.items():
            curvature = torch.einsum("nip,niq->pq", wide[name], wide[name]) / ROWS
            delta = direction(model)[name]
            if kind == "diagonal":
                close(block.square(delta), curvature.diagonal() @ delta.flatten().square())
            elif not name.endswith("weight") or "norm" in name:
                close(block.square(delta), delta.flatten() @ curvature @ delta.flatten())


def test_ekfac_has_the_diagonal_of_the_curvature_in_the_eigenvectors():
    model, one = encoder(), task()
    wide = jacobian(model, one)["first.weight"].view(ROWS, 2, 6, WIDE)
    block = factors(model, one, "ekfac").blocks["first.weight"]
    turned = block.outputs.T @ wide @ block.inputs
    torch.testing.assert_close(block.scale, turned.square().sum(1).mean(0), rtol=1e-10, atol=1e-12)
    eye = torch.eye(WIDE, dtype=torch.float64)
    torch.testing.assert_close(block.inputs.T @ block.inputs, eye)


@pytest.mark.parametrize("kind", ["expand", "reduce"])
def test_kronecker_factors_are_exact_without_a_nonlinearity_and_not_with_one(kind):
    model, one = encoder(Plain), task(shape=(WIDE,))
    wide, made = jacobian(model, one), factors(model, one, kind)
    for layer in ("first.weight", "last.weight"):
        tau = direction(model, layer)
        close(made.drift(tau), exact(wide, tau))
    bent = Encoder(nn.Sequential(nn.Linear(WIDE, 6), nn.Tanh(), nn.Linear(6, 4)).double())
    wide, made = jacobian(bent, one), factors(bent, one, kind)

    def ratio(layer):
        tau = {
            name: zoo.normal(*p.shape, seed=5).double() * (name == layer)
            for name, p in bent.backbone.named_parameters()
        }
        return float(made.drift(tau)) / exact(wide, tau)

    assert abs(ratio("0.weight") - 1) > 0.01  # its sensitivities go with its inputs
    assert ratio("2.weight") == pytest.approx(1, rel=1e-9)  # nothing comes after the last layer


def test_exact_drift_is_the_mean_square_of_j_tau():
    model, one, other = encoder(), task("a"), task("b", rows=7, classes=3)
    found = ts.superpose(model, [one, other], 1.0, 0.5)
    vectors = {task.name: vector for task, vector in found.vectors.items()}
    table = exact_drift(model, vectors, [one, other])
    for on in (one, other):
        wide = jacobian(model, on)
        for by, vector in vectors.items():
            close(table[on.name][by], exact(wide, vector.deltas), 1e-9)
    few = exact_drift(model, vectors, [one], rows=3, seed=1)
    close(few["a"]["b"], exact(jacobian(model, one.subset(train=3, seed=1)), vectors["b"].deltas), 1e-9)


def test_what_has_no_exact_drift_is_refused():
    model, one = encoder(), task("a")
    vector = {"a": ts.closed_form(model, one, ridge=1.0).vector}
    for told, ask in [
        ("no vector", lambda: exact_drift(model, {}, [one])),
        ("2 of 3 other tasks are called 'a'", lambda: exact_drift(model, vector, [one, task("b"), one])),
        (
            "exact_drift linearises",
            lambda: exact_drift(model, vector, [one], reading=ts.Reading(point="encoder")),
        ),
    ]:
        with pytest.raises(UsageError, match=told):
            ask()


def test_probes_are_right_on_average():
    model, one = encoder(), task(classes=3)
    tau = direction(model)
    many = factors(model, one, "diagonal", probes=60).drift(tau)
    close(many, factors(model, one, "diagonal").drift(tau), 0.2)
    with pytest.raises(UsageError, match="at least 1"):
        factors(model, one, probes=0)


class Attention(nn.Module):
    """One parameter in three parts, an embedding, and a parameter that no output depends on."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 4)
        self.three = nn.Parameter(0.3 * torch.randn(12, 4))
        self.idle = nn.Parameter(torch.ones(3))

    def forward(self, ids):
        x = self.words(ids)
        query, key, value = (nn.functional.linear(x, part) for part in self.three.chunk(3))
        return ((query @ key.mT).softmax(-1) @ value).mean(1)


def test_views_tables_and_idle_parameters_have_blocks_too():
    torch.manual_seed(1)
    model = Encoder(Attention().double())
    ids, y = torch.arange(20).view(5, 4) % 9, torch.arange(5) % 2
    one = ts.Task.from_tensors(
        "ids",
        ["0", "1"],
        train=(ids, y),
        validation=(ids, y),
        test=(ids, y),
        head=Head(zoo.normal(2, 4).double()),
    )
    classifier = Classifier(model, one.head)
    named = dict(model.backbone.named_parameters())
    tau = {name: zoo.normal(*p.shape, seed=7).double() for name, p in named.items()}
    found = factors(model, one, "diagonal")
    total = 0.0
    for row in ids:
        for logit in classifier(row[None])[0]:
            gradients = torch.autograd.grad(logit, list(named.values()), retain_graph=True, allow_unused=True)
            total += sum(
                float((g * tau[name]).square().sum())
                for name, g in zip(named, gradients, strict=True)
                if g is not None
            )
    close(found.drift(tau), total / len(ids))
    assert any(name.startswith("three#") for name in found.blocks)
    assert float(factors(model, one, "reduce").drift(tau)) > 0


class Placed(nn.Module):
    """An embedding of positions, read once for all rows, as BERT does."""

    def __init__(self):
        super().__init__()
        self.places, self.last = nn.Embedding(LONG, WIDE), nn.Linear(WIDE, 4)

    def forward(self, x):
        return self.last(torch.tanh(x + self.places(torch.arange(LONG)[None]))).sum(1)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_no_factor_depends_on_the_size_of_batches(kind):
    """A batch of one row has an embedding of positions in the form of one of ids."""
    model, one = encoder(Placed), task()
    tau = direction(model)
    wanted = factors(model, one, kind, reading=ts.Reading(batch_size=ROWS)).drift(tau)
    for size in (1, 2, ROWS - 1):
        close(factors(model, one, kind, reading=ts.Reading(batch_size=size)).drift(tau), wanted, 1e-9)


def test_a_sum_has_one_form_and_empty_parts_count_as_zero():
    sums = _Sums()
    for size in (0, 2, 0, 2):
        sums.add("x", matrix=torch.ones(size, size))
    assert torch.equal(sums["x"]["matrix"], 2 * torch.ones(2, 2).double())
    with pytest.raises(ModelError, match=r"'x' has a block of matrix .* and of often, table"):
        sums.add("x", often=torch.ones(2), table=torch.ones(2, 2))


class Padded(nn.Module):
    """Words whose own positions are averaged; 0 is padding."""

    def __init__(self):
        super().__init__()
        self.words, self.first, self.last = nn.Embedding(9, WIDE), nn.Linear(WIDE, 6), nn.Linear(6, 4)

    def forward(self, input_ids, attention_mask=None):
        own = ((input_ids > 0) if attention_mask is None else attention_mask)[..., None].double()
        return (self.last(torch.tanh(self.first(self.words(input_ids)))) * own).sum(1) / own.sum(1)


def padded(long):
    """A task of rows of 2, 3 or 4 words, padded to a length."""
    ids = torch.zeros(ROWS, long, dtype=torch.long)
    for row in range(ROWS):
        words = 2 + row % 3
        ids[row, :words] = 1 + (torch.arange(words) * 3 + row) % 8
    y = torch.arange(ROWS) % 2
    both, head = (ids, y), Head(zoo.normal(2, 4).double())
    return ts.Task.from_tensors("ids", ["0", "1"], train=both, validation=both, test=both, head=head)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_padding_does_not_count(kind):
    model = encoder(Padded)
    tau = direction(model)
    wanted = factors(model, padded(4), kind).drift(tau)
    close(factors(model, padded(40), kind).drift(tau), wanted, 1e-9)


@pytest.mark.parametrize("kind", ["expand", "reduce"])
def test_an_attention_mask_says_what_is_padding(kind):
    """Without an embedding among the parameters there is nothing else that says it."""
    model = encoder(Padded)
    tangent = linearize(Classifier(model, padded(4).head), ["first.weight", "last.weight"])
    found = []
    for long in (4, 40):
        ids = torch.stack(list(padded(long).split("train").inputs))
        batch = {"input_ids": ids, "attention_mask": (ids > 0).long()}

        def passes(batch=batch):
            side = Jacobian.of(tangent, [batch], ROWS, "all")
            rows = pieces(side, list(range(ROWS)), batch, {})
            yield rows, batch

        found.append(KINDS[kind](passes, 1 / ROWS))
    for name, block in found[0].items():
        delta = direction(model)[name]
        close(found[1][name].square(delta), block.square(delta), 1e-9)


class Turned(nn.Module):
    """The layers of `Layers`, the first of which is stored as (a, b), as GPT-2 does."""

    def __init__(self, like):
        super().__init__()
        self.weight = nn.Parameter(like.first.weight.detach().T.clone())
        self.bias = nn.Parameter(like.first.bias.detach().clone())
        self.norm, self.last, self.between = like.norm, like.last, like.between

    def forward(self, x):
        flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return self.last(self.between(self.norm(flat.view(*x.shape[:-1], -1)))).mean(1)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_weight_that_is_stored_the_other_way_round_has_the_same_drift(kind):
    plain, one = encoder(), task()
    turned = Encoder(Turned(plain.backbone).double())
    tau = direction(plain, "first.weight")
    wanted = factors(plain, one, kind).drift(tau)
    other = {name: torch.zeros_like(p) for name, p in turned.backbone.named_parameters()}
    other["weight"] = tau["first.weight"].T
    close(factors(turned, one, kind).drift(other), wanted, 1e-9)


# -- merging, files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_files_keep_everything(kind, tmp_path):
    model, one = encoder(), task()
    found = factors(model, one, kind, rows=4, seed=2)
    read = Factors.load(found.save(tmp_path / "f.safetensors"))
    tau = direction(model)
    assert float(read.drift(tau)) == float(found.drift(tau))
    assert (read.base, read.facts, read.bytes) == (found.base, found.facts, found.bytes)
    assert repr(read) == f"Factors({kind}, 6 blocks of a, 4 rows)"
    with pytest.raises(StoreError, match="already"):
        found.save(tmp_path / "f.safetensors")


@pytest.mark.parametrize("kind", ["reduce", "diagonal"])
def test_merged_factors_are_means_and_cross_terms(kind):
    model, one, other = encoder(), task("a"), task("b")
    several = [factors(model, some, kind) for some in (one, other)]
    both = merged(several)
    assert [some["name"] for some in both.facts["tasks"]] == ["a", "b"]
    for name, block in both.blocks.items():
        mine, theirs = (found.blocks[name].tensors() for found in several)
        for field, tensor in block.tensors().items():
            torch.testing.assert_close(tensor, (mine[field] + theirs[field]) / 2)
    assert float(merged([several[0]]).drift(direction(model))) == float(several[0].drift(direction(model)))


def named(found, name):
    """The same factors, as if they were of another task."""
    return dataclasses.replace(found, facts={**found.facts, "tasks": [{"name": name, "checksum": name * 16}]})


@pytest.mark.parametrize("kind", ["expand", "reduce", "diagonal", "thin"])
def test_merging_is_associative(kind, tmp_path):
    """Against the mean of each tensor over the tasks, in any order of merging; by a file in between too."""
    model, tau = encoder(), direction(encoder())
    several = [factors(model, task(name), "reduce" if kind == "thin" else kind) for name in "abcd"]
    if kind == "thin":
        several = [compressed(one, 1.0) for one in several]
    a, b, c, d = several
    pair = Factors.load(merged([a, b]).save(tmp_path / "pair"))
    nested = [merged([pair, c, d]), merged([a, merged([b, merged([c, d])])]), merged([pair, merged([c, d])])]
    if kind != "thin":
        for name, block in merged(several).blocks.items():
            for field, tensor in block.tensors().items():
                wanted = torch.stack([one.blocks[name].tensors()[field] for one in several]).mean(0)
                torch.testing.assert_close(tensor, wanted)
    for one in nested:
        close(one.drift(tau), merged(several).drift(tau), 1e-5 if kind == "thin" else 1e-10)
        assert one.facts == {**merged(several).facts}
        assert one.facts["merged"] == one.count == 4


def test_merged_eigenvectors_are_the_first_ones_however_many_sets_came_before():
    model, tau = encoder(), direction(encoder())
    a, b, c = (factors(model, task(name), "ekfac") for name in "abc")
    close(merged([merged([a, b]), c]).drift(tau), merged([a, b, c]).drift(tau))
    behind = merged([a, merged([b, c])])
    assert abs(float(behind.drift(tau) / merged([a, b, c]).drift(tau)) - 1) > 1e-6  # what cannot be
    for name, block in merged([a, b, c]).blocks.items():
        if hasattr(block, "scale"):
            close(behind.blocks[name].scale.sum(), block.scale.sum())


def test_sets_that_were_merged_by_other_shares_are_told(caplog):
    model = encoder()
    a, b, c = (factors(model, task(name)) for name in "abc")
    flat = merged([a, b, c])
    assert not caplog.records
    merged([dataclasses.replace(flat, facts={**flat.facts, "merged": 2})])
    assert "do not count alike" in caplog.text


def test_merged_eigenvectors_keep_the_trace():
    model, one, other = encoder(), task("a"), task("b")
    several = [factors(model, some, "ekfac") for some in (one, other)]
    for name, block in merged(several).blocks.items():
        if hasattr(block, "scale"):
            wanted = sum(found.blocks[name].scale.sum() for found in several) / 2
            close(block.scale.sum(), wanted)


@pytest.mark.parametrize("thin", [(0,), (1,), (0, 1)])
def test_thin_factors_merge_with_full_ones(thin):
    model, tau = encoder(), direction(encoder())
    full = [factors(model, task("a")), factors(model, task("b"))]
    mixed = [compressed(one, 1.0) if place in thin else one for place, one in enumerate(full)]
    close(merged(mixed).drift(tau), merged(full).drift(tau), 1e-5)
    assert ("energy" in merged(mixed).facts) is (len(thin) == 2)


def test_blocks_of_two_forms_are_refused_and_empty_ones_count_as_zero():
    model, name = encoder(), "first.bias"
    found, tau = factors(model, task("a")), direction(encoder(), "first.bias")
    table = Table(torch.ones(2).double(), torch.eye(3).double())
    for block in (table, Diagonal(torch.ones(6).double())):
        other = named(dataclasses.replace(found, blocks={**found.blocks, name: block}), "b")
        with pytest.raises(MismatchError, match=r"'first\.bias' are 'whole'.*same `kind`"):
            merged([found, other])
    nothing = Whole(torch.zeros(0, 0).double())
    other = named(dataclasses.replace(found, blocks={**found.blocks, name: nothing}), "b")
    close(merged([found, other]).drift(tau), found.drift(tau) / 2)
    assert merged([other, named(other, "c")]).blocks[name].matrix.numel() == 0


def test_thin_factors_are_the_same_at_full_energy_and_smaller_below():
    model, one = encoder(), task()
    found, tau = factors(model, one), direction(model)
    close(compressed(found, 1.0).drift(tau), found.drift(tau), 1e-5)
    thin = compressed(found, 0.6)
    assert thin.bytes < found.bytes
    assert float(thin.drift(tau)) < float(found.drift(tau))
    close(merged([thin, named(thin, "b")]).drift(tau), thin.drift(tau), 1e-5)
    assert thin.facts["energy"] == 0.6


def test_what_cannot_be_is_refused_with_a_repair(tmp_path):
    model, one = encoder(), task()
    found = factors(model, one)
    other = named(dataclasses.replace(found, base="x" * 64), "b")
    (tmp_path / "no.safetensors").write_bytes(b"no")
    ts.closed_form(model, one, ridge=1.0).vector.save_pretrained(tmp_path / "v.safetensors")
    words = task("w")
    texts = ts.Task.from_tensors(
        "texts", [], objective="next-token", train=(["a"], None), validation=(["a"], None), test=(["a"], None)
    )
    for error, told, ask in [
        (UsageError, "Did you mean 'reduce'", lambda: factors(model, one, "reduced")),
        (UsageError, "no logits", lambda: factors(model, texts)),
        (MismatchError, "same `params`", lambda: found.drift({"first.weight": torch.ones(6, 3)})),
        (UsageError, "at least one", lambda: merged([])),
        (UsageError, "the task 'a' is in 2 of", lambda: merged([found, found])),
        (UsageError, "would count as often", lambda: merged([merged([found, named(found, "b")]), found])),
        (BaseMismatchError, "two models", lambda: merged([found, other])),
        (MismatchError, "other kinds", lambda: merged([found, factors(model, words, "diagonal")])),
        (UsageError, "above 0", lambda: compressed(found, 0.0)),
        (UsageError, "no Kronecker", lambda: compressed(factors(model, one, "diagonal"))),
        (StoreError, "v.safetensors", lambda: Factors.load(tmp_path / "v.safetensors")),
        (StoreError, "no.safetensors", lambda: Factors.load(tmp_path / "no.safetensors")),
    ]:
        with pytest.raises(error, match=told):
            ask()


def test_a_model_without_layers_is_refused_with_the_way_out():
    class Mixed(nn.Module):
        """Attention of torch's own puts positions first."""

        def __init__(self):
            super().__init__()
            self.inner = nn.MultiheadAttention(4, 2, batch_first=True)
            self.first = nn.Linear(WIDE, 4)

        def forward(self, x):
            x = self.first(x)
            return self.inner(x, x, x, need_weights=False)[0].mean(1)

    with pytest.raises(ModelError, match="Take `Exact`"):
        factors(Encoder(Mixed().double()), task())


def test_a_damaged_file_is_told(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    file = factors(encoder(), task()).save(tmp_path / "f.safetensors")
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    tensors = load_file(file)
    for change in (
        {"facts": "{"}, {"facts": json.dumps({"kind": "reduce"})},
        {"facts": json.dumps({"kind": 1, "rows": 2, "tasks": 3})},
    ):  # fmt: skip
        save_file(tensors, tmp_path / "bad.safetensors", {**about, **change})
        with pytest.raises(StoreError, match="damaged"):
            Factors.load(tmp_path / "bad.safetensors")
    save_file({"x|what|y": torch.ones(1)}, tmp_path / "bad.safetensors", about)
    with pytest.raises(StoreError, match="damaged"):
        Factors.load(tmp_path / "bad.safetensors")
