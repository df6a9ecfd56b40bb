"""What rows may be: sequences with an order of their own, of numbers that can be written down."""

import numpy as np
import pandas
import pytest
import torch
from torch import nn

from tauspan import linearize
from tauspan.core.errors import DataError, TauspanError, UsageError
from tauspan.kernel import TangentKernel
from tauspan.models import Encoder, Head
from tauspan.models.frozen import Frozen
from tauspan.tasks import Split, Task

T = torch.arange(36.0).view(12, 3)
Y = [i % 2 for i in range(12)]


def made(inputs, labels=Y):
    return Task.from_tensors("t", ["a", "b"], train=(inputs, labels))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"a", "b"}, "a set, which has no order: put the rows into a list"),
        ({"a": 1, "b": 2}, r"write list\(rows.values\(\)\)"),
        ((text for text in "ab"), r"write list\(rows\)"),
        ("ab", r"write \[row\]"),
        (b"ab", r"write \[row\]"),
        (memoryview(np.zeros((2, 2))), r"write numpy.asarray\(rows\)"),
        (pandas.DataFrame([[1.0], [2.0]]), r"write rows.to_numpy\(\)"),
        (torch.tensor(1.0), r"write rows\[None\]"),
    ],
)
def test_a_split_has_rows_in_an_order(inputs, said):
    with pytest.raises(DataError, match=said):
        Split(inputs, torch.tensor([0, 1]))


@pytest.mark.parametrize("what", ["label_names", "label_prompts", "templates"])
@pytest.mark.parametrize("value", [{"a {}", "b {}"}, {"a {}": 0, "b {}": 1}, "ab"])
def test_names_and_prompts_of_classes_have_an_order(what, value):
    rows = Split(["a", "b"], torch.tensor([0, 1]))
    given = {"label_names": ["a", "b"], "splits": dict.fromkeys(("train", "validation", "test"), rows)}
    with pytest.raises(DataError, match=f"{what} is .*put them into a list, in order"):
        Task("u", **(given | {what: value}))


@pytest.mark.parametrize(
    ("inputs", "plain"),
    [
        (memoryview(T.numpy()), T),
        (torch._neg_view(T), -T),
        (T.to(torch.complex64).conj(), T.to(torch.complex64).conj().resolve_conj()),
        ((T / 8).to(torch.float8_e5m2), (T / 8).to(torch.float8_e5m2).float()),
        (list(T.to(torch.float8_e4m3fn)), T.to(torch.float8_e4m3fn).float()),
        (T.to_sparse(), T),
    ],
)
def test_tensors_become_plain_numbers(inputs, plain):
    assert made(inputs).checksum() == made(list(plain)).checksum()


def test_sparse_labels_are_labels():
    assert made(T, torch.tensor(Y).to_sparse()).checksum() == made(T).checksum()


@pytest.mark.parametrize(
    ("inputs", "labels", "said"),
    [
        (T.to("meta"), Y, "on the device meta has no numbers"),
        (list(T.to("meta")), Y, "on the device meta has no numbers"),
        (T, torch.tensor(Y).to("meta"), "on the device meta has no numbers"),
        (np.ma.masked_array(T.numpy(), T.numpy() > 3), Y, r"write array.filled\(0.0\)"),
        (torch.tensor(1.0), Y, r"write rows\[None\]"),
        (pandas.DataFrame(T.numpy()), Y, "the columns 0, 1, 2"),
        (pandas.DataFrame(T.numpy(), columns=[("a", 1), ("a", 2), ("b", 1)]), Y, r"the columns \('a', 1\)"),
        ([[1, [2]]] * 12, Y, "neither a text nor numbers"),
    ],
)
def test_rows_without_numbers_are_refused(inputs, labels, said):
    with pytest.raises(DataError, match=said):
        made(inputs, labels)


def test_rows_to_predict_have_an_order():
    encoder = Encoder(nn.Linear(2, 2, bias=False).eval())
    encoder.frozen["sides"] = Frozen("sides", ("left", "right"), Head(torch.eye(2)))
    for rows in ({1, 2}, {"a": 1}, iter([1]), "ab"):
        with pytest.raises(UsageError, match="predict reads a list of rows, and this is"):
            encoder.predict(rows)


def test_batches_of_a_tangent_model_are_a_list_of_tensors():
    x = torch.ones(3, 2)
    tangent = linearize(nn.Linear(2, 1))
    for batches, way in ((iter([x]), r"list\(batches\)"), ({1, 2}, "into a list"), (x, r"\[batch\]")):
        with pytest.raises(UsageError, match=way):
            tangent.cache(batches)
    assert len(tangent.cache([x])) == 1
    for given in ({1, 2}, iter([x])):
        with pytest.raises(UsageError, match=r"such as torch.tensor\(list\(rows\)\)"):
            tangent(given)


@pytest.mark.parametrize(
    ("rows", "way"),
    [
        ({(1.0, 2.0), (3.0, 4.0)}, "torch.tensor(sorted(...))"),
        ([[1.0, 2.0], [3.0, 4.0]], "torch.tensor(rows)"),
    ],
)
def test_a_kernel_names_a_repair_that_works(rows, way):
    module = nn.Linear(2, 1)
    with pytest.raises(TauspanError) as caught:
        TangentKernel(module, rows)
    assert way in str(caught.value)
    repaired = eval(way.replace("...", "rows"), {"torch": torch, "rows": rows, "sorted": sorted})
    assert TangentKernel(module, repaired).shape == (2, 2)
