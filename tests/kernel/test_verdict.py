"""Verdicts of diagnostics on made-up cases: what is said follows the documented rules, and no more is said than that."""

import io
import re
from math import comb
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from scipy.stats import binomtest
from torch import Tensor, nn

from tauspan import Head, Task, TaskVector, diagnose, load
from tauspan.core.report import Report
from tauspan.kernel import Interference
from tauspan.kernel.diagnose import TaskInterference, TaskPairs, TaskPath, TaskSpectrum, kernel_report
from tauspan.kernel.diagnose.lazy import Linearity, posthoc_gap
from tauspan.kernel.diagnose.spectra import CumulativePower
from tauspan.kernel.diagnose.verdict import (
    CARRIES,
    LEVEL,
    disturbance_in_words,
    disturbances,
    holm,
    kernels_in_words,
    reach_in_words,
    sign_test,
)
from tauspan.kernel.solvers.estimates import exactly
from tauspan.models import fingerprint_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "verdicts.md"

# -- which tasks disturb each other --------------------------------------------------------------------------------


def between(rows: int = 20, **spoilt: tuple[int, int]) -> TaskInterference:
    """Tasks a, b, c, whose own vectors are right on the first half of the rows; with `ab=(5, 2)` the vector of b makes 5
    right rows of a wrong, and 2 wrong ones right."""
    names, changes, start, labels = ("a", "b", "c"), {}, {}, {}
    for on in names:
        right = torch.arange(rows) < rows // 2
        own = torch.where(right, 1.0, -1.0)
        start[on], labels[on] = torch.zeros(rows, 2), torch.zeros(rows, dtype=torch.long)
        changes[on, on] = torch.stack([own, -own], 1)
        for by in names:
            if by != on:
                lost, gained = spoilt.get(on + by, (0, 0))
                moved = torch.zeros(rows)
                moved[:lost] = -2.0
                moved[rows // 2 : rows // 2 + gained] = 2.0
                changes[on, by] = torch.stack([moved, -moved], 1)
    found = Interference(tasks=names, changes=changes)
    return TaskInterference(found, found.accuracies(start, labels), found.by_class(labels))


def test_lost_and_gained_rows_are_counted_and_tested() -> None:
    first, second, *rest = disturbances(between(40, ab=(12, 1), ca=(3, 2)))
    assert (first.on, first.by, first.lost, first.gained, first.rows) == ("a", "b", 12, 1, 40)
    assert (first.before, first.after) == (0.5, pytest.approx(0.5 - 11 / 40))
    assert first.chance == binomtest(12, 13, 0.5, alternative="greater").pvalue
    assert (second.on, second.by, second.lost, second.gained) == ("c", "a", 3, 2)
    assert [pair.beyond_chance for pair in (first, second, *rest)] == [True, *[False] * 5]
    assert first.moved == pytest.approx((13 * 4 / 40) ** 0.5)


def test_a_pair_beyond_chance_is_named_with_its_numbers() -> None:
    words = disturbance_in_words(between(40, ab=(12, 1)))
    assert words.startswith(
        "By the tangent model, 1 ordered pair of 6 is disturbed beyond chance: a by b's vector, "
    )
    assert "accuracy 0.500 to 0.225 (12 of 40 rows lost, 1 gained)" in words
    assert "moves the logits there 1.14 times as far as a's own" in words


def test_what_few_rows_could_show_by_chance_is_no_disturbance() -> None:
    words = disturbance_in_words(between(8, ab=(4, 0)))  # half of all right rows, and still chance
    assert words.startswith("On these rows no task disturbs another beyond chance (6 ordered pairs): ")
    assert (
        "the largest predicted loss is of a by b's vector, accuracy 0.500 to 0.000 (4 of 8 rows lost" in words
    )
    assert "is disturbed" not in words


def test_gains_are_no_disturbance() -> None:
    words = disturbance_in_words(between(40, ab=(0, 15)))
    assert words == (
        "On these rows no task disturbs another beyond chance (6 ordered pairs; the tangent model predicts no loss of "
        "accuracy)."
    )


def test_many_pairs_are_counted_and_the_worst_named() -> None:
    words = disturbance_in_words(between(60, ab=(20, 0), ba=(18, 0), ca=(16, 0), bc=(17, 0)))
    assert words.startswith(
        "By the tangent model, 4 ordered pairs of 6 are disturbed beyond chance: a by b's vector"
    )
    assert words.endswith("; and 1 more pair.")


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (3, 0), (5, 4), (0, 7), (30, 12)])
def test_the_sign_test_is_scipys(lost: int, gained: int) -> None:
    count = lost + gained
    wanted = binomtest(lost, count, 0.5, alternative="greater").pvalue if count else 1.0
    assert sign_test(lost, gained) == pytest.approx(wanted, rel=1e-12)


def test_under_no_effect_any_pair_is_called_disturbed_no_oftener_than_the_level() -> None:
    """All outcomes of six independent pairs with 12 changed rows each, by their probabilities."""
    weights = [comb(12, lost) / 2**12 for lost in range(13)]
    passing = [lost for lost in range(13) if holm([sign_test(lost, 12 - lost)] + [1.0] * 5)[0]]
    alone = sum(weights[lost] for lost in passing)
    assert 0 < 1 - (1 - alone) ** 6 <= LEVEL


# -- how far the tangent model carries -----------------------------------------------------------------------------


def path(
    task: str, *relative: float, scales: tuple[float, ...] = (0.25, 0.5, 1.0), tangent: float = 1.0
) -> TaskPath:
    """A path with these relative errors at these scales."""
    start, slope = torch.zeros(4, 2).double(), torch.full((4, 2), tangent).double()
    moved = torch.stack([s * slope + s * tangent * e for s, e in zip(scales, relative, strict=True)])
    found = Linearity(scales, start, slope, moved, 1e-16)
    gap = posthoc_gap(start, slope, moved[-1] + 1e-9, torch.zeros(4, dtype=torch.long))
    number = exactly(0.0)
    return TaskPath(task, "linear", 1.0, number, found, gap, number, number)


def test_a_tangent_model_that_carries_is_said_to() -> None:
    words = reach_in_words([path("a", 0.01, 0.02, 0.04), path("b", 0.02, 0.05, 0.09)])
    assert words == (
        "The tangent model carries along the whole vectors: at s = 1 its error is at most 0.090 of |J tau| (b)."
    )


def test_where_it_stops_is_the_last_tested_scale_before_the_first_larger_error() -> None:
    words = reach_in_words(
        [path("a", 0.01, 0.02, 0.3), path("b", 0.2, 0.05, 0.4), path("c", 0.02, 0.06, 0.09)]
    )
    assert words == (
        "The tangent model stays within 10 % of |s J tau| up to s = 1 for c; up to s = 0.5 for a; at no tested s for b; "
        "at the whole vector its error is 0.090 to 0.400 of |J tau| (largest: b)."
    )


def test_the_bound_itself_still_carries_and_scales_above_one_do_not_count() -> None:
    scales = (0.5, 1.0, 2.0)
    assert "carries along the whole" in reach_in_words([path("a", 0.0, CARRIES - 1e-12, 5.0, scales=scales)])
    assert "carries along the whole" in reach_in_words([path("a", 0.0, 0.05, 0.05, scales=scales)])
    assert "stays within" in reach_in_words([path("a", 0.0, CARRIES + 1e-9, 0.0, scales=scales)])


def test_vectors_that_move_nothing_say_nothing_of_reach() -> None:
    still = path("a", 0.0, 0.0, 0.0, tangent=0.0)
    assert "not known" in reach_in_words([still])


# -- kernels alone -------------------------------------------------------------------------------------------------


def spectrum(task: str, half: int, count: int = 20) -> TaskSpectrum:
    values = torch.arange(count, 0, -1).double()
    power = CumulativePower(values, values, values, half)
    return TaskSpectrum(task, count, Any, power, exactly(0.5), None, None)  # type: ignore[arg-type]


def test_kernels_name_the_most_and_least_alike_tasks_and_promise_nothing() -> None:
    table = torch.tensor([[1.0, 0.5, 0.25], [0.5, 1.0, 0.125], [0.25, 0.125, 1.0]]).double()
    pairs = TaskPairs(["a", "b", "c"], table, table, 5)
    words = kernels_in_words([spectrum("a", 7), spectrum("b", 3), spectrum("c", 10)], pairs)
    assert (
        "of a and b are the most alike (cross-task alignment 0.500), those of b and c the least (0.125)"
        in words
    )
    assert "of b in the first 3 of 20; of c in the first 10 of 20 eigenvectors" in words
    assert "Whether vectors do disturb is what `diagnose` measures." in words
    alone = kernels_in_words([spectrum("a", 7)], None)
    assert alone == "Half of the labels lies, of a in the first 7 of 20 eigenvectors of the task's kernel."
    two = kernels_in_words(
        [spectrum("a", 7), spectrum("b", 3)], TaskPairs(["a", "b"], table[:2, :2], table, 5)
    )
    assert "the least" not in two


# -- whole outputs -------------------------------------------------------------------------------------------------


def problem(names: tuple[str, ...]) -> tuple[Any, dict[Task, TaskVector]]:
    """A small net, and a task and a vector for each name."""
    torch.manual_seed(1)
    encoder = load(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double())
    base, vectors = fingerprint_of(encoder), {}
    for place, name in enumerate(names):
        made = torch.Generator().manual_seed(place)

        def normal(*shape: int, made: torch.Generator = made) -> Tensor:
            return torch.randn(*shape, generator=made, dtype=torch.float64)

        rows = (normal(10, 4), torch.arange(10) % 2)
        task = Task.from_tensors(
            name, ["no", "yes"], head=Head(normal(2, 3)), train=rows, validation=rows, test=rows
        )
        deltas = {of: 0.1 * normal(*theta.shape) for of, theta in encoder.backbone.named_parameters()}
        vectors[task] = TaskVector(deltas, base, "standard", name)
    return encoder, vectors


SUITE = ("news_computing", "news_science_society", "movie_sentiment", "tweet_sentiment", "email_spam")


@pytest.fixture(scope="module", params=["diagnose", "kernel", "diagnose two"])
def report(request: pytest.FixtureRequest) -> Report:
    encoder, vectors = problem(SUITE[:2] if request.param.endswith("two") else SUITE)
    if request.param == "kernel":
        return kernel_report(encoder, list(vectors), rows=6).report()
    return diagnose(encoder, vectors, rows=6).report()


def terminal(report: Report) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(report.renderable())
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_outputs_begin_with_the_verdict(report: Report) -> None:
    begin = " ".join(report.verdict.split()[:6])
    assert begin
    assert terminal(report).startswith(begin)
    assert report.to_markdown().splitlines()[2].startswith(begin)
    assert Report.from_json(report.to_json()) == report


def test_acronyms_are_spelled_out_once(report: Report) -> None:
    text = " ".join(report.to_markdown().partition("## Provenance")[0].split())
    whole = {
        "KTA": "kernel-target alignment",
        "CKA": "centred kernel alignment",
        "LGA": "label-gradient alignment",
    }
    for short, long in whole.items():
        assert len(re.findall(rf"{short}, {long}", text)) == 1
    for short in ("NTK", "KKT", "RMS"):
        assert short not in text


def test_tables_fit_eighty_columns_and_no_word_is_broken(report: Report) -> None:
    shown, written = terminal(report), report.to_markdown().partition("## Provenance")[0]
    assert max(map(len, shown.splitlines())) <= 80
    assert max(map(len, written.splitlines())) <= 80
    for table in report.tables:
        words = {
            word
            for row in table.rows
            for cell in row.values()
            if isinstance(cell, str)
            for word in cell.split()
        }
        words |= {word for name in table.columns for word in name.split()}
        for text in (shown, written):
            assert {
                word for word in words - {"±"} if word not in text and word.strip("0") not in text
            } == set()


def test_the_typed_result_has_the_verdict_and_a_short_repr() -> None:
    encoder, vectors = problem(SUITE[:2])
    found = diagnose(encoder, vectors, rows=6)
    assert found.verdict == found.report().verdict
    assert repr(found) == "Diagnosis(news_computing, news_science_society; with their vectors)"
    disturbed = found.report().result["disturbed"]
    assert {(pair["on"], pair["by"]) for pair in disturbed} == {SUITE[:2], SUITE[1::-1]}


def test_the_rules_are_written_down_with_their_numbers() -> None:
    page = " ".join(PAGE.read_text("utf-8").split())
    for fact in ("sign test", "Holm", f"{100 * LEVEL:g} %", f"{100 * CARRIES:g} %", "cross-task alignment"):
        assert fact in page
