"""Draw the pictures of the documents from the reports that lie beside them.

`python docs/make_figures.py` reads docs/results/*/report.json and writes docs/figures/*.png with their SVGs.
"""

import dataclasses
import sys
from pathlib import Path

import tauspan
from tauspan import store
from tauspan.core.figures import rendered
from tauspan.experiments.run import Addition

DOCS = Path(__file__).resolve().parent
PICTURES = {  # where it goes below docs: from which report, which of its pictures
    "figures/text7-addition": ("reproduce-text7", "addition"),
    "figures/demo-xi": ("demo", "xi-movie_sentiment-debian_section"),
    "results/reproduce-text7/xi-drift": ("reproduce-text7", "xi-drift-movie_sentiment-debian_section"),
}


def read(name: str) -> tauspan.Report:
    """A report of docs/results, with the bars of its addition, which older reports do not hold."""
    report = tauspan.Report.from_json((DOCS / "results" / name / "report.json").read_text(encoding="utf-8"))
    if any(one["kind"] == "bars" for one in report.series):
        return report
    return dataclasses.replace(report, series=[*report.series, *Addition().pictures(report.result)])


def main() -> int:
    """Draw all pictures of each report and keep the ones that the documents show."""
    figures = {name: read(name).plot() for name in dict.fromkeys(name for name, _ in PICTURES.values())}
    for picture, (name, drawn) in PICTURES.items():
        for form in ("png", "svg"):
            target = DOCS / f"{picture}.{form}"
            with store.atomic(target) as temporary:
                temporary.write_bytes(rendered(figures[name][drawn], form))
            print(f"wrote {target.relative_to(DOCS.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
