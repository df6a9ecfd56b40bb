"""Wrong arguments: each is refused with a sentence that names what was given, what is wanted, and what to write."""

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

import tauspan as ts
from helpers.runs import encoder, points
from tauspan import editing, kernel, train
from tauspan.core.arguments import checked, described, in_words, misfit
from tauspan.core.errors import ArgumentError, UsageError
from tauspan.experiments.sweep import Job, sweep
from tauspan.kernel.diagnose import kernel_report
from tauspan.models import Encoder, fingerprint_of
from tauspan.tasks import data
from tauspan.vector import TaskVector

E = encoder()
T = points()
V = TaskVector(
    {n: 0.1 * p.detach() for n, p in E.backbone.named_parameters()}, fingerprint_of(E), "linear", "tau"
)
NET = nn.Linear(4, 2).double()
X = torch.eye(4, dtype=torch.float64)
QUIET: dict[str, Any] = {}

# a call, what its message says was wrong, and what it says to write
WRONG: dict[str, tuple[Callable[[], object], str, str]] = {
    "a task for tasks": (lambda: ts.evaluate(E, T).report(), "`tasks` is a Task", "write [task]"),
    "names for tasks": (
        lambda: ts.evaluate(E, ["email_spam"]).report(),
        "`tasks[0]` is the text 'email_spam'",
        "write tauspan.suite(['email_spam'])",
    ),
    "a name for tasks": (
        lambda: ts.evaluate(E, "email_spam").report(),
        "`tasks` is the text 'email_spam'",
        "write tauspan.suite(['email_spam'])",
    ),
    "a path for a model": (
        lambda: ts.evaluate("minilm", [T]).report(),
        "`encoder` is the text 'minilm'",
        "write tauspan.load('minilm')",
    ),
    "a module for an encoder": (
        lambda: ts.evaluate(NET, [T]).report(),
        "`encoder` is a Linear",
        "write tauspan.load(module)",
    ),
    "a path for a vector": (
        lambda: ts.evaluate(E, [T], "v.safetensors").report(),
        "the text 'v.safetensors'",
        "write tauspan.TaskVector.from_pretrained('v.safetensors')",
    ),
    "a text for a number": (
        lambda: ts.evaluate(E, [T], V, "0.5").report(),
        "`scale` is the text '0.5', and a number is wanted",
        "write float('0.5')",
    ),
    "a regime that is not there": (
        lambda: ts.evaluate(E, [T], V, 1.0, "liner").report(),
        "regime='liner'",
        "Did you mean 'linear'?",
    ),
    "a split that is not there": (
        lambda: ts.evaluate(E, [T], split="tests").report(),
        "split='tests'",
        "Did you mean 'test'?",
    ),
    "an argument that is not there": (
        lambda: ts.evaluate(E, [T], redaing=ts.Reading(3)).report(),
        "evaluate takes no argument `redaing`",
        "Did you mean 'reading'?",
    ),
    "a list for a mapping": (
        lambda: ts.add(E, [V]).report(),
        "`vectors` is a list",
        "write dict(zip(tasks, vectors, strict=True))",
    ),
    "a vector for a mapping": (
        lambda: ts.add(E, V).report(),
        "`vectors` is a TaskVector",
        "write {task: vector}",
    ),
    "names as keys": (
        lambda: ts.add(E, {"email_spam": V}).report(),
        "a key of `vectors` is the text 'email_spam'",
        "write tauspan.suite(['email_spam'])",
    ),
    "a run for its vector": (
        lambda: ts.add(E, {T: train.Finetuned(V, [])}).report(),
        "is a Finetuned",
        "write run.task_vector",
    ),
    "a control for controls": (
        lambda: ts.negate(E, T, V, T).report(),
        "`controls` is a Task",
        "write [task]",
    ),
    "two arguments exchanged": (
        lambda: ts.apply(V, E),
        "`module` is a TaskVector, and a torch module is wanted",
        "the call is apply(module, vector, scale",
    ),
    "a vector for vectors": (lambda: ts.cosine_matrix(V), "`vectors` is a TaskVector", "write [vector]"),
    "a mapping for vectors": (
        lambda: ts.cosine_matrix({T: V}),
        "`vectors` is a dict",
        "write list(vectors.values())",
    ),
    "a number of vectors": (
        lambda: ts.merge(V, "task_arithmetic"),
        "`vectors` is a TaskVector",
        "write [vector]",
    ),
    "a fraction of steps": (
        lambda: ts.fit(E, T, max_steps=1.5),
        "`max_steps` is the number 1.5, and a whole number is wanted",
        "write int(1.5)",
    ),
    "a regime for settings": (
        lambda: ts.finetune(E, T, "linear"),
        "`settings` is the text 'linear', and a Settings is wanted",
        "",
    ),
    "a task's name": (
        lambda: ts.finetune(E, "email_spam"),
        "`task` is the text 'email_spam'",
        "write tauspan.suite(['email_spam'])",
    ),
    "a yes for a number": (
        lambda: ts.fit(E, T, max_steps=True),
        "`max_steps` is True, and a whole number is wanted",
        "",
    ),
    "a solver that is not there": (lambda: ts.fit(E, T, "lbgfs"), "solver='lbgfs'", "Did you mean 'lbfgs'?"),
    "numpy for a tensor": (
        lambda: ts.TangentKernel(NET, X).matvec(np.ones(8)),
        "`vector` is a numpy ndarray of shape (8,)",
        "write torch.from_numpy(array)",
    ),
    "a list for a tensor": (
        lambda: ts.TangentKernel(NET, X).solve([1.0] * 8),
        "`residual` is a list",
        "write torch.tensor(values)",
    ),
    "a kernel of something else": (
        lambda: ts.TangentKernel(V, X),
        "`module` is a TaskVector",
        "the call is TangentKernel(module, x",
    ),
    "a kernel of a path": (
        lambda: ts.TangentKernel("minilm", X),
        "`module` is the text 'minilm'",
        "write tauspan.load('minilm')",
    ),
    "a backend that is not there": (
        lambda: ts.TangentKernel(NET, X, backend="product"),
        "backend='product'",
        "Did you mean 'products'?",
    ),
    "a path to linearise": (
        lambda: ts.linearize("minilm"),
        "`module` is the text 'minilm'",
        "write tauspan.load('minilm')",
    ),
    "an engine that is not there": (
        lambda: ts.linearize(NET, engine="one-pass"),
        "engine='one-pass'",
        "Did you mean 'onepass'?",
    ),
    "a model's path to save": (
        lambda: ts.save("minilm", "out"),
        "the text 'minilm'",
        "write tauspan.load('minilm')",
    ),
    "a model for a folder": (lambda: ts.save(E, E), "`path` is an Encoder", "save it and give its folder"),
    "a vector's tensors": (
        lambda: ts.TaskVector.from_pretrained(V),
        "`path` is a TaskVector",
        "vector.save_pretrained(",
    ),
    "numpy in a vector": (
        lambda: ts.TaskVector({"w": np.ones(2)}, "b", "linear"),
        "`deltas['w']` is a numpy ndarray",
        "write torch.from_numpy(array)",
    ),
    "a recipe's path": (
        lambda: ts.run("r.yaml", "out"),
        "`recipe` is the text 'r.yaml'",
        "write tauspan.Recipe.read('r.yaml')",
    ),
    "a name for names": (
        lambda: ts.suite("email_spam"),
        "`names` is the text 'email_spam'",
        "write ['email_spam']",
    ),
    "a vector to load into a tangent model": (
        lambda: ts.linearize(NET).load_task_vector(NET),
        "`vector` is a Linear",
        "load_task_vector(vector",
    ),
    "tasks as a generator": (
        lambda: kernel_report(E, (t for t in [T])),
        "`tasks` is a generator",
        "write list(...)",
    ),
    "vectors of two tasks as a list": (
        lambda: ts.disentanglement(E, [V, V]).report(),
        "`vectors` is a list",
        "write dict(zip(tasks, vectors, strict=True))",
    ),
    "a front without its task": (
        lambda: editing.front(E, V, T, [T]).report(),
        "`task` is a TaskVector",
        "the call is front(encoder, task, vector, controls",
    ),
    "a job's name for a job": (
        lambda: sweep(["a"], "out"),
        "`jobs[0]` is the text 'a'",
        "the call is sweep(jobs, folder",
    ),
    "a job for jobs": (
        lambda: sweep(Job("a", "math:sqrt"), "out"),
        "`jobs` is a Job",
        "the call is sweep(jobs, folder",
    ),
    "a data set that is no name": (
        lambda: data.open_task(T),
        "`name` is a Task",
        "the call is open_task(name",
    ),
    "an integer for a name": (lambda: ts.load(3), "is the number 3", "the call is load("),
    "a ridge as a text": (
        lambda: kernel.solve_ridge(ts.TangentKernel(NET, X), torch.ones(8), "1e-3"),
        "`ridge` is the text '1e-3'",
        "write float('1e-3')",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_call_is_refused_with_what_is_wanted_and_what_to_write(case: str) -> None:
    call, wrong, write = WRONG[case]
    with pytest.raises(ArgumentError) as raised:
        call()
    assert wrong in str(raised.value)
    assert write in str(raised.value)
    assert len(str(raised.value)) < 400
    assert isinstance(raised.value, UsageError)
    assert isinstance(raised.value, TypeError)
    assert raised.value.exit_code == 2


REPAIRED: dict[str, Callable[[], object]] = {
    "write [task]": lambda: ts.evaluate(E, [T], **QUIET).report(),
    "write tauspan.suite": lambda: ts.evaluate(
        ts.load("minilm"), [ts.suite(["email_spam"])[0].subset(test=2)], **QUIET
    ).report(),
    "write tauspan.load(module)": lambda: ts.evaluate(ts.load(NET), [dataclass_task()], **QUIET).report(),
    "write float": lambda: ts.evaluate(E, [T], V, float("0.5"), **QUIET).report(),
    "write dict(zip": lambda: ts.add(E, dict(zip([T], [V], strict=True)), grid=[0.0], **QUIET).report(),
    "write {task: vector}": lambda: ts.add(E, {T: V}, grid=[0.0], **QUIET).report(),
    "write [vector]": lambda: ts.cosine_matrix([V]),
    "write list(vectors.values())": lambda: ts.cosine_matrix(list({T: V}.values())),
    "write torch.from_numpy": lambda: ts.TangentKernel(NET, X).matvec(torch.from_numpy(np.ones(8))),
    "write torch.tensor(values)": lambda: ts.TangentKernel(NET, X).solve(torch.tensor([1.0] * 8), 0.1),
    "write vector.deltas": lambda: ts.linearize(E).tangent(X, vectors=[V.deltas]),
    "write ['email_spam']": lambda: ts.suite(["email_spam"]),
}


def dataclass_task() -> Any:
    rows = (X.repeat(2, 1), torch.arange(8) % 2)
    return ts.Task.from_tensors("t", ["a", "b"], train=rows, validation=rows, test=rows)


@pytest.mark.parametrize("case", REPAIRED)
def test_what_a_message_says_to_write_runs(case: str) -> None:
    assert REPAIRED[case]() is not None


# -- types -------------------------------------------------------------------------------------------------------


class Shaped(typing.Protocol):
    """Any module may have such a thing."""

    shape: int


FITTING: list[tuple[Any, Any]] = [
    (3, float),
    (np.float32(1), float),
    (np.int64(1), int),
    (True, bool),
    (np.bool_(True), bool),
    (None, int | None),
    ([1, 2], Sequence[int]),
    ((1, 2), Sequence[int]),
    (torch.ones(2), Sequence[float]),
    (np.ones(2), Sequence[float]),
    (range(3), Sequence[int]),
    ({"a": 1}, Mapping[str, int]),
    ({}, Mapping[str, int]),
    ([], Sequence[Encoder]),
    ("x", str | Path),
    (Path("x"), str | Path),
    ("paper", Literal["paper"] | Sequence[float]),
    (len, Callable[[Any], int]),
    ("anything", Literal["paper", "auto"] | Sequence[float]),  # such a text the function itself reads
    (iter([1]), Iterator[int]),
    (object(), Any),
    (object(), Shaped),
    ((1.0, 2.0), tuple[float, float]),
    ([1, 2], tuple[float, float]),
    ({"a": {"b": 1}}, Mapping[str, Mapping[str, int]]),
    (int, type[int]),
]
MISFITTING: list[tuple[Any, Any, str]] = [
    ("3", float, "x"),
    (1.0, int, "x"),
    (True, int, "x"),
    (1, bool, "x"),
    ("ab", Sequence[str], "x"),
    (b"ab", Sequence[int], "x"),
    ([1, "2"], Sequence[int], "x[1]"),
    ({"a": "b"}, Mapping[str, int], "x['a']"),
    ({1: 2}, Mapping[str, int], "a key of x"),
    ([(1, 2)], Mapping[int, int], "x"),
    ({"a": {"b": "c"}}, Mapping[str, Mapping[str, int]], "x['a']['b']"),
    ("b", Literal["a"], "x"),
    (3, Literal["a"] | Sequence[float], "x"),
    (3, Callable[[], int], "x"),
    (3, tuple[int, int], "x"),
    (["a"], Sequence[int] | None, "x[0]"),
    ((one for one in "ab"), Sequence[str], "x"),
    (3, str | Path, "x"),
    (None, int, "x"),
]


@pytest.mark.parametrize(("value", "hint"), FITTING)
def test_what_fits_passes(value: Any, hint: Any) -> None:
    assert misfit(value, hint, "x") is None


@pytest.mark.parametrize(("value", "hint", "where"), MISFITTING)
def test_what_does_not_fit_is_found_where_it_is(value: Any, hint: Any, where: str) -> None:
    found = misfit(value, hint, "x")
    assert found is not None
    assert found[0] == where
    assert described(found[1])
    assert in_words(found[2])


def test_a_checked_function_is_the_same_otherwise() -> None:
    @checked
    def given(a: int, *more: str, b: "Sequence[int]" = (), **rest: float) -> tuple[Any, ...]:
        """Says what it got."""
        return a, more, b, rest

    assert given(1, "x", b=[2], c=3.0) == (1, ("x",), [2], {"c": 3.0})
    assert given.__doc__ == "Says what it got."
    assert list(inspect.signature(given).parameters) == ["a", "more", "b", "rest"]
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        given()  # type: ignore[call-arg]
    with pytest.raises(ArgumentError, match=r"`b\[0\]` is the text 'x'"):
        given(1, b=["x"])  # type: ignore[list-item]


def public() -> Iterator[tuple[str, Any]]:
    """The functions that the package and its sub-packages offer."""
    names = ["tauspan", *(f"tauspan.{one.name}" for one in pkgutil.iter_modules(ts.__path__) if one.ispkg)]
    for name in names:
        module = importlib.import_module(name)
        for one in getattr(module, "__all__", ()):
            value = getattr(module, one)
            if inspect.isfunction(value):
                yield f"{name}.{one}", value


def test_annotations_of_checked_functions_can_be_read() -> None:
    seen = 0
    for name, value in public():
        whole = inspect.unwrap(value)
        if whole is not value:
            assert typing.get_type_hints(whole), name
            seen += 1
    assert seen > 40


def test_every_function_of_the_package_itself_is_checked() -> None:
    for name in ts.__all__:
        value = getattr(ts, name)
        if inspect.isfunction(value):
            assert inspect.unwrap(value) is not value, name
