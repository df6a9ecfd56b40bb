"""Draw the pictures of the documents from the report that lies beside them.

`python docs/make_figures.py` reads docs/results/text7/report.json and writes docs/figures/text7-addition.png.
"""

import sys
import tempfile
from pathlib import Path

import tauspan
from tauspan import figures

DOCS = Path(__file__).resolve().parent
REPORT = DOCS / "results" / "text7" / "report.json"
PICTURE = DOCS / "figures" / "text7-addition.png"


def main() -> int:
    """Draw everything and keep the picture of the addition."""
    if not REPORT.is_file():
        print(f"{REPORT} is missing: run `tauspan run recipes/text7.yaml` and copy its report.json there.")
        return 1
    report = tauspan.Report.from_json(REPORT.read_text(encoding="utf-8"))
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=PICTURE.parent) as folder:
        figures.draw(report, Path(folder))
        (Path(folder) / "addition.png").replace(PICTURE)
    print(f"wrote {PICTURE.relative_to(DOCS.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
