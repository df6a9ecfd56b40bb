"""Pictures of reports: what they show, with missing numbers too; axes named, letters readable, one meaning a colour."""

import importlib
import itertools
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tauspan.core.errors import MissingExtraError, UsageError
from tauspan.core.report import Report, Table
from tauspan.core.results import Result
from tauspan.experiments import figures
from tauspan.experiments.run import Addition
from tauspan.experiments.run.spread import one_series, stems

TASKS = ["movie_sentiment", "news_science_society", "email_spam", "debian_section"]
REGIMES = ("standard", "posthoc", "linear")


def bars(column: str, **more: Any) -> dict[str, Any]:
    row = {"zero shot": 0.5, "single": 0.0, "added": 0.25, "added norm.": None}
    whole = {"zero shot": 0.5, "single": 0.5, "added": 0.5, "added norm.": 1.0}
    means = {"standard": {"a": row, "mean": {**row, "single": None}}, "mine": {"a": whole, "mean": whole}}
    return {
        "kind": "bars", "group": "addition", "title": column, "column": column, "means": means, "caption": "one model",
        "joint": [0.5, None], **more,
    }  # fmt: skip


def runs(best: float = 0.5) -> list[dict[str, Any]]:
    """Three seeds of a search: the criterion of seed s at alpha a is a + s / 10."""
    return [
        {"seed": seed, "best": best + seed / 4, "points": [
            {"alpha": a / 4, **dict.fromkeys(TASKS, 0.5 + a / 10), "mean normalised": a / 4 + seed / 10} for a in range(5)
        ]} for seed in range(3)
    ]  # fmt: skip


def alpha(regime: str, **more: Any) -> dict[str, Any]:
    one = {"kind": "alpha", "group": "alpha-addition", "title": f"addition, {regime}", **runs()[0]}
    return {**one, "seeds": runs(), **more}


def xi(regime: str, top: float, pair: tuple[str, str] = ("one", "two")) -> dict[str, Any]:
    values = [[0.0, top], [None, top / 2]]
    return {
        "kind": "xi", "group": "-".join(["xi", *pair]), "title": regime, "tasks": list(pair), "box": [0.0, 1.0],
        "grid": [[0.0, 1.0], [0.0, 1.0]], "xi": values, "mean": 0.1, "mean_stderr": 0.01,
    }  # fmt: skip


def everything() -> Report:
    """A report with a series of every kind, with long names."""
    point = {"control": 0.8, "target": 0.5}
    tested = {**point, "target_interval": [0.4, 0.6], "control_interval": None}
    front = {
        "kind": "front", "title": "Negation front of email_spam, linear", "floor": 0.7, "points": [point, point],
        "best": point, "grid": [point], "tested": [tested],
    }  # fmt: skip
    series: list[dict[str, Any]] = [bars("added"), bars("added norm."), *map(alpha, REGIMES), front]
    series += [
        {**alpha(regime), "group": "alpha-negation", "floor": 0.7, "title": f"Negation of email_spam, {regime}",
         "points": [{"alpha": a, "target": a, "control": 1.0} for a in (0, 1)], "seeds": None}
        for regime in REGIMES
    ]  # fmt: skip
    series += [xi(regime, 0.5, (TASKS[0], TASKS[1])) for regime in REGIMES]
    for task in TASKS:
        series += [
            {"kind": "spectrum", "group": "spectrum", "title": task, "values": [2.0, 1.0, 0.0], "shares": [0.5, 0.75, 1]},
            {"kind": "energy", "group": "energy", "title": task, "support": [1.0, 2.0], "held_out": [1.0],
             "control": [0.5], "ratio": 0.3},
            {"kind": "linearity", "group": "linearity", "title": task, "scales": [0.5, 1.0], "relative": [0.1, 0.2]},
            {"kind": "widths", "group": "coordinates", "title": task, "widths": [64, 256], "values": [0.1, None],
             "step": 3},
        ]  # fmt: skip
    matrix = [[1.0, None, 0.5, 0.25]] * 4
    series += [{"kind": "heat", "group": "heat", "title": name, "tasks": TASKS, "values": matrix, "measure": name,
                "across": "vector of", "upward": "rows of"} for name in ("one", "two")]  # fmt: skip
    paths = ("net, train", "tangent, train", "predicted, test")
    series += [{"kind": "trajectory", "group": "trajectory", "title": f"alpha {alpha}", "steps": [0, 1, 10],
                "losses": {path: [1.0, 0.5, 0.1] for path in paths},
                "errors": {path: [None, 0.01, 0.2] for path in paths[1:]},
                "kernel": {"alignment": [0.1, 0.1, 0.2], "relative change": [0.0, 0.1, 0.2]}, "tolerance": 0.1,
                "between": [1, 10], "leaves": 5.0} for alpha in (1, 2)]  # fmt: skip
    grid = [
        {"width": a, "noise": b, "value": a * b or None, "error": 0.1}
        for a in (1.0, 2.0)
        for b in (0.0, 30.0)
    ]
    lists = [("noise",), ("width", "noise"), ("width", "noise")]
    tried = [[{**one, "noise": 1.0 + one["noise"]} for one in grid[:2]], grid, grid[1:]]
    series += [
        {"kind": "starts", "group": "starts", "title": f"predicted {place}", "names": list(names), "points": points,
         "chosen": {name: points[-1][name] for name in names}, "measure": "mean squared error"}
        for place, (names, points) in enumerate(zip(lists, tried, strict=True))
    ]  # fmt: skip
    series.append({
        "kind": "ways", "group": "made", "title": "ways, 2 seeds", "measure": "test accuracy, mean over tasks",
        "rows": {name: {"single": [0.8, 0.9], "sum": [0.7, None]} for name in ("linear-exact", "superposed")},
        "references": {"joint-standard": 0.9, "pre-trained": 0.5},
    })  # fmt: skip
    return Report("all", [], series=series)


@pytest.fixture(scope="module")
def drawn() -> figures.Figures:
    pytest.importorskip("matplotlib")
    return everything().plot()


# -- all pictures ------------------------------------------------------------------------------------------------


def test_every_kind_of_series_is_tried_here() -> None:
    assert {one["kind"] for one in everything().series} == set(figures.PICTURES)


def test_every_axis_and_colour_bar_is_named(drawn: figures.Figures) -> None:
    for name, figure in drawn.items():
        for axes in figure.axes:
            bar = axes.get_label() == "<colorbar>"
            shared = axes.get_shared_y_axes().get_siblings(axes)
            if not bar and axes.yaxis.get_label_position() == "left":
                assert any(one.get_ylabel() for one in shared), name
            else:
                assert axes.get_ylabel() or not bar, name
            below = axes.get_xlabel() or name.startswith("alpha")
            assert bar or below or axes.yaxis.get_label_position() == "right", name
        last = [one for one in figure.axes if one.get_subplotspec() and one.get_subplotspec().is_last_row()]
        assert any(axes.get_xlabel() for axes in last), name
        rights = [one for one in figure.axes if one.yaxis.get_label_position() == "right"]
        assert not rights or rights[-1].get_ylabel(), name


def test_figures_have_one_legend_and_at_most_three_panels_in_a_row(drawn: figures.Figures) -> None:
    for name, figure in drawn.items():
        assert len(figure.legends) == (not name.startswith(("xi", "heat"))), name
        assert not any(axes.get_legend() for axes in figure.axes)
        texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        assert len(set(texts)) == len(texts)
        grids = [axes.get_subplotspec() for axes in figure.axes if axes.get_subplotspec()]
        assert max(one.get_gridspec().ncols for one in grids) <= 3
        assert all(axes.has_data() for axes in figure.axes), name


def test_letters_are_readable_at_the_width_of_a_page_and_stay_inside(drawn: figures.Figures) -> None:
    """In 830 pixels a letter has at least 9.5: its points, at 72 an inch, times the pixels of an inch."""
    for name, figure in drawn.items():
        figure.draw_without_rendering()
        whole, pixels = figure.bbox, min(830 / figure.get_figwidth(), 100)
        texts = [text for axes in figure.axes for text in (axes.title, axes.xaxis.label, axes.yaxis.label)]
        texts += [text for legend in figure.legends for text in legend.get_texts()]
        texts += [one for one in (figure._suptitle, figure._supxlabel) if one is not None]
        for text in texts:
            box = text.get_window_extent()
            assert not text.get_text() or (whole.x0 - 1 <= box.x0 and box.x1 <= whole.x1 + 1), (name, text)
        texts += [
            label for axes in figure.axes for label in (*axes.get_xticklabels(), *axes.get_yticklabels())
        ]
        assert min(text.get_fontsize() for text in texts) / 72 * pixels >= 9.5, name
        titles = [axes.title.get_window_extent() for axes in figure.axes if axes.get_title()]
        for one, other in itertools.combinations(titles, 2):
            assert not one.overlaps(other), name


def test_a_notebook_shows_every_figure(drawn: figures.Figures) -> None:
    page = figures.Figures({"a<b": drawn["front"]})._repr_html_()
    assert page.startswith('<img alt="a&lt;b" style="max-width: 100%" src="data:image/png;base64,')
    assert repr(drawn).startswith("Figures(addition, alpha-addition, ")
    assert len(drawn) == len(list(drawn)) == 13


def test_files_are_the_same_to_the_byte_and_letters_of_vector_pictures_are_text(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = Report("r", [], series=[alpha("linear")])
    made = [figures.draw(report, tmp_path / name) for name in ("one", "two")]
    assert [path.suffix for path in made[0]] == [".png", ".svg", ".pdf"]
    for one, other in zip(*made, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert ">validation accuracy</text>" in made[0][1].read_text()


def test_what_cannot_be_drawn_is_an_error_with_its_repair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    report = Report("mine", [], series=[{"kind": "lengths", "title": "t", "values": [1.0, 2.0]}])
    with pytest.raises(UsageError, match=r"'mine' has series of kind lengths.*`kinds=\{kind: Picture"):
        report.plot()
    kinds = {"lengths": figures.Picture(figures.each(lambda axes, one: axes.plot(one["values"]), "norm"))}
    assert list(report.plot(kinds)) == ["lengths"]
    with pytest.raises(UsageError, match="'jpg' is unknown"):
        figures.draw(report, tmp_path, kinds, ["jpg"])  # type: ignore[list-item]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tauspan\[plot\]'"):
        report.plot()


def test_a_result_is_drawn_like_its_report() -> None:
    pytest.importorskip("matplotlib")

    class Found(Result):
        def report(self) -> Report:
            return Report("r", [Table("t", [])], series=[alpha("linear")])

    assert list(Found().plot()) == ["alpha-addition"]


def test_the_pictures_of_the_documents_are_in_their_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    monkeypatch.syspath_prepend(docs)
    made = importlib.import_module("make_figures")
    for picture, (name, drawn_) in made.PICTURES.items():
        assert drawn_ in {one["group"] for one in made.read(name).series}
        assert (docs / f"{picture}.png").is_file()
        assert (docs / f"{picture}.svg").is_file()


# -- what the pictures show ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [True, False])
def test_a_missing_number_leaves_its_place_empty(missing: bool) -> None:
    pytest.importorskip("matplotlib")
    points = [{"alpha": 0.0, "a": None if missing else 0.5}, {"alpha": 1.0, "a": 0.5}]
    curve = {"kind": "alpha", "title": "t", "best": 1.0, "points": points}
    made = Report("r", [], series=[bars("added"), bars("added norm."), curve]).plot()
    (axes,) = made["alpha"].axes
    (line,) = [line for line in axes.lines if line.get_label() == "a"]
    assert math.isnan(line.get_ydata()[0]) == missing


def test_bars_have_stems_of_the_spread_that_is_known() -> None:
    pytest.importorskip("matplotlib")
    spread = {"standard": {"a": 0.125, "mean": 0.0625}}
    one = bars("added", spread=spread, spread_words="± something")
    figure = Report("r", [], series=[one, bars("added norm.")]).plot()["addition"]
    first, second = figure.axes
    (stems_,) = first.collections[:1]
    ends = [sorted(segment[:, 1].tolist()) for segment in stems_.get_segments()]
    assert ends == [[0.125, 0.375], [0.1875, 0.3125]]
    assert not second.containers[-1].__class__.__name__.startswith("Error")
    assert "± something" in [text.get_text() for text in figure.legends[0].get_texts()]
    heights = [bar.get_height() for bars_ in first.containers[:1] for bar in bars_]
    assert heights == [0.25, 0.25]


def test_the_spread_is_that_of_seeds_or_of_rows() -> None:
    by_seed = {"linear": {"a": {"added": [0.5, 0.7], "added norm.": [1.0, None]}}}
    found, words = stems(by_seed, {"a": 10}, "added")
    assert found == {"linear": {"a": pytest.approx(statistics.stdev([0.5, 0.7]))}}
    assert "2 seeds" in words
    assert stems(by_seed, {}, "added norm.")[0] == {}
    alone = {"linear": {t: {"added": [0.8], "added norm.": [1.0]} for t in ("a", "b", "mean")}}
    found, words = stems(alone, {"a": 100, "b": 400}, "added")
    assert found["linear"] == pytest.approx({"a": 0.04, "b": 0.02, "mean": math.hypot(0.04, 0.02) / 2})
    assert "rows" in words
    assert stems(alone, {"a": 100, "b": 400}, "added norm.")[0] == {}
    assert stems(alone, {}, "added")[0] == {}


def test_old_reports_without_numbers_by_seed_are_drawn_without_stems() -> None:
    means = {"linear": {"a": {"added": 0.5, "single": 0.5, "zero shot": 0.25, "added norm.": 1.0}}}
    one, _ = Addition().pictures({"addition": means, "seeds": "3 seeds, mean"})
    assert one["spread"] == {}
    assert one["caption"].endswith("(3 seeds)")
    assert Addition().pictures({}) == ()


def test_curves_show_every_seed_their_mean_the_criterion_and_the_choices() -> None:
    pytest.importorskip("matplotlib")
    figure = Report("r", [], series=[alpha("standard"), alpha("linear")]).plot()["alpha-addition"]
    top, _, below, _ = figure.axes
    faint = [line.get_ydata().tolist() for line in top.lines if line.get_label() == "one seed"]
    assert faint == [[a / 4 + seed / 10 for a in range(5)] for seed in range(3)]
    (mean,) = [line for line in top.lines if line.get_label() == "criterion, mean of seeds"]
    assert mean.get_ydata().tolist() == pytest.approx([a / 4 + 0.1 for a in range(5)])
    stars = [
        (line.get_xdata()[0], line.get_ydata()[0]) for line in top.lines if line.get_label() == "chosen alpha"
    ]
    assert [x for x, _ in stars] == [0.5, 0.75, 1.0]
    assert [y for _, y in stars] == pytest.approx([0.5, 0.85, 1.2])
    assert "chosen alpha 0.5, 0.75, 1" in top.get_title()
    assert "criterion" in top.get_ylabel()
    assert sum(line.get_alpha() is not None and line.get_alpha() < 1 for line in below.lines) == 3 * len(
        TASKS
    )


def test_the_curves_of_several_seeds_are_one_series() -> None:
    one, two = ({"kind": "alpha", "title": "t", "best": s, "points": [s], "floor": s} for s in (1.0, 2.0))
    found = one_series([one, two], [7, 8])
    assert [(run["seed"], run["best"]) for run in found["seeds"]] == [(7, 1.0), (8, 2.0)]
    assert (found["best"], found["floor"]) == (1.0, 1.5)
    assert one_series([one], [7]) == one


def test_methods_that_lack_an_alpha_have_lines_and_choices_too() -> None:
    pytest.importorskip("matplotlib")
    points = [{"alpha": 0.5, "sum": 0.9, "ties": 0.8}, {"alpha": 2.0, "ties": 0.7}]
    series = {"kind": "alpha", "title": "merging", "points": points, "bests": {"sum": 0.5, "ties": 2.0}}
    (axes,) = Report("r", [], series=[series]).plot()["alpha"].axes
    stars = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_marker() == "*"
             if len(line.get_xdata())]  # fmt: skip
    assert stars == [(0.5, 0.9), (2.0, 0.7)]


def test_maps_of_a_report_share_one_colour_scale_and_white_is_explained() -> None:
    pytest.importorskip("matplotlib")
    series = [xi("standard", 0.25), xi("linear", 0.5), xi("linear", 2.0, ("one", "three"))]
    made = Report("r", [], series=series).plot()
    limits = {
        mesh.get_clim() for figure in made.values() for axes in figure.axes[:-1] for mesh in axes.collections
    }
    assert limits == {(0, 2.0)}
    assert "white" in made["xi-one-two"]._supxlabel.get_text()


def test_the_front_has_its_test_point_with_intervals(drawn: figures.Figures) -> None:
    (axes,) = drawn["front"].axes
    (point,) = axes.containers
    assert (point.has_xerr, point.has_yerr) == (False, True)


# -- colours ---------------------------------------------------------------------------------------------------------

# Machado, Oliveira and Fernandes' matrices for linear RGB, at full severity
BLIND = {
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
}


def lab(colour: str, sight: str) -> Any:
    """A colour as somebody sees it, in CIE Lab."""
    rgb = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(BLIND[sight]) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
    f = np.cbrt(xyz / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", BLIND)
def test_regimes_are_told_apart_by_people_who_do_not_tell_red_from_green(sight: str) -> None:
    for one, other in itertools.combinations(figures.REGIMES.values(), 2):
        assert np.linalg.norm(lab(one, sight) - lab(other, sight)) > 20, (one, other)


def test_a_regime_has_its_colour_wherever_it_stands() -> None:
    pytest.importorskip("matplotlib")
    row = {"zero shot": 0.5, "single": 0.5, "added": 0.5, "added norm.": 1.0}
    for order in itertools.permutations(REGIMES):
        means = {regime: {"a": row} for regime in order}
        (axes,) = Report("r", [], series=[bars("added norm.", means=means, joint=[])]).plot()["addition"].axes
        found = {group.get_label(): group[0].get_facecolor() for group in axes.containers}
        wanted = {regime: figures.REGIMES[regime] for regime in REGIMES}
        from matplotlib.colors import to_rgba

        assert found == {regime: to_rgba(colour) for regime, colour in wanted.items()}
