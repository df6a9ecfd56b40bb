"""Infinite sequence models as baselines: every way measured, on rows of their own length."""

import pytest
import torch
from benchmarks import infinite

import tauspan as ts


def test_padding_counts_neither_in_means_nor_in_the_scale() -> None:
    positions = torch.tensor([[[1.0], [3.0], [100.0]], [[2.0], [100.0], [100.0]]])
    lengths = torch.tensor([2, 1])
    assert infinite.averaged(positions, lengths).flatten().tolist() == [2.0, 2.0]
    assert float(positions[infinite.own_positions(positions, lengths)].max()) == 3.0


@pytest.mark.slow
def test_every_baseline_is_measured() -> None:
    (task,) = ts.suite(["email_spam"])
    found = infinite.accuracies(ts.load("minilm"), task.subset(train=12, validation=4, test=8), 8, 0.1)
    nets = [f"{net}, {kind}" for net in ("RNN, last", "RNN, mean", "transformer") for kind in ("NNGP", "NTK")]
    assert list(found) == [*nets, "probe, mean embedding", "probe, features", "zero shot"]
    assert all(0 <= one <= 1 and (8 * one).is_integer() for one in found.values())
