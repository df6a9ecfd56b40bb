"""Screenshots of the mixing desk: a computer and a phone, light and dark, of made-up numbers or of a page of yours.

    python -m benchmarks.desk_screens OUT [--page desk.html] [--fragment "a=0.4,0.2"] [--window]

OUT is a folder, or a file such as `docs/figures/desk.png` for one picture, that of a computer in the light.
Needs playwright and chromium.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.desk_browser import browser, missing, opened
from benchmarks.desk_pages import MadeTask, page, rows_of

SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 360, "height": 740}}
NAMES = ["email_spam", "emotion", "news_topics", "questions"]
CLASSES = {
    "email_spam": ["ham", "spam"],
    "emotion": ["sadness", "joy", "love", "anger", "fear", "surprise"],
    "news_topics": ["world", "sports", "business", "science"],
    "questions": ["abbreviation", "entity", "description", "human", "location", "number"],
}
TEXTS = [
    "Your account statement is ready to be looked at",
    "I cannot believe how well the evening went, everybody stayed until the end",
    "Which river runs through both of the old capitals?",
    "Shares fell for the third day as the bank kept its rates",
    "Claim the prize within a day or it goes to somebody else!",
    "She said nothing, and for once I was grateful for the silence",
]


def example() -> str:
    """A page of four tasks, with every view."""
    generator = np.random.default_rng(7)
    splits = ("validation", "test")
    tasks = [
        MadeTask(
            name, CLASSES[name], k, "affine",
            {split: rows_of(generator, 200, len(CLASSES[name]), 4, k) for split in splits}, 0.95,
        )
        for k, name in enumerate(NAMES)
    ]  # fmt: skip
    texts = {
        name: {split: [TEXTS[i] for i in generator.integers(0, len(TEXTS), 200)] for split in splits}
        for name in NAMES
    }
    values = np.round(generator.uniform(0.02, 0.25, (4, 4)) + np.eye(4), 3).tolist()
    return page(tasks, NAMES, texts=texts, title="all-MiniLM-L6-v2: 4 tasks, linear", more={
        "choices": [
            choice("optimum", [0.81, 0.62, 0.7, 0.77], "least validation loss; solved"),
            choice("shared", [0.6] * 4, "the best single coefficient on a grid of 20 points"),
            choice("alpha = 1", [1.0] * 4, "every vector as it was trained"),
            choice("zero", [0.0] * 4, "the pre-trained model"),
        ],
        "interference": {
            "title": "Drift of each vector on each task", "rows": NAMES, "columns": NAMES, "values": values,
            "note": "Rows: the vector that edits. Columns: whose rows are read. Mean distance of logits over their size.",
        },
        "front": front(tasks),
        "notes": ["Made-up numbers: a page to look at, not a result."],
    }).html  # fmt: skip


def choice(name: str, values: list[float], note: str) -> dict[str, Any]:
    """A button of the page."""
    return {"name": name, "split": "validation", "coefficients": values, "note": note}


def front(tasks: list[MadeTask]) -> dict[str, Any]:
    """Points between keeping all and giving up the first task."""
    points = []
    for step in range(13):
        a = [0.9 - 0.075 * step, *[0.4 + 0.03 * step] * 3]
        shares = [task.splits["validation"].correct(a) / 200 for task in tasks]
        points.append({"coefficients": a, "target": shares[0], "control": sum(shares[1:]) / 3})
    return {
        "target": NAMES[0], "controls": NAMES[1:], "points": points, "note": "Every second point of a grid of prices.",
    }  # fmt: skip


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--page", type=Path, help="a page made by `tauspan desk`")
    parser.add_argument("--fragment", help="the state to show, as it stands after # in the address")
    parser.add_argument(
        "--window", action="store_true", help="what fits the window, in place of the whole page"
    )
    options = parser.parse_args()
    reason = missing()
    if reason:
        raise SystemExit(reason)
    html = options.page.read_text(encoding="utf-8") if options.page else example()
    with browser() as running:
        for path, size, scheme in pictures(options.out):
            take(running, html, path, size, scheme, options)


def pictures(out: Path) -> list[tuple[Path, str, str]]:
    """The files to write, each with its window and its colours."""
    if out.suffix == ".png":
        return [(out, "desktop", "light")]
    return [(out / f"{size}-{scheme}.png", size, scheme) for size in SIZES for scheme in ("light", "dark")]


def take(running: Any, html: str, path: Path, size: str, scheme: str, options: argparse.Namespace) -> None:
    """Take one picture."""
    ask = {
        "viewport": SIZES[size],
        "color_scheme": scheme,
        "device_scale_factor": 2 if size == "phone" else 1,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with opened(running, html, **ask) as shown:
        if options.fragment:
            shown.evaluate("fragment => { location.hash = fragment }", options.fragment)
        shown.wait_for_timeout(1500)  # what follows the sliders has followed
        shown.screenshot(path=path, full_page=not options.window)
        print(path)


if __name__ == "__main__":
    main()
