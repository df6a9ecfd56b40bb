"""What keeps models from being merged: each case is found, and its message names tensor, model, file and repair."""

import json

import pytest
import torch

from helpers import tiny
from tauspan import store
from tauspan.core import params
from tauspan.core.errors import BaseMismatchError, MismatchError, NonFiniteError, StoreError, UsageError
from tauspan.merge.checks.checks import check, doctor, nonfinite
from tauspan.merge.lora.adapters import CONFIG, WEIGHTS
from tauspan.merge.sources import source as inside
from tauspan.merge.sources.opening import open_source
from tauspan.merge.sources.problems import LENIENT, Problem, require_none

PLAIN = {
    "emb.word_embeddings.weight": torch.ones(5, 2),
    "layer.0.weight": torch.ones(2, 2),
    "norm.bias": torch.ones(2),
}


@pytest.fixture
def made(tmp_path):
    """Makes sources: `made("a", {name: tensor}, config)`."""

    def make(label, tensors=PLAIN, config=None, **files):
        folder = tmp_path / label
        store.write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
        if config is not None:
            store.write_json(folder / "config.json", config)
        for name, content in files.items():
            suffix = ".txt" if isinstance(content, str) else ".json"
            (folder / (name + suffix)).write_text(
                content if isinstance(content, str) else json.dumps(content)
            )
        return open_source(folder)

    return make


@pytest.fixture
def vector(tmp_path):
    def make(label, base=tiny.BASE, regime="standard", **deltas):
        tau = tiny.vector(base, regime, label, **deltas)
        return open_source(tau.save_pretrained(tmp_path / f"{label}.safetensors"))

    return make


def one(problems, kind, severity="error", tensor=None, model="b", *words):
    """The only problem, with what its message must say."""
    assert [(p.severity, p.kind, p.tensor, p.model) for p in problems] == [(severity, kind, tensor, model)]
    for word in words:
        assert str(word) in problems[0].message, problems[0].message
    return problems[0]


def test_models_that_fit_have_no_problem(made):
    config = {"model_type": "x", "architectures": ["X"]}
    sources = [made(label, config=config, vocab="a\nb\n") for label in "abc"]
    assert check(sources[0], sources[1:]) == check(None, sources) == ()
    require_none(())


def test_the_order_of_tensors_does_not_matter(made):
    assert check(made("a"), [made("b", dict(reversed(PLAIN.items())))]) == ()


# -- names ---------------------------------------------------------------------------------------------------


def test_a_missing_tensor(made):
    a, b = made("a"), made("b", {k: v for k, v in PLAIN.items() if k != "norm.bias"})
    found = one(
        check(a, [b]),
        "missing_tensors",
        "error",
        "norm.bias",
        "b",
        a.path,
        b.path,
        "'norm.bias'",
        "saved whole",
    )
    assert found.file == b.path


def test_an_extra_tensor(made):
    a, b = made("a"), made("b", PLAIN | {"head.weight": torch.ones(2)})
    found = one(
        check(a, [b]), "extra_tensors", "error", "head.weight", "b", a.path, "'head.weight'", "one class"
    )
    assert found.file == b.path / "model.safetensors"


def test_many_tensors_make_one_problem_that_counts_them(made):
    more = {f"x{n}": torch.ones(1) for n in range(9)}
    one(
        check(made("a"), [made("b", PLAIN | more)]),
        "extra_tensors",
        "error",
        "x0",
        "b",
        "'x0' and 8 more (x1, x2, x3 and",
    )


@pytest.mark.parametrize(
    ("prefix", "repair"),
    [
        ("model.", "Save both from one class"),
        ("module.", "DistributedDataParallel"),
        ("_orig_mod.", "torch.compile"),
    ],
)
@pytest.mark.parametrize("on", ["a", "b"])
def test_another_prefix(made, prefix, repair, on):
    longer = {prefix + name: tensor for name, tensor in PLAIN.items()}
    a, b = made("a", longer if on == "a" else PLAIN), made("b", longer if on == "b" else PLAIN)
    problems = check(a, [b])
    one(problems, "prefix", "error", problems[0].tensor, "b", repr(prefix), a.path, b.path, repair)
    assert problems[0].tensor.startswith(prefix)


def test_a_prefix_is_told_apart_from_what_is_missing_or_extra_besides(made):
    longer = {"model." + name: tensor for name, tensor in PLAIN.items() if name != "norm.bias"}
    problems = check(made("a"), [made("b", longer | {"head.weight": torch.ones(1)})])
    assert {(p.kind, p.tensor) for p in problems if p.kind != "prefix"} == {
        ("missing_tensors", "norm.bias"),
        ("extra_tensors", "head.weight"),
    }
    assert len(problems) == 3


def test_tied_weights_on_one_side_only(made):
    embedding = {"model.embed_tokens.weight": torch.ones(5, 2)}
    apart = embedding | {"lm_head.weight": torch.zeros(5, 2)}
    for config in ({"tie_word_embeddings": True}, {"model_type": "x"}):
        tied, untied = made("a", embedding, config), made("b", apart, {"tie_word_embeddings": False})
        words = (
            "'lm_head.weight'",
            "'model.embed_tokens.weight'",
            tied.path,
            untied.path,
            "`tie_word_embeddings`",
        )
        one(check(tied, [untied]), "tied", "error", "lm_head.weight", "b", *words)
        one(check(untied, [tied]), "tied", "error", "lm_head.weight", "a", *words)
        one(check(untied, [tied], allow=["tied"]), "tied", "warning", "lm_head.weight", "a")


def test_tied_weights_that_kept_different_names_are_one_tensor(tmp_path):
    for label, kept, dropped in (("a", "x", "y"), ("b", "y", "x")):
        store.write_tensors(tmp_path / f"{label}.safetensors", {kept: torch.ones(2)}, {dropped: kept})
    a, b = (open_source(tmp_path / f"{label}.safetensors") for label in "ab")
    assert check(a, [b]) == ()
    assert torch.equal(b.read("x", 0, 2), a.read("x", 0, 2))


# -- contents ------------------------------------------------------------------------------------------------


def test_another_shape(made):
    a, b = made("a"), made("b", PLAIN | {"layer.0.weight": torch.ones(2, 3)})
    found = one(
        check(a, [b]),
        "shape",
        "error",
        "layer.0.weight",
        "b",
        "(2, 3)",
        "(2, 2)",
        "one size and architecture",
    )
    assert found.file == b.path / "model.safetensors"
    assert str(a.path / "model.safetensors") in found.message


def test_another_vocabulary(made):
    a, b = made("a"), made("b", PLAIN | {"emb.word_embeddings.weight": torch.ones(7, 2)})
    words = ("7 rows", "5 in", a.path, b.path, "resize_token_embeddings(7)")
    one(check(a, [b]), "vocabulary", "error", "emb.word_embeddings.weight", "b", *words)


def test_mixed_dtypes_are_a_warning_and_numbers_against_codes_an_error(made):
    a, b = made("a"), made("b", {name: tensor.bfloat16() for name, tensor in PLAIN.items()})
    words = ("and 2 more", "bfloat16", "float32", b.path)
    one(check(a, [b]), "dtypes", "warning", "emb.word_embeddings.weight", "b", *words)
    c = made("c", PLAIN | {"norm.bias": torch.ones(2, dtype=torch.int64)})
    one(check(a, [c]), "dtypes", "error", "norm.bias", "c", "int64", "float32", "Save both in one dtype")


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint16, torch.bool])
def test_integer_buffers_that_differ(made, dtype):
    a = made("a", {"ids": torch.tensor([0, 1, 1]).to(dtype)})
    b = made("b", {"ids": torch.tensor([0, 1, 0]).to(dtype)})
    words = ("entry 2 is", a.path, b.path, "copied, not averaged")
    one(check(a, [b]), "buffers", "error", "ids", "b", *words)
    assert check(a, [made("c", {"ids": torch.tensor([0, 1, 1]).to(dtype)})]) == ()


def test_large_and_empty_buffers_are_not_read(made):
    for size in (0, (1 << 16) + 1):
        a, b = (made(f"{label}{size}", {"ids": torch.full((size,), n)}) for n, label in enumerate("ab"))
        assert check(a, [b]) == ()


# -- whole models --------------------------------------------------------------------------------------------


def test_other_architectures(made):
    a = made("a", config={"model_type": "llama", "architectures": ["L"]})
    b = made("b", config={"model_type": "mistral", "architectures": ["L"]})
    c = made("c", config={"model_type": "llama", "architectures": ["M"]})
    words = ("'mistral'", "'llama'", a.path, b.path, "one architecture")
    one(check(a, [b]), "architecture", "error", None, "b", *words)
    one(check(a, [c]), "architecture", "warning", None, "c", "['M']", "['L']")
    assert check(a, [made("d")]) == ()  # no configuration, nothing to compare


def tokenizer(*pieces, unigram=False, added=()):
    vocab = [[piece, -1.0] for piece in pieces] if unigram else {piece: n for n, piece in enumerate(pieces)}
    return {
        "model": {"vocab": vocab},
        "added_tokens": [{"content": t, "id": len(pieces) + n} for n, t in enumerate(added)],
    }


@pytest.mark.parametrize("kind", ["txt", "vocab", "bpe", "unigram", "added"])
def test_tokenizers_that_differ_though_shapes_agree(made, kind):
    files = {
        "txt": lambda *pieces: {"vocab": "\n".join(pieces)},
        "vocab": lambda *pieces: {"vocab": {piece: n for n, piece in enumerate(pieces)}},
        "bpe": lambda *pieces: {"tokenizer": tokenizer(*pieces)},
        "unigram": lambda *pieces: {"tokenizer": tokenizer(*pieces, unigram=True)},
        "added": lambda *pieces: {"tokenizer": tokenizer(*pieces[:2], added=pieces[2:])},
    }[kind]
    a, b = made("a", **files("x", "y", "cat")), made("b", **files("x", "y", "dog"))
    words = ("id 2 is 'dog'", "'cat'", "(1 such ids)", a.path, b.path, "`tokenizer_source`")
    found = one(check(a, [b]), "tokenizer", "error", None, "b", *words)
    assert found.file.parent == b.path
    c = made("c", **files("x", "y", "cat", "new"))
    one(check(a, [c]), "tokenizer", "warning", None, "c", "4 tokens", "3;", "'new'", "`tokenizer_source`")


def test_tokenizers_of_one_meaning_in_other_bytes_fit(made):
    a, b = made("a", vocab={"x": 0, "y": 1}), made("b", vocab={"y": 1, "x": 0})
    assert check(a, [b]) == ()


def test_a_tokenizer_of_an_unknown_format_is_compared_by_bytes(made, tmp_path):
    a, b = made("a", tokenizer={"model": {}}), made("b", tokenizer={"model": None})
    one(check(a, [b]), "tokenizer", "warning", None, "b", "different bytes", a.path, b.path, "one tokenizer")
    c, d = made("c"), made("d")
    for source, content in ((c, b"1"), (d, b"2")):
        (source.path / "tokenizer.model").write_bytes(content)
    one(check(c, [d]), "tokenizer", "warning", None, "d", "different bytes")


# -- displacements -------------------------------------------------------------------------------------------


def test_vectors_of_a_base_need_not_hold_all_its_tensors(made, vector):
    a = made("a", {"w": torch.ones(2), "v": torch.ones(1), "ids": torch.arange(2)})
    assert check(a, [vector("x", w=[1, 2]), vector("y", w=[3, 4])]) == ()


def test_a_vector_that_another_does_not_match(made, vector):
    a = made("a", {"w": torch.ones(2), "v": torch.ones(1)})
    x, y = vector("x", w=[1, 2], v=[1]), vector("y", w=[3, 4])
    one(check(a, [x, y]), "missing_tensors", "error", "v", "y", y.path, "'v'", "filled_like")
    one(check(None, [x, y]), "missing_tensors", "error", "v", "y")
    one(check(a, [vector("z", u=[1])]), "extra_tensors", "error", "u", "z", "'u'", a.path)
    one(check(a, [vector("s", w=[1, 2, 3])]), "shape", "error", "w", "s", "(3,)", "(2,)")


def test_adapters_of_other_modules_meet(made, tmp_path):
    base = made("base", {"p.weight": torch.ones(3, 3), "q.weight": torch.ones(3, 3)})
    sources = []
    for target in "pq":
        names = (f"base_model.model.{target}.lora_{side}.weight" for side in "AB")
        store.write_tensors(
            tmp_path / target / WEIGHTS, dict(zip(names, (torch.ones(1, 3), torch.ones(3, 1)), strict=True))
        )
        store.write_json(
            tmp_path / target / CONFIG,
            {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": [target]},
        )
        sources.append(open_source(tmp_path / target))
    assert check(base, sources) == check(None, sources) == ()


def test_vectors_of_other_bases_and_regimes(made, vector):
    a = made("a", {"w": torch.ones(2)})
    x, y, z = vector("x", w=[1, 2]), vector("y", "c" * 64, w=[1, 2]), vector("z", regime="linear", w=[1, 2])
    one(check(a, [x, y]), "base", "error", None, "y", "bbbb", "cccc", x.path, y.path, "one pre-trained model")
    one(check(a, [x, z]), "regime", "error", None, "z", "linear", "standard", x.path, z.path, "one regime")


def test_the_base_is_recognised_by_content_when_asked(made, vector):
    a = made("a", PLAIN | {"ids": torch.arange(3)})
    own = vector("own", params.fingerprint(PLAIN), **{"norm.bias": [1, 2]})
    other = vector("other", **{"norm.bias": [1, 2]})
    assert check(a, [other]) == ()
    assert check(a, [own], fingerprint=True) == ()
    words = ("bbbbbbbbbbbb", params.fingerprint(PLAIN)[:12], a.path, other.path, "rebased")
    one(check(a, [other], fingerprint=True), "base", "error", None, "other", *words)


def test_weights_and_displacements_meet_only_at_a_base(made, vector):
    a, x = made("a", {"w": torch.ones(2)}), vector("x", w=[1, 2])
    assert check(a, [a, x]) == ()
    words = ("a displacement", "a model's weights", a.path, x.path, "`base_model`")
    one(check(None, [a, x]), "spaces", "error", None, "x", *words)
    one(check(x, [x]), "spaces", "error", None, "x", "the base", x.path, "pre-trained model")


# -- leniency and raising ------------------------------------------------------------------------------------


def test_leniency_is_by_name_and_makes_warnings(made):
    a, b = made("a"), made("b", PLAIN | {"head.weight": torch.ones(2)})
    one(check(a, [b], allow=["extra_tensors"]), "extra_tensors", "warning", "head.weight")
    for kind in ("extra_tensor", "values"):
        with pytest.raises(UsageError, match=f"allow has '{kind}', which is no leniency"):
            check(a, [b], allow=[kind])
    assert all(LENIENT.values())


def test_errors_come_first_and_are_raised_together(made):
    b = made(
        "b", {name: tensor.bfloat16() for name, tensor in PLAIN.items()} | {"layer.0.weight": torch.ones(3)}
    )
    c = made("c", PLAIN | {"head.weight": torch.ones(2)})
    problems = check(made("a"), [b, c])
    assert [p.severity for p in problems] == ["error", "error", "warning"]
    with pytest.raises(
        MismatchError, match=r"(?s)'layer.0.weight'.*'head.weight'.*`--allow extra_tensors --allow shape`"
    ) as caught:
        require_none(problems)
    assert "bfloat16" not in str(caught.value)
    require_none(problems[2:])


@pytest.mark.parametrize(
    ("kind", "error"), [("base", BaseMismatchError), ("values", NonFiniteError), ("unreadable", StoreError)]
)
def test_each_kind_is_raised_as_its_error(kind, error):
    problem = Problem("error", kind, None, "m", None, "what is wrong")
    assert str(problem) == f"error ({kind}): what is wrong"
    with pytest.raises(error, match="what is wrong"):
        require_none([problem])


# -- doctor --------------------------------------------------------------------------------------------------


def test_the_doctor_shows_models_and_problems(made):
    a = made("a", PLAIN | {"ids": torch.arange(3)}, {"tie_word_embeddings": True})
    b = made("b", PLAIN)
    found = doctor([b.path], a.path)
    report = found.report()
    models, problems = report.tables
    assert [row["model"] for row in models.rows] == ["a", "b"]
    assert models.rows[0] | {"path": ""} == {
        "model": "a",
        "path": "",
        "kind": "point",
        "files": 1,
        "tensors": 4,
        "parameters": 16,
        "bytes": 16 * 4 + 3 * 8,
        "dtypes": "float32 (3), int64 (1)",
        "tied": "",
        "vocabulary": 5,
    }
    (row,) = problems.rows
    assert (row["severity"], row["kind"], row["model"], row["tensor"]) == (
        "error",
        "missing_tensors",
        "b",
        "ids",
    )
    assert (report.result["errors"], report.result["warnings"]) == (1, 0)
    verdict = "These models cannot be merged as they are: 1 error (missing_tensors in b). They can with "
    verdict += "--allow missing_tensors."
    assert report.result["verdict"] == found.verdict == verdict
    assert report.provenance["inputs"][0]["path"] == str(a.path)
    assert "missing_tensors" in report.to_markdown()
    assert type(report).from_json(report.to_json()).result == report.result


def test_the_doctor_goes_on_after_what_it_cannot_read(made, tmp_path):
    a, b = made("a"), made("b", {"w": torch.ones(1)})
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 20)
    found = doctor([tmp_path / "broken.safetensors", a.path, b.path])
    assert {(problem.kind, problem.model) for problem in found.problems} == {
        ("unreadable", str(tmp_path / "broken.safetensors")),
        ("missing_tensors", "b"),
        ("extra_tensors", "b"),
    }
    for name in "ab":
        (tmp_path / name / "vocab.json").write_text("{" + name)
    assert any("vocab.json cannot be read" in one.message for one in doctor([a.path, b.path]).problems)
    alone = doctor([tmp_path / "broken.safetensors"])
    assert (len(alone.report().tables), len(alone.errors)) == (1, 1)


def test_the_doctor_is_content_with_what_fits(made):
    moved = {name: tensor + 0.5 if tensor.is_floating_point() else tensor for name, tensor in PLAIN.items()}
    found = doctor([made("a").path], made("b", moved).path, values=True)
    report = found.report()
    assert (found.problems, found.errors) == ([], [])
    assert report.result == {"verdict": "These models can be merged: no errors.", "errors": 0, "warnings": 0}
    assert (report.tables[-1].rows, report.tables[-1].note) == ([], "none")


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn]
)
def test_values_that_are_not_finite_are_found_when_asked(made, monkeypatch, dtype):
    monkeypatch.setattr(inside, "LOOK", 4)
    bad = torch.ones(3, 4)
    bad[1, 3] = bad[2, 0] = float("nan")
    a = made("a", {"ids": torch.arange(5), "w": bad.to(dtype), "empty": torch.ones(0)})
    assert not doctor([a.path]).errors
    (one,) = doctor([a.path], values=True).problems
    assert (one.kind, one.model, one.tensor, str(one.file)) == (
        "values",
        "a",
        "w",
        str(a.path / "model.safetensors"),
    )
    assert "has 2 of 12 values that are not finite, the first at entry 7" in one.message
    (problem,) = nonfinite(a)
    with pytest.raises(NonFiniteError, match="train again"):
        require_none([problem])


def test_the_doctor_compares_fingerprints_with_values(made, vector):
    a, x = made("a"), vector("x", **{"norm.bias": [1, 2]})
    assert not doctor([x.path], a.path).errors
    assert doctor([x.path], a.path, values=True).problems[0].kind == "base"


def test_a_hundred_gigabytes_of_headers_are_checked_without_their_values(tmp_path):
    """Sparse files: the sizes are real, the bytes are not there."""
    names = [
        f"model.layers.{layer}.mlp.{part}.weight" for layer in range(20) for part in ("up", "down", "gate")
    ]
    header, end = {}, 0
    for name in names:
        header[name] = {"dtype": "BF16", "shape": [16384, 16384], "data_offsets": [end, end + 2**29]}
        end += 2**29
    text = json.dumps(header).encode()
    sources = []
    for label in "abc":
        file = tmp_path / label / "model.safetensors"
        file.parent.mkdir()
        with file.open("wb") as handle:
            handle.write(len(text).to_bytes(8, "little") + text)
            handle.truncate(8 + len(text) + end)
        sources.append(open_source(file.parent))
    assert check(sources[0], sources[1:]) == ()
    assert sum(stored.nbytes for source in sources for stored in source.tensors.values()) > 90e9
    assert sources[0].read(names[-1], 2**28 - 4, 2**28).tolist() == [0.0] * 4
    for source in sources:
        source.close()
