"""benchmarks/geometry.py: rank correlations seed by seed, none where R2 is rounding, and groups of three tasks."""

import itertools

import pytest
from benchmarks import geometry


def row(regime: str, seed: int, r2: list[float], kept: list[float]) -> geometry.Row:
    """Three tasks: the three pairs, and all of them as a group."""
    tasks = ["a", "b", "c"]
    groups = [*map(list, itertools.combinations(tasks, 2)), tasks]
    found = [
        {"tasks": group, "R2": one, "own": 1 - one, "kept": two}
        for group, one, two in zip(groups, r2, kept, strict=True)
    ]
    return {"heads": "prompts", "regime": regime, "seed": seed, "groups": found}


ROUNDED = [1 - 1e-13, 1 - 2e-13, 1 - 3e-13, 1.0]
ROWS = [
    row("standard", 0, [0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.1]),
    row("standard", 1, [0.1, 0.2, 0.3, 0.4], [0.5, 0.7, 0.6, 0.1]),
    row("linear", 0, ROUNDED, [0.5, 0.6, 0.7, 0.1]),
    row("linear", 1, ROUNDED, [0.5, 0.6, 0.7, 0.1]),
]


def test_seeds_are_not_pooled() -> None:
    pairs, triple, *_ = geometry.correlations(ROWS)
    assert (pairs["regime"], pairs["tasks"], pairs["groups"]) == ("standard", 2, 3)
    assert pairs["R2 with kept"] == "0.75 (0.50 to 1.00)"
    assert pairs["own with kept"] == "-0.75 (-1.00 to -0.50)"
    assert not [name for line in (pairs, triple) for name in line if name.startswith("p ")]
    assert (triple["tasks"], triple["R2"], triple["R2 with kept"]) == (3, "0.400 ± 0.000", None)


def test_r2_that_is_one_up_to_rounding_has_no_correlation() -> None:
    pairs = geometry.correlations(ROWS)[2]
    assert (pairs["regime"], pairs["R2"], pairs["R2 with kept"]) == ("linear", "1.000 ± 0.000", None)
    groups = ROWS[0]["groups"][:3]
    assert geometry.rank_correlation(groups, "R2") == pytest.approx(1.0)
    assert geometry.rank_correlation(groups[:2], "R2") is None
    assert geometry.rank_correlation([{**one, "kept": 0.5} for one in groups], "R2") is None


@pytest.mark.long
def test_groups_of_two_and_three_tasks_are_measured(tmp_path, capsys) -> None:
    tasks = ["email_spam", "movie_sentiment", "tweet_sentiment", "news_recreation"]
    options = ["--steps", "1", "--rows", "16", "--test", "6", "--seeds", "0", "--params", "last:1"]
    geometry.main(["--tasks", *tasks, *options, "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "| prompts | standard | 3 | 4 |" in printed
    assert "| orthogonal | linear | 2 | 6 |" in printed
    assert "nan" not in printed
    geometry.main(["--tasks", *tasks, *options, "--out", str(tmp_path)])  # reads what is finished
    assert capsys.readouterr().out == printed
