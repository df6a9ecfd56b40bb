"""The benchmarks measure what they say: baselines against the engine in float64, arithmetic, files. Never seconds."""

import json
import time
from pathlib import Path

import pytest
import torch
from benchmarks import baselines, batched, caches, images, memory, pipeline, rows, run, search, steps, timing
from benchmarks.shapes import SHAPES

from tauspan.tangent import linearize
from tauspan.tasks import Task
from tauspan.train.settings import Settings

TINY = ("tiny-text", "tiny-vision", "tiny-decoder")
KEYS = ["what", "value", "goal", "low", "high", "unit", "met", "note"]


def tiny(**options):
    return rows.Setting(threads=1, rounds=1, shapes=("tiny-text",), short=True, **options)


# -- baselines ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["onepass", "reference"])
@pytest.mark.parametrize("name", TINY)
def test_the_papers_approach_agrees_with_the_engine(name, engine):
    shape = SHAPES[name]
    # CLIP's and Llama's eager attention rounds softmax to float32, and Llama's norm rounds with any attention
    attention = "eager" if shape.family == "bert" else "sdpa"
    close = dict.fromkeys(("rtol", "atol"), 1e-4 if shape.family == "llama" else 1e-10)
    paper = baselines.PaperModel(shape.encoder(attention).double())
    tangent = linearize(shape.encoder().double(), engine=engine)
    taus = {name: torch.randn_like(tau) for name, tau in tangent.tau.items()}
    with torch.no_grad():
        for name_of, theta in zip(paper.names, paper.theta, strict=True):
            theta.add_(taus[name_of.removeprefix("backbone.")])
        for key, tau in tangent.tau.items():
            tau.copy_(taus[key])
    batch = shape.inputs()
    batch = batch.double() if batch.is_floating_point() else batch
    expected, found = paper(batch), tangent(batch)
    torch.testing.assert_close(found, expected, **close)
    gradient = torch.randn_like(expected)
    (expected * gradient).sum().backward()
    (found * gradient).sum().backward()
    for name_of, theta in zip(paper.names, paper.theta, strict=True):
        tau = tangent.tau[name_of.removeprefix("backbone.")]
        torch.testing.assert_close(tau.grad, theta.grad, **close)


def test_the_papers_approach_starts_at_the_model_and_leaves_theta0_alone():
    shape = SHAPES["tiny-text"]
    model = shape.encoder("eager")
    paper = baselines.PaperModel(model)
    batch = shape.inputs()
    torch.testing.assert_close(paper(batch), shape.encoder()(batch))
    paper(batch).sum().backward()
    paper.optimiser(lr=1.0).step()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model(batch), shape.encoder()(batch))


@pytest.mark.parametrize("kind", ["ordinary", "paper", "onepass"])
def test_a_variant_computes_the_same_first_gradient(kind):
    shape, gradient = SHAPES["tiny-text"], torch.ones(3, 16)
    one = steps.variant(kind, shape, tiny())
    with torch.no_grad():
        for parameter in one.parameters if kind == "onepass" else ():
            parameter.zero_()
    one.step(gradient)
    plain = shape.encoder()
    plain(shape.inputs()).backward(gradient)
    for found, expected in zip(one.parameters, plain.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "params"), [("primal", "all"), ("factors", "all"), ("features", "last:1")])
def test_a_step_from_a_cache_is_a_step(kind, params):
    shape = SHAPES["tiny-text"]
    batch, gradient = shape.inputs(), torch.randn(3, caches.CLASSES)
    built = caches.cached(shape, kind, params, batch, gradient, tiny())
    built.step()
    assert built.bytes > 0


# -- timing ------------------------------------------------------------------------------------------------------


def planted(**seconds):
    return {name: [timing.Sample(wall, 10 * wall) for wall in walls] for name, walls in seconds.items()}


def test_ratios_are_formed_round_by_round():
    taken = planted(fast=[1.0, 3.0, 2.0], slow=[2.0, 4.0, 8.0])
    assert timing.ratio(taken, "fast", "slow") == timing.Spread(0.5, 0.25, 0.75)
    assert timing.ratio(taken, "slow", "fast", "cpu") == timing.Spread(2.0, 4 / 3, 4.0)
    assert timing.seconds(taken, "fast", "cpu") == timing.Spread(20.0, 10.0, 30.0)


def test_variants_run_in_turn_and_the_warm_up_does_not_count():
    order = []
    taken = timing.interleaved(
        {name: lambda name=name: order.append(name) for name in "ab"}, rounds=2, warmup=1
    )
    assert order == list("ababab")
    assert {name: len(samples) for name, samples in taken.items()} == {"a": 2, "b": 2}


def test_a_sample_counts_wall_and_cpu_time_apart():
    sample = timing.once(lambda: time.sleep(0.02))
    assert sample.wall > sample.cpu


def test_growth_sees_memory_that_is_given_back():
    def work():
        held = bytearray(b"\1") * (
            64 * 2**20
        )  # written, so resident: pages only read stay the shared zero page
        time.sleep(
            0.3
        )  # lets the sampling thread see it: filling a bytearray never gives up the interpreter's lock
        return len(held)

    assert 50 < timing.growth(work) < 120


@pytest.mark.slow
def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match="no-such-shape"):
        timing.in_fresh_process("benchmarks.memory", ["--kind", "paper", "--shape", "no-such-shape"], 1)


def test_memory_of_a_tiny_step():
    assert memory.step_growth("onepass", "tiny-text", tiny()) >= 0


# -- rows and files ----------------------------------------------------------------------------------------------


def test_goals_are_met_from_the_right_side():
    below, above = timing.Spread(0.94, 0.9, 1.0), timing.Spread(14.0, 13.0, 15.0)
    assert rows.row("a step", below, tiny(), "step / paper").met is True
    assert rows.row("a step", above, tiny(), "step / paper").met is False
    assert rows.row("a search", above, tiny(), "coefficient search", "times faster").met is False
    assert rows.row("no goal", below, tiny()).met is None


def test_the_goals_are_those_of_the_house():
    assert rows.GOALS["cpu"]["memory / paper"] == 0.45
    assert rows.GOALS["cuda"] == {"step / paper": 0.75, "step / ordinary": 1.72, "memory / paper": 0.4}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_command_writes_rows_and_keeps_a_table(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(run, "ROOT", tmp_path)
    threads = torch.get_num_threads()
    given = ["--short", "--only", "steps", "--threads", str(threads), "--shapes", *TINY, "--dtype", dtype]
    run.main([*given, "--out", str(tmp_path / "out"), "--keep"])
    content = json.loads((tmp_path / "out" / "steps.json").read_text())
    check_rows(content["rows"])
    assert {row["what"].split(":")[0] for row in content["rows"]} == set(TINY)
    assert content["provenance"]["setting"]["dtype"] == dtype
    assert {"device", "threads", "commit", "versions"} <= content["provenance"].keys()
    kept = sorted(Path(tmp_path / "benchmarks" / "results").iterdir())
    assert [file.suffix for file in kept] == [".json", ".md"]
    shown = kept[1].read_text()
    assert "| what | value | goal | low |" in shown
    assert "high" in shown  # wide numbers move the last column below


def check_rows(found):
    assert found
    for row in found:
        assert list(row) == KEYS
        assert row["low"] <= row["value"] <= row["high"]
        assert (row["met"] is None) == (row["goal"] is None)


@pytest.mark.slow
def test_caches_search_and_map_give_rows():
    found = [*caches.caches(tiny()), *search.search(tiny())]
    check_rows([one.as_dict() for one in found])
    by_what = {one.what: one for one in found}
    shared = next(one for what, one in by_what.items() if "one shared coefficient" in what)
    assert "same choice: yes" in shared.note
    drawn = next(one for what, one in by_what.items() if "20 x 20 map" in what)
    assert drawn.note.endswith("differs by at most 0")


def test_a_batch_of_weights_gives_what_each_gives_alone():
    shape = SHAPES["tiny-text"]
    blocks = batched.Blocks(shape.encoder().backbone).double().requires_grad_(False)
    states = torch.randn(3, 5, shape.width, dtype=torch.float64)
    at_once, in_turn = batched.ways(blocks, states, 3)
    torch.testing.assert_close(at_once(), in_turn(), rtol=0, atol=1e-12)
    assert not torch.equal(in_turn()[0], in_turn()[1])
    check_rows([one.as_dict() for one in batched.batched(tiny())])


def test_reading_images_gives_rows():
    one, all_threads = images.images(tiny(), count=3)
    check_rows([one.as_dict(), all_threads.as_dict()])
    assert one.unit == "ms"


def test_the_best_coefficient_is_the_smallest_of_the_best():
    assert search.best({0.0: 0.5, 0.5: 0.9, 1.0: 0.9}) == 0.5


# -- pipeline ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_both_pipelines_reach_the_same_validation_accuracy():
    shape, (left, right) = SHAPES["tiny-text"], tasks(2)
    settings = Settings(regime="linear", epochs=2, batch_size=8, lr=1e-2)
    found = pipeline.compared(shape.encoder(), shape.encoder("eager"), [left, right], settings, tiny(), 1)
    check_rows([one.as_dict() for one in found])
    assert found[1].value == 0


def tasks(count):
    shape = SHAPES["tiny-text"]
    made = []
    for seed in range(count):
        inputs = shape.inputs(24, seed)
        labels = (inputs[:, 0] > 25).long()
        parts = {"train": slice(0, 16), "validation": slice(16, 24), "test": slice(16, 24)}
        splits = {name: (inputs[part], labels[part]) for name, part in parts.items()}
        made.append(Task.from_tensors(f"task{seed}", ["low", "high"], **splits))
    return made
