"""Ranks of a start and starts of low rank: against numpy, chance, and the theory of two-layer linear nets."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn

from helpers import tiny, zoo
from tauspan.core.errors import MismatchError, NonFiniteError, UsageError
from tauspan.core.reading import Reading
from tauspan.kernel import DenseKernel, TangentKernel
from tauspan.kernel.diagnose import (
    KernelSettings,
    effective_ranks,
    kernel_distance,
    low_rank_start,
    start_ranks,
    task_gradient,
)
from tauspan.models import Encoder, fingerprint_of
from tauspan.tasks import Task, build_head

# -- ranks ---------------------------------------------------------------------------------------------------


def test_ranks_are_those_of_the_singular_values():
    module = nn.Sequential(nn.Linear(5, 4), nn.Conv1d(3, 2, 2)).double()
    found = start_ranks(module)
    assert [one.name for one in found.matrices] == ["0.weight", "1.weight"]
    for one in found.matrices:
        matrix = dict(module.named_parameters())[one.name].detach().numpy().reshape(one.shape)
        values = np.linalg.svd(matrix, compute_uv=False)
        shares = values**2 / np.sum(values**2)
        assert one.entropy == pytest.approx(np.exp(-np.sum(shares * np.log(shares))))
        assert one.stable == pytest.approx(np.linalg.norm(matrix) ** 2 / np.linalg.norm(matrix, 2) ** 2)
        assert (one.frobenius, one.spectral) == pytest.approx((np.linalg.norm(matrix), values[0]))
        ranks = effective_ranks(DenseKernel(torch.from_numpy(matrix @ matrix.T)))
        assert (one.entropy, one.stable) == pytest.approx((ranks.entropy.value, ranks.stable.value))
    assert found.matrices[1].shape == (2, 6)
    assert "0.weight" in found.verdict
    assert found.report().to_json()


def test_a_gradient_in_the_leading_vectors_is_told_from_chance():
    layer = nn.Linear(12, 8, bias=False).double()
    left, _, right = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    (own,) = start_ranks(layer, gradient={"weight": left[:, :2] @ right[:2]}, top=2).matrices
    assert (own.alignment.left, own.alignment.right) == pytest.approx((1, 1))
    (last,) = start_ranks(layer, gradient={"weight": torch.outer(left[:, 0], right[7])}, top=2).matrices
    assert (last.alignment.left, last.alignment.right) == pytest.approx((1, 0), abs=1e-12)
    drawn = [
        start_ranks(layer, gradient={"weight": zoo.normal(8, 12, seed=seed)}, top=2) for seed in range(30)
    ]
    for side, chance in (("left", 2 / 8), ("right", 2 / 12)):
        shares = [getattr(one.matrices[0].alignment, side) for one in drawn]
        assert abs(np.mean(shares) - chance) < 4 * np.std(shares) / 30**0.5
        assert getattr(drawn[0].matrices[0].alignment, f"{side}_by_chance") == chance
    text = start_ranks(layer, gradient={"weight": left[:, :2] @ right[:2]}, top=2)
    assert "4.9 times as much as by chance in weight" in text.verdict  # sqrt(4 x 6)
    assert text.rows()[0]["left"] == "1.000 of 0.250"
    (none,) = start_ranks(layer, gradient={"weight": torch.zeros(8, 12)}).matrices
    assert none.alignment is None


def test_the_gradient_of_a_task_is_that_of_its_summed_loss():
    encoder = Encoder(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double())
    x, labels = zoo.normal(12, 3, seed=2), torch.arange(12) % 3
    task = Task.from_tensors(
        "toy", ["a", "b", "c"], train=(x, labels), validation=(x, labels), test=(x, labels)
    )
    found = task_gradient(encoder, task, settings=KernelSettings(rows=12, reading=Reading(batch_size=5)))
    head = build_head(task, encoder)
    loss = nn.functional.cross_entropy(head(encoder(x)), labels, reduction="sum")
    names = [name for name, _ in encoder.backbone.named_parameters()]
    wanted = torch.autograd.grad(loss, list(encoder.backbone.parameters()))
    assert list(found) == names
    assert zoo.all_close(found, dict(zip(names, wanted, strict=True)), 1e-9)
    assert start_ranks(encoder, gradient=found).matrices[0].alignment.count == 3


def test_what_has_no_rank_is_refused():
    module = tiny.mlp()
    with pytest.raises(UsageError, match="top=0"):
        start_ranks(module, top=0)
    with pytest.raises(UsageError, match="picks no matrix of Sequential"):
        start_ranks(module, "*.bias")
    with pytest.raises(MismatchError, match=r"'weight', and they begin with '0.weight'"):
        start_ranks(module, gradient={"weight": torch.ones(4, 3)})
    with pytest.raises(MismatchError, match=r"'0.weight' has shape \(3, 4\), and the matrix \(4, 3\)"):
        start_ranks(module, gradient={"0.weight": torch.ones(3, 4)})
    with pytest.raises(NonFiniteError):
        start_ranks(module, gradient={"0.weight": torch.full((4, 3), math.nan)})
    nn.init.zeros_(module[2].weight)
    with pytest.raises(UsageError, match=r"'2.weight' is zero.*`params=\[...\]`"):
        start_ranks(module)
    assert start_ranks(module, ["0.weight"]).matrices[0].alignment is None


# -- starts of low rank --------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["frobenius", "spectral"])
def test_a_low_rank_start_keeps_one_norm_and_the_leading_space(keep):
    encoder = Encoder(nn.Sequential(nn.Linear(7, 6), nn.Conv1d(2, 4, 3)).double(), source="toy")
    before = fingerprint_of(encoder)
    made = low_rank_start(encoder, 2, keep=keep)
    assert fingerprint_of(encoder) == before != fingerprint_of(made)
    assert made.source == "toy with matrices of rank 2"
    for (name, old), (_, new) in zip(
        encoder.backbone.named_parameters(), made.backbone.named_parameters(), strict=True
    ):
        if name.endswith("bias"):
            assert torch.equal(old, new)
            continue
        one, other = (tensor.detach().flatten(1).numpy() for tensor in (old, new))
        kept = (lambda m: np.linalg.norm(m, 2)) if keep == "spectral" else np.linalg.norm
        assert kept(other) == pytest.approx(kept(one))
        left, values, right = np.linalg.svd(one, full_matrices=False)
        truncated = (left[:, :2] * values[:2]) @ right[:2]
        assert np.allclose(other / np.linalg.norm(other), truncated / np.linalg.norm(truncated))


def test_only_the_named_matrices_lose_rank_and_full_rank_changes_nothing():
    module = tiny.mlp()
    made = low_rank_start(module, 1, ["0.weight"])
    assert int(torch.linalg.matrix_rank(made[0].weight)) == 1
    assert torch.equal(made[2].weight, module[2].weight)
    whole = low_rank_start(module, 99)
    assert all(torch.allclose(a, b) for a, b in zip(whole.parameters(), module.parameters(), strict=True))
    classifier = low_rank_start(zoo.classifier(zoo.mlp()), 1)
    assert classifier.encoder.source.endswith("with matrices of rank 1")
    with pytest.raises(UsageError, match="rank=0: at least 1"):
        low_rank_start(module, 0)
    with pytest.raises(UsageError, match=r"keep='spectrl'\. Did you mean 'spectral'"):
        low_rank_start(module, 1, keep="spectrl")


# -- theory: two linear layers, whitened rows ----------------------------------------------------------------


class Linear2(nn.Module):
    """The function w2^T W1 x."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.from_numpy(one)) for one in (first, second))

    def forward(self, x):
        return x @ self.first.T @ self.second[:, None]


def flowed(first, beta, time=40.0):
    """W1 and w2 after gradient flow of 1/2 |W1^T w2 - beta|^2 from w2 = 0: the squared loss on whitened rows."""
    units, size = first.shape

    def slope(_, state):
        w1, w2 = state[units:].reshape(units, size), state[:units]
        missing = beta - w1.T @ w2
        return np.concatenate([w1 @ missing, np.outer(w2, missing).ravel()])

    begun = np.concatenate([np.zeros(units), first.ravel()])
    end = solve_ivp(slope, (0, time), begun, method="LSODA", rtol=1e-8, atol=1e-9).y[:, -1]
    return end[units:].reshape(units, size), end[:units]


def kernel(first, second):
    """Of whitened rows, in the basis of the inputs: W1^T W1 + |w2|^2 I."""
    return first.T @ first + second @ second * np.eye(first.shape[1])


def cosine(one, other):
    return float(np.sum(one * other) / np.linalg.norm(one) / np.linalg.norm(other))


def start(values, seed):
    """A square matrix with these singular values, |W1|_F = 2.5, and random singular vectors."""
    size, draw = len(values), np.random.default_rng(seed)
    left, right = (np.linalg.qr(draw.standard_normal((size, size)))[0] for _ in range(2))
    scaled = np.asarray(values, dtype=float)
    return (left * (2.5 * scaled / np.linalg.norm(scaled))) @ right


def test_the_flow_of_two_linear_layers_conserves_and_its_kernel_is_that_of_the_library():
    first, beta = start([3, 1, 1, 0.2], 0), np.array([1.0, -2.0, 0.5, 0.3])
    w1, w2 = flowed(first, beta)
    assert np.allclose(w1.T @ w2, beta, atol=1e-6)
    assert np.allclose(w1 @ w1.T - np.outer(w2, w2), first @ first.T, atol=1e-6)
    rows = torch.from_numpy(np.linalg.qr(np.random.default_rng(1).standard_normal((4, 4)))[0])
    kernels = [TangentKernel(Linear2(a, b), rows) for a, b in ((first, np.zeros(4)), (w1, w2))]
    basis = rows.numpy()
    assert np.allclose(kernels[1].dense(), basis @ kernel(w1, w2) @ basis.T)
    turned = 1 - cosine(kernel(first, np.zeros(4)), kernel(w1, w2))
    assert kernel_distance(*kernels).value == pytest.approx(turned)


def test_equal_singular_values_are_laziest_over_random_tasks_and_an_aligned_low_rank_start_is_the_exception():
    size = 4
    spectra = {"equal": [1, 1, 1, 1], "falling": [1, 0.5, 0.25, 0.125], "one": [1, 1e-3, 1e-3, 1e-3]}
    draw = np.random.default_rng(5)
    betas = [beta / np.linalg.norm(beta) for beta in draw.standard_normal((8, size))]
    means = {}
    for name, values in spectra.items():
        found = []
        for seed, beta in enumerate(betas):
            first = start(values, seed)
            found.append(cosine(kernel(first, np.zeros(size)), kernel(*flowed(first, beta))))
        means[name] = float(np.mean(found))
    assert means["equal"] > means["falling"] + 0.01 > means["one"] + 0.02
    beta = betas[0]
    aligned = 2.5 * np.outer(np.eye(size)[0], beta)  # rank one, its right singular vector is the task's
    lazy = cosine(kernel(aligned, np.zeros(size)), kernel(*flowed(aligned, beta)))
    random = cosine(
        kernel(start([1, 1, 1, 1], 0), np.zeros(size)), kernel(*flowed(start([1, 1, 1, 1], 0), beta))
    )
    assert lazy > random
