"""`python -m benchmarks.kernel`: the tangent kernel against blockwise `vmap(jacrev)`, and how its time grows.

MiniLM on e-mails of 32 tokens, float32. Both sides run once in one process, one after the other.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from benchmarks.rows import ROOT, Row, Setting, report, write
from benchmarks.timing import growth, once
from rich.console import Console
from torch import Tensor
from torch.func import functional_call, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import tauspan as ts
from tauspan.kernel import Outputs, TangentKernel
from tauspan.models import Batch, Classifier, Encoder, Head

PARAMS, TOKENS, GOAL = "encoder.*", 32, 4.0
BLOCK = 32  # rows of a block written out: two blocks of MiniLM's encoder take 2.7 GB
Rows = dict[str, Tensor]


def kernel(setting: Setting) -> list[Row]:
    """The rows: both ways at one size, then growth with rows, outputs and parameters."""
    encoder = ts.load("minilm")
    assert isinstance(encoder, Encoder)  # noqa: S101 - no edited model
    samples = setting.batch or (96 if setting.short else 512)
    rows = compared(encoder, texts(encoder, samples), setting)
    return rows + grown(encoder, samples, setting)


def texts(encoder: Encoder, samples: int) -> dict[str, Tensor]:
    """Tokenised e-mails, cut and padded to one length."""
    task = ts.suite(["email_spam"])[0].subset(train=samples, validation=1, test=1)
    batch = encoder.inputs.encode(list(task.split("train").inputs), TOKENS)
    assert not isinstance(batch, Tensor)  # noqa: S101 - a tokenizer gives names
    return dict(batch)


def compared(encoder: Encoder, batch: dict[str, Tensor], setting: Setting) -> list[Row]:
    """Seconds of both ways, how many times faster, and how far their matrices are apart."""
    samples = len(batch["input_ids"])
    warm = {key: value[:2] for key, value in batch.items()}
    ours(encoder, warm).dense()
    written_out(encoder, warm)
    found: dict[str, Tensor] = {}

    def run(name: str, made: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: found.update({name: made()})

    peaks = []
    first = once(
        lambda: peaks.append(growth(run("auto", lambda: ours(encoder, batch).dense()))), setting.device
    )
    second = once(run("vmap(jacrev)", lambda: written_out(encoder, batch)), setting.device)
    taken = {"auto": getattr(first, setting.clock), "vmap(jacrev)": getattr(second, setting.clock)}
    apart = float((found["auto"] - found["vmap(jacrev)"]).norm() / found["vmap(jacrev)"].norm())
    times = taken["vmap(jacrev)"] / taken["auto"]
    title, note = f"MiniLM, N = {samples}, one output", f"once; vmap(jacrev) in blocks of {BLOCK} rows"
    return [
        *(one(f"{title}: {name}", value, "s") for name, value in taken.items()),
        Row(f"{title}: auto", times, times, times, GOAL, "times faster", True, note),
        one(f"{title}: relative distance of the matrices", apart, "ratio"),
        one(f"{title}: auto, growth of memory", peaks[0], "MiB"),
    ]


def one(what: str, value: float, unit: str, note: str = "") -> Row:
    """A row that was measured once and has no goal."""
    return Row(what, value, value, value, None, unit, note=note)


def ours(
    module: Encoder | Classifier, batch: Batch, params: str = PARAMS, outputs: Outputs = "sum"
) -> TangentKernel:
    """The kernel with its defaults."""
    return TangentKernel(module, batch, params=params, outputs=outputs)


def written_out(encoder: Encoder, batch: Mapping[str, Tensor]) -> Tensor:
    """Blocks of rows of J by `vmap(jacrev)`, their products, and one half of the matrix, as torch's tutorial has it."""
    theta = {name: p.detach() for name, p in encoder.backbone.named_parameters()}
    moving = {name: p for name, p in theta.items() if name.startswith("encoder.")}

    def output(point: Rows, row: Rows) -> Tensor:
        """The sum of the pooled features; the mask is given in four dimensions, because vmap cannot look into it."""
        mask = row["attention_mask"]
        options = {
            "token_type_ids": row["token_type_ids"][None],
            "attention_mask": mask[None, None, None].bool(),
        }
        found = functional_call(encoder.backbone, {**theta, **point}, (row["input_ids"][None],), options)
        features = torch.einsum("td,t->d", found.last_hidden_state[0], mask / mask.sum())
        summed: Tensor = features.sum() / features.shape[-1] ** 0.5
        return summed

    def jacobian(low: int) -> Rows:
        block = {key: value[low : low + BLOCK] for key, value in batch.items()}
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no rule under vmap
            rows = vmap(jacrev(output), (None, 0))(moving, block)
        return {name: value.flatten(1) for name, value in rows.items()}

    samples = len(batch["input_ids"])
    total = torch.zeros(samples, samples, dtype=torch.float64)
    for low in range(0, samples, BLOCK):
        left = jacobian(low)
        for begin in range(low, samples, BLOCK):
            right = left if begin == low else jacobian(begin)
            found = sum(torch.einsum("np,mp->nm", left[name], right[name]) for name in left)
            total[low : low + BLOCK, begin : begin + BLOCK] = cast(Tensor, found)
            total[begin : begin + BLOCK, low : low + BLOCK] = cast(Tensor, found).T
    return total


# -- growth ------------------------------------------------------------------------------------------------------


def grown(encoder: Encoder, samples: int, setting: Setting) -> list[Row]:
    """Seconds at several sizes and the exponent of each: the slope of log time in log size."""
    small = samples // 4 if not setting.short else samples // 2
    sizes = {
        "rows": {n: ours(encoder, texts(encoder, n)) for n in (samples // 4, samples // 2, samples)},
        "outputs": {c: ours(classifier(encoder, c), texts(encoder, small), outputs="all") for c in (1, 2, 4)},
        "parameters": dict(by_parameters(encoder, texts(encoder, small))),
    }
    rows = []
    for what, kernels in sizes.items():
        taken = {size: getattr(once(made.dense), setting.clock) for size, made in kernels.items()}
        where = "" if what == "rows" else f", N = {small}"
        rows += [one(f"auto, {size} {what}{where}", value, "s") for size, value in taken.items()]
        rows.append(one(f"auto: exponent in {what}{where}", exponent(taken), "ratio"))
    return rows


def classifier(encoder: Encoder, outputs: int) -> Classifier:
    """The encoder under a random head."""
    generator = torch.Generator().manual_seed(outputs)
    return Classifier(encoder, Head(torch.randn(outputs, 384, generator=generator)))


def by_parameters(encoder: Encoder, batch: Batch) -> Iterator[tuple[int, TangentKernel]]:
    """Kernels of more and more of the encoder, by how many parameters count."""
    for params in ("last:1", "last:3", PARAMS):
        made = ours(encoder, batch, params)
        yield sum(tau.numel() for tau in made.tangent.tau.values()), made


def exponent(taken: Mapping[int, float]) -> float:
    """The least-squares slope of log time in log size."""
    x = torch.tensor([math.log(size) for size in taken])
    y = torch.tensor([math.log(value) for value in taken.values()])
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write `kernel.json` and `kernel.md`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernel", description=__doc__)
    parser.add_argument("--short", action="store_true", help="96 rows in place of 512")
    parser.add_argument("--rows", type=int, help="another number of rows")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench")
    given = parser.parse_args(arguments)
    setting = Setting("cpu", threads=given.threads, rounds=1, clock=given.clock, shapes=("minilm",),
                      short=given.short, batch=given.rows)  # fmt: skip
    torch.set_num_threads(setting.threads)
    rows = kernel(setting)
    write("kernel", rows, setting, given.out)
    found = report("kernel", rows, setting)
    (given.out / "kernel.md").write_text(found.to_markdown())
    Console().print(found.renderable())


if __name__ == "__main__":
    main(sys.argv[1:])
