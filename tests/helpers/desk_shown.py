"""What the browser shows of a desk's page, and what numpy says that it should show."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from benchmarks.desk_pages import Made, MadeTask, interval

_READ = """async (fragment) => {
  if (fragment !== null) {
    const heard = new Promise((done) => addEventListener('hashchange', done, { once: true }));
    location.hash = fragment;
    await heard;
  }
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const text = (query) => document.querySelector(query)?.textContent ?? null;
  const rows = {};
  for (const row of document.querySelectorAll('.scores tr[data-task]')) {
    rows[row.dataset.task] = Object.fromEntries([...row.querySelectorAll('td[data-cell]')].map((cell) => [
      cell.dataset.cell,
      [cell.querySelector('data')?.value ?? null, cell.querySelector('data')?.textContent ?? null,
       cell.querySelector('.limits')?.textContent ?? null],
    ]));
    rows[row.dataset.task].low = row.querySelector('.warning') !== null;
  }
  return {
    rows,
    certificate: text('.certificate'),
    xi: document.querySelector('#xi-here data')?.value ?? null,
    counts: [...document.querySelectorAll('.matrix text')].map((one) => one.textContent),
    sliders: [...document.querySelectorAll('.slider input[type=range]')].map((one) => one.value),
    boxes: [...document.querySelectorAll('.slider input[type=number]')].map((one) => one.value),
    copied: text('#take pre'),
    banner: text('.banner'),
  };
}"""


_TICKS = """() => [...document.querySelectorAll('#sweep .axes g:has(line.grid)')].map((one) =>
  [one.querySelector('line').getAttribute('y1'), one.querySelector('text').textContent])"""


def shown(page: Any, fragment: str | None = None) -> Any:
    """Everything that stands on the page, after the address has been given a fragment."""
    return page.evaluate(_READ, fragment)


def fragment(a: Sequence[float], **more: str) -> str:
    return "&".join([f"a={','.join(map(str, a))}", *(f"{key}={value}" for key, value in more.items())])


def paired(before: np.ndarray, now: np.ndarray) -> tuple[float, float, float]:
    """Difference of two shares of the same rows, with the interval of Bonett and Price (2012)."""
    rows = len(now)
    up, down = ((now & ~before).sum() + 1) / (rows + 2), ((before & ~now).sum() + 1) / (rows + 2)
    half = 1.959963984540054 * np.sqrt((up + down - (up - down) ** 2) / (rows + 2))
    return float(now.mean() - before.mean()), max(-1.0, up - down - half), min(1.0, up - down + half)


def mean(parts: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Of independent estimates; distances to their limits add in squares."""
    value, low, high = (np.array(column) for column in zip(*parts, strict=True))
    below, above = np.sqrt(((value - low) ** 2).sum()), np.sqrt(((high - value) ** 2).sum())
    return (
        float(value.mean()),
        float((value.sum() - below) / len(value)),
        float((value.sum() + above) / len(value)),
    )


def expected(task: MadeTask, entry: Mapping[str, Any], a: Sequence[float], split: str) -> dict[str, Any]:
    """A task's row of the table: for each cell value, lower and upper limit."""
    data, stored = task.splits[split], entry["splits"][split]
    now, before = (data.predicted(point) == data.labels for point in (a, [0.0] * len(a)))
    share, single = interval(int(now.sum()), len(now)), stored["single"]
    return {
        "now": tuple(share.values()),
        "gain": paired(before, now),
        "zero": tuple(stored["zeroShot"].values()),
        "single": single and tuple(single.values()),
        "normalised": single and tuple(value / single["value"] for value in share.values()),
    }


def assert_row(row: Mapping[str, Any], want: Mapping[str, tuple[float, float, float] | None]) -> None:
    """Each cell has the value with all digits, and value and limits as they are printed."""
    for cell, numbers in want.items():
        exact, printed, limits = row[cell]
        if numbers is None:
            assert exact is None, (cell, exact)
            continue
        assert abs(float(exact) - numbers[0]) < 1e-12, (cell, exact, numbers)
        assert abs(_number(printed) - numbers[0]) <= 0.0005 + 1e-9, (cell, printed, numbers)
        low, high = map(_number, limits.split(" to "))
        assert abs(low - numbers[1]) <= 0.0005 + 1e-9, (cell, limits, numbers)
        assert abs(high - numbers[2]) <= 0.0005 + 1e-9, (cell, limits, numbers)


def _number(text: str) -> float:
    return float(text.replace("\N{MINUS SIGN}", "-"))


def assert_page(seen: Mapping[str, Any], made: Made, a: Sequence[float], split: str = "validation") -> None:
    """Every number of the table, the mean, the certificate, warnings and the error of the first pair."""
    wanted = [
        expected(task, entry, a, split) for task, entry in zip(made.tasks, made.desk["tasks"], strict=True)
    ]
    for place, (task, want) in enumerate(zip(made.tasks, wanted, strict=True)):
        row = seen["rows"][str(place)]
        assert_row(row, want)
        floor = None if task.floor is None else task.floor * want["zero"][0]
        assert row["low"] == (floor is not None and want["now"][0] < floor - 1e-12)
    counted = [want for task, want in zip(made.tasks, wanted, strict=True) if task.vector is not None]
    cells = ("now", "gain", "zero", "single", "normalised")
    assert_row(seen["rows"]["mean"], {cell: mean([want[cell] for want in counted]) for cell in cells})
    assert seen["certificate"] == certificate(made, a, split)


def certificate(made: Made, a: Sequence[float], split: str) -> str:
    """Rows whose two largest outputs are nearer to one another than rounding can move them."""
    turned = sum(within(task, a, split) for task in made.tasks)
    rows = sum(len(task.splits[split].labels) for task in made.tasks)
    return (
        "exact" if turned == 0 else f"{turned} {'row' if turned == 1 else 'rows'} of {rows:,} within rounding"
    )


def within(task: MadeTask, a: Sequence[float], split: str) -> int:
    data = task.splits[split]
    if data.scales is None or task.kind == "sampled":
        return 0
    second, first = np.sort(data.logits(a), 1)[:, -2:].T
    bound = data.scales.astype(np.float64) * (1 + np.abs(a).sum())
    if data.bias is not None and data.features is not None:
        weights = np.array([1.0, *a])
        length = np.linalg.norm(np.einsum("k,nkd->nd", weights, data.features), axis=1)
        size = (np.abs(weights) * np.linalg.norm(data.features, axis=2)).sum(1)
        error = 2.0**-22 * size**2
        bound = bound + np.ptp(data.bias) / data.scale * np.minimum(np.sqrt(error), error / length)
    return int((first - second <= bound).sum())


def xi(first: MadeTask, second: MadeTask, a: Sequence[float], split: str = "validation") -> float:
    """The disentanglement error of a pair at its two coefficients, all others 0."""
    assert first.vector is not None
    assert second.vector is not None
    both, own = [0.0] * len(a), []
    for task in (first, second):
        both[task.vector] = a[task.vector]
        own.append([a[task.vector] if k == task.vector else 0.0 for k in range(len(a))])
    return sum(
        float((task.splits[split].predicted(both) != task.splits[split].predicted(alone)).mean())
        for task, alone in zip((first, second), own, strict=True)
    )


def curve(page: Any) -> list[float]:
    """Accuracies of the selected task along the sweep, read back from the drawn curve and its axis."""
    ticks = page.evaluate(_TICKS)
    (y0, low), *_, (y1, high) = [(float(y), float(text)) for y, text in ticks]
    points = re.findall(r"[ML][\d.]+ ([\d.]+)", page.locator("#sweep .curve.chosen").get_attribute("d"))
    return [low + (float(y) - y0) * (high - low) / (y1 - y0) for y in points]
