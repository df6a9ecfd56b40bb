"""The examples on the kernels of wide nets run, and find what their papers claim."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


@pytest.mark.slow
def test_the_kernels_error_falls_with_the_root_of_the_width(capsys):
    slope, gap = example("ntk_width")(widths=(64, 256, 1024), seeds=12)
    assert -0.56 < slope < -0.44
    assert gap < 1e-10
    assert "| 1024 |" in capsys.readouterr().out


@pytest.mark.slow
def test_permutations_are_learned_exactly(capsys):
    infinite, ensembles = example("permutations")(members=20, width=1000)
    assert [row["k"] for row in infinite] == [4, 6, 8, 10]
    assert [row["right by sign"] for row in infinite] == [2**k - 1 for k in (4, 6, 8, 10)]
    assert [round(row["smallest one"], 3) for row in infinite] == [0.638, 0.551, 0.490, 0.444]
    assert max(abs(row["largest zero"]) for row in infinite) < 1e-14
    assert max(row["off the formula"] for row in infinite) < 1e-12
    assert ensembles[0]["members"] == 10
    assert ensembles[0]["right, rounded at half"] > ensembles[0]["right, rounded at 0"]
    assert "right by sign" in capsys.readouterr().out


@pytest.mark.long
def test_an_ensemble_of_wide_nets_learns_permutations():
    _, ensembles = example("permutations")()
    assert [row["right, rounded at half"] for row in ensembles] == [1.0, 1.0, 1.0]
    assert ensembles[-1]["largest deviation"] < 0.1


@pytest.mark.slow
def test_poles_and_deep_classifiers(capsys):
    poles, classes = example("wide_and_deep")()
    for row, alpha in zip(poles, (2.0, 1.5178, 4.5379), strict=True):
        assert row["predicted"] == pytest.approx(alpha, abs=5e-5)
        assert row["measured"] == pytest.approx(alpha, abs=1e-4)
        assert row["raw kernel, depth 60"] == pytest.approx(alpha + 2, abs=2e-3)
    kinds = ["majority vote", "nearest neighbour", "singular kernel", "singular kernel"]
    assert [row["limit"] for row in classes] == kinds
    assert min(row["agrees with the limit"] for row in classes) > 0.9
    assert "4.5379" in capsys.readouterr().out


def test_soft_margin_training_is_a_support_vector_machine():
    found = example("nn_svm")(width=64, steps=200, falling=(200,))
    assert found.functions < 1e-12
    assert found.vectors < 1e-12
    assert found.flips == (0, 1)


@pytest.mark.slow
def test_a_start_of_a_sinusoidal_net_is_forecast(capsys, tmp_path):
    bands = example("spectral_bottleneck")(
        seeds=2, samples=64, width=16, steps=20, grid={"s0": [0.0, 50.0], "s1": [0.0, 0.3]}
    )
    assert list(bands) == ["low band", "high band"]
    for band in bands.values():
        assert [row["start"] for row in band.rows][:3] == ["no noise", "forecast", "best of the grid"]
        assert len(band.correlations) == 4
        assert [one["title"] for one in band.report().series][2:] == [
            "trained by Adam, training rows", "trained by Adam, held-out rows",
        ]  # fmt: skip
    assert "psi 0.7" in capsys.readouterr().out


@pytest.mark.slow
def test_recurrent_nets_start_at_low_rank(capsys):
    runs = example("rank_of_start")(ranks=(1, 8), units=8, seeds=2, steps=4, goal=0.9)
    assert {(run.rank, run.keep) for run in runs} == {(1, "frobenius"), (1, "spectral"), (8, "frobenius")}
    assert all(0 < run.end["kernel alignment"] <= 1 for run in runs)
    assert "Spectral norm kept" in capsys.readouterr().out


@pytest.mark.long
def test_minilm_starts_at_low_rank(capsys):
    (one, other) = example("rank_of_minilm")(ranks=(8,), seeds=1, steps=1, rows=4)
    assert (one["norm kept"], other["norm kept"]) == ("frobenius", "spectral")
    assert one["entropy rank"] == other["entropy rank"]
    assert "one seed" in capsys.readouterr().out
