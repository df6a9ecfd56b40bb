"""The page in a real browser: every number is numpy's, and whatever can be pressed does what it says."""

import html
import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks.desk_browser import opened, until
from benchmarks.desk_pages import MadeSplit, MadeTask, page, rows_of

from helpers.desk_shown import assert_page, curve, fragment, shown, xi

pytestmark = pytest.mark.slow
SPLITS = ("validation", "test")
AXE = Path(__file__).parents[3] / "web/node_modules/axe-core/axe.min.js"
DESKTOP = {"viewport": {"width": 1280, "height": 900}}


def tasks_of(classes, kind="affine", exact=False, control=True, rows=120):
    generator = np.random.default_rng(classes)
    names = ["first", "second", "a control"][: 3 if control else 2]
    return [
        MadeTask(
            name,
            [f"class {c}" for c in range(classes)],
            place if place < 2 else None,
            kind,
            {
                split: rows_of(
                    generator,
                    rows,
                    classes,
                    2,
                    place if place < 2 else None,
                    exact=exact,
                    head=kind == "gram",
                )
                for split in SPLITS
            },
            None if place < 2 else 0.95,
        )
        for place, name in enumerate(names)
    ]


LIMITS = (-1.0, 2.0)
CHOICES = [
    {"name": "optimum", "split": "validation", "coefficients": [0.625, 0.4375], "note": "least loss"},
    {"name": "negate first", "split": "validation", "coefficients": [-0.5, 0.0], "note": ""},
    {"name": "alpha = 1", "split": None, "coefficients": [1.0, 1.0], "note": ""},
    {"name": "zero", "split": None, "coefficients": [0.0, 0.0], "note": ""},
]


def front_of(tasks):
    points = [
        {
            "coefficients": a,
            "target": tasks[0].splits["validation"].correct(a) / 120,
            "control": tasks[2].splits["validation"].correct(a) / 120,
        }
        for a in ([0.5, 0.25], [0.0, 0.25], [-0.75, 0.0])
    ]
    return {"target": "first", "controls": ["a control"], "note": "", "points": points}


def made_of(tasks, /, **more):
    matrix = {"title": "Drift", "note": "made up", "rows": ["first", "second"], "columns": ["first", "second"],
              "values": [[1.5, 0.25], [None, 1.25]]}  # fmt: skip
    front = front_of(tasks) if len(tasks) == 3 and tasks[0].kind != "sampled" else None
    texts = {
        task.name: {s: [f"text {n} of {task.name}" for n in range(120)] for s in SPLITS} for task in tasks
    }
    return page(
        tasks,
        ["first", "second"],
        texts=texts,
        more={"choices": CHOICES, "interference": matrix, "front": front} | more,
    )


@pytest.fixture(scope="module")
def made():
    return made_of(tasks_of(5), range=list(LIMITS))


@pytest.fixture
def desk(chromium, made):
    with opened(chromium, made.html, **DESKTOP) as shown_page:
        yield shown_page
        assert not shown_page.complaints
        assert [one.split(":")[0] for one in shown_page.requests if not one.startswith("data:")] == ["file"]


@pytest.mark.parametrize(
    ("classes", "kind", "exact"),
    [(2, "affine", False), (77, "affine", False), (5, "affine", True), (6, "gram", False)],
)
def test_every_number_is_numpys(chromium, classes, kind, exact):
    tasks = tasks_of(classes, kind, exact)
    made = made_of(tasks, range=list(LIMITS), exact=exact)
    generator = np.random.default_rng(3)
    with opened(chromium, made.html, **DESKTOP) as desk:
        for turn in range(50):
            a = np.round(generator.uniform(*LIMITS, 2), 2).tolist()
            split = SPLITS[turn % 2]
            place = turn % 3
            seen = shown(desk, fragment(a, split=split, task=tasks[place].name.replace(" ", "%20")))
            assert seen["sliders"][:2] == [f"{value:g}" for value in a]
            assert_page(seen, made, a, split)
            assert abs(float(seen["xi"]) - xi(*tasks[:2], a, split)) < 1e-12
            if classes <= 12:
                data = tasks[place].splits[split]
                counts = np.zeros((classes, classes), int)
                np.add.at(counts, (data.labels, data.predicted(a)), 1)
                assert seen["counts"] == [str(count) for count in counts.ravel() if count]
        assert not desk.complaints


def test_pruned_rows_have_the_classes_that_were_kept(chromium):
    tasks = tasks_of(77, exact=True, control=False)
    made = made_of(tasks)
    whole = [one["splits"]["validation"] for one in made.desk["tasks"]]
    assert all(one["kept"] is None for one in whole)
    blob, entries = _pruned(tasks)
    pruned = made_of(tasks, tasks=entries, exact=True)
    filled = _with_numbers(pruned.html, blob)
    generator = np.random.default_rng(4)
    with opened(chromium, filled, **DESKTOP) as desk:
        for _ in range(20):
            a = np.round(generator.uniform(0, 1, 2), 2).tolist()
            assert_page(shown(desk, fragment(a)), made, a)


def _pruned(tasks):
    """For each row only classes that win at a corner or at one of many points of the box."""
    from benchmarks.desk_pages import Blob, stored

    blob, entries = Blob(), []
    corners = [[i / 20, j / 20] for i in range(21) for j in range(21)]
    for task in tasks:
        splits = {"test": None}
        for split in ("validation",):
            data = task.splits[split]
            wins = np.stack([data.predicted(point) for point in [*corners]], 1)
            kept = [np.unique(line) for line in wins]
            entry = stored(task, data, Blob(), ())
            starts = np.cumsum([0, *map(len, kept)]).astype(np.uint32)
            entry |= {"labels": blob.add(data.labels.astype(np.uint16)), "scales": None}
            entry["kept"] = {
                "starts": blob.add(starts),
                "classes": blob.add(np.concatenate(kept).astype(np.uint16)),
            }
            values = [row[:, classes].ravel() for row, classes in zip(data.values, kept, strict=True)]
            entry["numbers"] = blob.add(np.concatenate(values).astype(np.float32))
            splits[split] = entry
        entries.append({"name": task.name, "classes": task.classes, "vector": task.vector, "kind": task.kind,
                        "floor": task.floor, "splits": splits})  # fmt: skip
    return b"".join(blob.parts), entries


def _with_numbers(text, blob):
    import base64

    head, rest = text.split('id="desk-numbers">', 1)
    return (
        f'{head}id="desk-numbers">{base64.b64encode(blob).decode()}</script>{rest.split("</script>", 1)[1]}'
    )


def test_eleven_vectors(chromium):
    generator = np.random.default_rng(6)
    names = [f"vector {k}" for k in range(11)]
    tasks = [
        MadeTask(name, ["a", "b", "c"], k, "affine", {"validation": rows_of(generator, 40, 3, 11, k)})
        for k, name in enumerate(names)
    ]
    made = page(tasks, names)
    with opened(chromium, made.html, **DESKTOP) as desk:
        for _ in range(10):
            a = np.round(generator.uniform(0, 1, 11) * (generator.random(11) < 0.8), 2).tolist()
            assert_page(shown(desk, fragment(a)), made, a)


PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhf"
    "DwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


def test_of_equal_logits_the_first_wins(chromium):
    generator = np.random.default_rng(8)

    def coarse():
        values = generator.integers(-1, 2, (80, 3, 4)).astype(np.int16)
        return MadeSplit(values, generator.integers(0, 4, 80), np.ones(80, np.float32))

    names = ["one", "two"]
    tasks = [
        MadeTask(name, list("abcd"), k, "affine", {"validation": coarse()}) for k, name in enumerate(names)
    ]
    made = page(tasks, names)
    with opened(chromium, made.html, **DESKTOP) as desk:
        for a in ([0, 1], [1, 0], [1, 1], [0, 0]):
            seen = shown(desk, fragment(a))
            assert_page(seen, made, a)
            assert "within rounding" in seen["certificate"]


def test_thumbnails_are_pictures_and_nothing_else_is(chromium):
    tasks = tasks_of(2, control=False)
    contents = [PNG, "data:image/svg+xml;base64,PHN2Zy8+", f"{PNG} and more", "javascript:1"] * 30
    texts = {task.name: dict.fromkeys(SPLITS, contents) for task in tasks}
    made = page(tasks, ["first", "second"], texts=texts)
    data = tasks[0].splits["validation"]
    changed = np.flatnonzero(data.predicted([0, 0]) != data.predicted([1, 1]))
    with opened(chromium, made.html, **DESKTOP) as desk:
        shown(desk, fragment([1, 1], task="first"))
        desk.wait_for_timeout(400)
        while desk.locator("text=Show more").count():
            desk.click("text=Show more")
        assert desk.locator(".examples li").count() == len(changed)
        assert desk.locator(".examples img").count() == sum(n % 4 == 0 for n in changed)
        assert desk.evaluate("[...document.images].every((one) => one.naturalWidth === 1)")
        assert not desk.complaints


def test_only_sampled_points_are_shown_in_the_standard_regime(chromium):
    grid = [[0.0, 0.0], *([a, a] for a in (0.25, 0.5, 1.0)), [0.5, 0.0], [0.0, 0.5]]
    tasks = tasks_of(4, "sampled", exact=True)
    made = page(tasks, ["first", "second"], grid=grid)
    with opened(chromium, made.html, **DESKTOP) as desk:
        for a in grid:
            assert_page(shown(desk, fragment(a)), made, a)
            assert "This mix was sampled" in desk.inner_text(".nearest")
        assert_page(shown(desk, fragment([0.45, 0.1])), made, [0.5, 0.0])
        assert "nearest sampled point" in desk.inner_text(".nearest")
        assert "0.5 * vectors['first']" in (desk.click("text=Python") or desk.inner_text("#take pre"))
        desk.click("text=Move there")
        assert shown(desk)["sliders"][:2] == ["0.5", "0"]
        assert desk.locator("#xi").count() == 0
        assert desk.locator("#sweep path.curve").count() == 0
        assert desk.locator("#sweep circle.sample").count() >= 3
        assert not desk.complaints


def test_choices_master_boxes_and_snapshots_set_the_mix(desk, made):
    for choice in CHOICES:
        desk.click(f".chips button:has-text('{choice['name']}')")
        assert_page(shown(desk), made, choice["coefficients"])
    desk.locator("#master").fill("0.5")
    assert_page(shown(desk), made, [0.5, 0.5])
    desk.click("text=Keep this mix >> nth=0")
    box = desk.locator("input[type=number]").first
    box.fill("9")
    box.press("Enter")
    assert shown(desk)["boxes"][0] == "2"
    assert_page(shown(desk), made, [2.0, 0.5])
    desk.click("text=Go to A")
    assert_page(shown(desk), made, [0.5, 0.5])


def test_the_sweep_and_the_map_are_numpys(desk, made):
    a, first, second = [0.8, 0.4], made.tasks[0], made.tasks[1]
    desk.evaluate("fragment => { location.hash = fragment }", fragment(a, task="first"))
    desk.wait_for_timeout(1500)
    steps = np.linspace(0, 2.5, 41)  # 2.5 * 0.8 is the end of the range
    want = [first.splits["validation"].correct([s * 0.8, s * 0.4]) / 120 for s in steps]
    np.testing.assert_allclose(curve(desk), want, atol=0.003)
    axis = np.round(np.linspace(*LIMITS, 21), 9)
    top = max(xi(first, second, [x, y]) for x in axis for y in axis)
    assert desk.inner_text("#xi .bar span >> nth=1") == f"{top:.3f}"
    desk.locator("#scale").fill("1.25")
    seen = shown(desk)
    assert_page(seen, made, [1.0, 0.5])


def test_examples_are_the_rows_whose_class_changed(desk, made):
    a, task = [0.9, 0.1], made.tasks[0]
    shown(desk, fragment(a, task="first"))
    data = task.splits["validation"]
    before, now = data.predicted([0, 0]), data.predicted(a)
    kinds = {
        "All": before != now,
        "Fixed": (before != now) & (now == data.labels),
        "Broken": (before != now) & (before == data.labels),
    }
    desk.wait_for_timeout(200)
    for name, which in kinds.items():
        desk.click(f".examples button:has-text('{name}')")
        count = int(which.sum())
        assert (
            desk.inner_text(".examples h3")
            == f"Changed by this mix: {count} {'row' if count == 1 else 'rows'}"
        )
        while desk.locator("text=Show more").count():
            desk.click("text=Show more")
        texts = desk.locator(".examples .text").all_inner_texts()
        assert texts == [f"text {n} of first" for n in np.flatnonzero(which)]
        if count:
            row = int(np.flatnonzero(which)[0])
            assert f"class {before[row]} → class {now[row]}" in desk.locator(
                ".examples li"
            ).first.inner_text().replace("\n", " ")


def test_test_is_revealed_and_what_is_copied_says_so(desk, made):
    assert "chosen on validation" in desk.inner_text("#take pre")
    desk.click("#reveal")
    assert_page(shown(desk), made, CHOICES[0]["coefficients"], "test")
    assert "chosen on validation" in desk.inner_text("#take pre")
    desk.locator("#a0").press("ArrowRight")
    assert "chosen on test (revealed)" in desk.inner_text("#take pre")
    desk.click(".chips button:has-text('optimum')")
    assert "chosen on validation" in desk.inner_text("#take pre")


def test_what_is_copied_has_the_mix_with_all_its_digits(chromium, made):
    with opened(chromium, made.html, permissions=["clipboard-read", "clipboard-write"], **DESKTOP) as desk:
        shown(desk, fragment([0.123456789, -0.25]))
        for kind, wanted in {
            "Command line": "first=vectors/first.safetensors:0.123456789 second=vectors/second.safetensors:-0.25",
            "Recipe": '  "first": 0.123456789\n  "second": -0.25',
            "Python": "0.123456789 * vectors['first'] + -0.25 * vectors['second']",
        }.items():
            desk.click(f"#take button:has-text('{kind}')")
            desk.click("#copy")
            desk.wait_for_selector("text=Copied.")
            copied = desk.evaluate("navigator.clipboard.readText()")
            assert wanted in copied
            assert copied == desk.locator("#take pre bdi").text_content()


def test_the_state_is_in_the_address(desk, made):
    desk.click(".chips button:has-text('negate first')")
    desk.click(".pick:has-text('second')")
    until(desk, "location.hash.includes('second')")
    assert desk.evaluate("location.hash") == "#a=-0.5,0&task=second&split=validation"
    for bad in ("a=1", "a=x,y", "a=NaN,1", "a=0.5,0.5,0.5", "task=nobody", "%", "split=train"):
        shown(desk, bad)
        assert_page(shown(desk), made, [-0.5, 0.0])
    assert_page(shown(desk, "a=9,-9"), made, [2.0, -1.0])


def test_the_keyboard_alone_is_enough(desk, made):
    order = []
    for _ in range(60):
        desk.keyboard.press("Tab")
        order.append(
            desk.evaluate(
                "(document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent).trim()"
            )
        )
        if order[-1] == order[0] and len(order) > 1:
            break
    for name in ("Reveal test", "Coefficient of first", "Coefficient of first, as a number", "Coefficient of all vectors",
                 "optimum", "Keep this mix as snapshot A", "second", "Task", "All", "Fixed", "Scale of the whole mix",
                 "Interference matrix", "Go to the point", "Command line", "What is copied", "Copy"):  # fmt: skip
        assert any(name in one for one in order), (name, order)
    desk.locator("#a0").focus()
    before = float(shown(desk)["sliders"][0])
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "PageUp"):
        desk.keyboard.press(key)
    seen = shown(desk)
    assert float(seen["sliders"][0]) > before
    assert_page(seen, made, [float(value) for value in seen["sliders"][:2]])
    field = desk.locator(".field")
    field.focus()
    at = [float(value) for value in shown(desk)["sliders"][:2]]
    desk.keyboard.press("ArrowUp")
    desk.keyboard.press("Shift+ArrowLeft")
    seen = shown(desk)
    np.testing.assert_allclose(
        [float(value) for value in seen["sliders"][:2]], [at[0] - 0.1, at[1] + 0.01], atol=1e-9
    )
    desk.locator(".matrix").focus()
    desk.keyboard.press("ArrowDown")
    desk.keyboard.press("ArrowRight")
    assert "class 0 taken for class 1" in desk.inner_text(".confusion .readout")
    spot = desk.locator(".spot").nth(2)
    spot.focus()
    desk.keyboard.press("Enter")
    assert_page(shown(desk), made, [-0.75, 0.0])
    outlines = desk.evaluate("getComputedStyle(document.querySelector('#a0')).outlineStyle")
    assert outlines is not None


HOSTILE = [
    "<img src=x onerror=\"document.title='harmed'\">",
    "</script><script>document.title='harmed'</script>",
    "<!--<script>",
    "\u202eright to left\u202d \u2066isolated",
    "NaN",
    "line\u2028separators\u2029 &amp; \x07 bells",
    "long " * 200_000,
    "{{items}} $& $1 {name}",
]


def test_hostile_contents_are_text(chromium):
    generator = np.random.default_rng(5)
    tasks = [
        MadeTask(text, [*HOSTILE[:3], text, "fine"], place, "affine",
                 {split: rows_of(generator, 60, 5, len(HOSTILE), place) for split in SPLITS}, 0.95)
        for place, text in enumerate(HOSTILE)
    ]  # fmt: skip
    contents = [HOSTILE[n % 6] for n in range(60)]
    texts = {task.name: dict.fromkeys(SPLITS, contents) for task in tasks}
    texts[HOSTILE[0]]["validation"] = [HOSTILE[6]] * 5 + contents[5:]
    made = page(tasks, HOSTILE, texts=texts, title=HOSTILE[1], more={"notes": HOSTILE, "model": HOSTILE[0]})
    with opened(chromium, made.html, **DESKTOP) as desk:
        for place in range(len(HOSTILE)):
            desk.locator(".pick").nth(place).click()
            shown(desk, fragment(np.round(generator.uniform(0, 1, len(HOSTILE)), 2).tolist()))
            desk.wait_for_timeout(120)
        assert_page(shown(desk, fragment([0.5] * len(HOSTILE))), made, [0.5] * len(HOSTILE))
        assert desk.title() == HOSTILE[1]
        assert desk.locator("#desk img").count() == desk.locator("#desk script").count() == 0
        assert HOSTILE[0][:30] in desk.inner_text(".pick >> nth=0")
        assert "\u202e" not in desk.inner_text("#take pre")
        width = desk.evaluate("document.documentElement.scrollWidth")
        assert width <= 1280
        assert desk.evaluate("document.body.textContent.length") < 3 * len(desk.content())
        assert not desk.complaints
        assert len([one for one in desk.requests if not one.startswith("data:")]) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_axe_finds_nothing_serious(chromium, made, scheme, width):
    if not AXE.exists():
        pytest.skip("axe-core is not installed: npm ci in web/")
    with opened(
        chromium, made.html, viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True
    ) as desk:
        shown(desk, fragment([-0.9, 2]))
        desk.wait_for_timeout(600)
        desk.evaluate(AXE.read_text(encoding="utf-8"))
        found = desk.evaluate("axe.run()")
        bad = [
            (one["id"], one["impact"], [node["target"] for node in one["nodes"]][:4])
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
        ]
        assert not bad, json.dumps(bad, indent=1)
        assert desk.evaluate("document.documentElement.scrollWidth") <= width


def test_the_policy_refuses_what_is_not_the_pages_own(chromium, made):
    foreign = made.html.replace("</body>", "<script>document.title = 'harmed'</script></body>")
    with opened(chromium, foreign, **DESKTOP) as desk:
        assert desk.title() == "A desk"
        assert any("Content Security Policy" in one for one in desk.complaints)
        blocked = desk.evaluate("fetch('https://example.org').then(() => 'fetched', () => 'refused')")
        assert blocked == "refused"
        assert (
            desk.evaluate(
                "(() => { try { document.body.innerHTML = '<b>'; return 'set' } catch { return 'refused' } })()"
            )
            == "refused"
        )


def test_the_page_works_in_a_notebooks_sandbox(chromium, made):
    attributes = f'sandbox="allow-scripts" srcdoc="{html.escape(made.html)}" width="1200" height="800"'
    context = chromium.new_context(**DESKTOP)
    desk = context.new_page()
    complaints = []
    desk.on("pageerror", lambda error: complaints.append(str(error)))
    desk.set_content(f"<!doctype html><iframe {attributes}></iframe>")
    inside = desk.frame_locator("iframe")
    inside.locator(".chips button:has-text('zero')").click()
    before = made.tasks[0].splits["validation"].correct([0, 0]) / 120
    value = inside.locator("tr[data-task='0'] td[data-cell='now'] data")
    assert abs(float(value.get_attribute("value")) - before) < 1e-12
    inside.locator("#copy").click()
    desk.wait_for_timeout(400)
    assert not complaints
    context.close()
