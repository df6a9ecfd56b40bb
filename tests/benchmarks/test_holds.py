"""What `benchmarks.holds` makes of its cases: ranks and calibrations, where the answer is known."""

import pytest
from benchmarks.holds import calibrated, correlations, levels


def case(model, number, seed=0):
    """An error of 0.01 * 2^number, that `expected` is three times of, as a power; `travel` knows nothing of models."""
    error = 0.01 * 2**number
    known = {"expected": 3 * error**0.5, "expected gap": error, "length": 1.0 + number, "agreement": -error}
    travel = number + 1.0 + 10 * (model == "b")
    return {"key": f"{model} {number}", "model": model, "seed": seed, "error": error, "gap": error,
            "advantage": -error, "travel": travel, **known}  # fmt: skip


CASES = [case(model, number) for model in "abc" for number in range(5)]


def test_a_power_law_is_calibrated_exactly_from_the_other_models():
    for row in calibrated(CASES):
        assert row["b"] == pytest.approx(2)
        assert row["factor, calibrated"] == pytest.approx(1)
        assert row["right, calibrated"] == row["cases"] == 5
        assert row["held"] == 4
        assert row["factor, as it is"] > 2
    expected, travel, _ = levels(CASES)
    assert expected["factor, calibrated"] == pytest.approx(1)
    assert expected["right, calibrated"] == 15 > travel["right, calibrated"]


def test_ranks_are_of_the_seeds_that_have_all_cases():
    more = [case("a", number, seed=1) for number in range(5)]  # of one model alone
    rows = {row["known before"]: row for row in correlations([*CASES, *more])}
    assert rows == {row["known before"]: row for row in correlations(CASES)}
    assert rows["expected"]["with error"] == "1.00 [1.00, 1.00]"
    assert rows["agreement"]["with advantage"] == "-1.00 [-1.00, -1.00]"
