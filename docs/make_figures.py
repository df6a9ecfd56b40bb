"""Draw the pictures of the documents from the reports that lie beside them.

`python docs/make_figures.py` reads docs/results/*/report.json and writes docs/figures/*.png.
"""

import sys
import tempfile
from pathlib import Path

import tauspan
from tauspan import figures

DOCS = Path(__file__).resolve().parent
PICTURES = {  # from which report, which of its pictures
    "text7-addition.png": ("reproduce-text7", "addition.png"),
    "demo-xi.png": ("demo", "xi-movie_sentiment-debian_section.png"),
}


def main() -> int:
    """Draw all pictures of each report and keep the ones that the documents show."""
    for picture, (name, drawn) in PICTURES.items():
        source, target = DOCS / "results" / name / "report.json", DOCS / "figures" / picture
        if not source.is_file():
            print(f"{source} is missing: run the recipe {name!r} and copy its report.json there.")
            return 1
        report = tauspan.Report.from_json(source.read_text(encoding="utf-8"))
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            figures.draw(report, Path(folder))
            (Path(folder) / drawn).replace(target)
        print(f"wrote {target.relative_to(DOCS.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
