"""Draw the pictures of the documents from the reports that lie beside them.

`python docs/make_figures.py` reads docs/results/*/*.json and writes docs/figures/*.png with their SVGs, and the pictures
beside the results. It needs the packages of `make env`.
"""

import dataclasses
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for benchmarks

from benchmarks import kernel_suite
from benchmarks.study import picture as study
from benchmarks.study.plan import Cell, Variant
from benchmarks.study.tables import Found

import tauspan
from tauspan import store
from tauspan.core.figures import rendered
from tauspan.experiments.run import Addition
from tauspan.experiments.run.made import Made

DOCS = Path(__file__).resolve().parent
PICTURES = {  # where it goes below docs: from which report, which of its pictures
    "figures/text7-addition": ("reproduce-text7", "addition"),
    "figures/demo-alpha": ("demo", "alpha-addition"),
    "figures/demo-xi": ("demo", "xi-movie_sentiment-debian_section"),
    "results/grokking/trajectory": ("grokking", "trajectory"),
    "figures/made-to-add": ("made-to-add", "made"),
    "figures/made-to-add-images": ("made-to-add-images", "made"),
    "figures/starts": ("spectral-bottleneck", "starts"),
    "results/reproduce-text7/xi-drift": ("reproduce-text7", "xi-drift-movie_sentiment-debian_section"),
}


def read(name: str) -> tauspan.Report:
    """A report of docs/results, with the pictures of its parts, which older reports do not hold."""
    report = tauspan.Report.from_json((DOCS / "results" / name / "report.json").read_text(encoding="utf-8"))
    if any(one["kind"] in ("bars", "ways") for one in report.series):
        return report
    drawn = [one for part in (Addition(), Made()) for one in part.pictures(report.result)]
    return dataclasses.replace(report, series=[*report.series, *drawn])


def numbers(name: str) -> dict:
    """A JSON file of docs/results."""
    return json.loads((DOCS / "results" / name).read_text(encoding="utf-8"))


def of_benchmarks() -> list[Path]:
    """The pictures that benchmarks draw, from their reports."""
    pairs = next(
        one["rows"]
        for one in numbers("kernel-suite/interference.json")["tables"]
        if "predicted" in one["rows"][0]
    )
    where = {"rows", "steps", "seed"}
    known = {"regime", "point", "learning rate", *where}
    found = [
        Found(Cell(**{key: cell[key] for key in where}), Variant(cell["regime"], cell["point"]), cell["learning rate"],
              {key: value for key, value in cell.items() if key not in known})
        for cell in numbers("when/report.json")["result"]["cells"]
    ]  # fmt: skip
    targets = [DOCS / "results" / name for name in ("kernel-suite/interference.png", "when/study.png")]
    kernel_suite.picture(pairs, targets[0])
    study.draw(found, targets[1])
    return targets


def main() -> int:
    """Draw all pictures of each report and keep the ones that the documents show."""
    figures = {name: read(name).plot() for name in dict.fromkeys(name for name, _ in PICTURES.values())}
    for picture, (name, drawn) in PICTURES.items():
        for form in ("png", "svg"):
            target = DOCS / f"{picture}.{form}"
            with store.atomic(target) as temporary:
                temporary.write_bytes(rendered(figures[name][drawn], form))
            print(f"wrote {target.relative_to(DOCS.parent)}")
    for target in of_benchmarks():
        print(f"wrote {target.relative_to(DOCS.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
