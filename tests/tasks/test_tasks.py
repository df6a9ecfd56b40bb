"""Tasks: what a task must be, subsets, checksums, heads, and the suite that ships."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import checkpoints, program, tiny
from tauspan.core.errors import DataError, UsageError
from tauspan.models import Encoder, Head, load_model
from tauspan.store import read_json
from tauspan.tasks import SPLITS, Split, Task, build_head
from tauspan.tasks.data.suite import DIRECTORY, NAMES, find_task, suite


def texts(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [f"text {seed}-{i}" for i in range(count)], torch.randint(0, 2, (count,), generator=generator)


def task(name="t", sizes=(40, 20, 20), **options):
    splits = {split: texts(size, seed) for seed, (split, size) in enumerate(zip(SPLITS, sizes, strict=True))}
    return Task.from_tensors(name, ["no", "yes"], **splits, **options)


# -- what a task must be -------------------------------------------------------------------------------------


def test_a_task_prints_its_sizes():
    assert repr(task()) == "Task('t', 2 classes, train 40, validation 20, test 20)"


@pytest.mark.parametrize("split", SPLITS)
def test_an_empty_or_missing_split_is_named(split):
    good = task().splits
    empty = Split([], torch.zeros(0, dtype=torch.long))
    for splits in (good | {split: empty}, {name: rows for name, rows in good.items() if name != split}):
        with pytest.raises(DataError, match=f"'t' has no rows in its {split} split"):
            Task("t", ["no", "yes"], splits)


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_outside_the_range_is_named_by_row_and_value(label):
    rows = Split(["a", "b", "c"], torch.tensor([0, label, 1]))
    with pytest.raises(DataError, match=rf"test of task 't', row 1: label {label} lies outside 0\.\.1"):
        Task("t", ["no", "yes"], task().splits | {"test": rows})


@pytest.mark.parametrize(
    "labels", [torch.tensor([0.9, 0.1]), torch.tensor([[0], [1]]), torch.tensor([0.0, 1.0])]
)
def test_labels_are_whole_numbers_in_one_row(labels):
    with pytest.raises(DataError, match="labels are int64 of shape"):
        Task.from_tensors("t", ["no", "yes"], train=(["a", "b"], labels), validation=texts(2), test=texts(2))


def test_inputs_and_labels_are_as_many():
    with pytest.raises(DataError, match="test of 't': 3 inputs and 2 labels"):
        Task("t", ["no", "yes"], task().splits | {"test": Split(["a", "b", "c"], torch.tensor([0, 1]))})


def test_prompts_are_as_many_as_classes():
    with pytest.raises(DataError, match="2 classes and 1 label prompts"):
        task(label_prompts=["only one"])


@pytest.mark.parametrize("most", [0, -1, 2.5, "8", True])
def test_texts_are_cut_at_a_whole_number_of_tokens(most, tmp_path):
    with pytest.raises(DataError, match="at least 1"):
        replace(task(), max_tokens=most)
    folder = program.task(tmp_path / "letters", suggested_max_tokens=most)
    with pytest.raises(DataError, match="suggested_max_tokens"):
        Task.from_directory(folder)
    encoder = load_model(checkpoints.write(tmp_path / "bert", "bert"))
    with pytest.raises(UsageError, match="at least 1"):
        encoder.encode(["a b"], most)


def test_an_unknown_split_names_the_nearest():
    with pytest.raises(DataError, match=r"no split 'tset'\. Did you mean 'test'"):
        task().split("tset")


# -- subsets and checksums -----------------------------------------------------------------------------------


def test_a_subset_is_the_same_each_time_and_keeps_pairs_and_order():
    whole = task()
    first, second = whole.subset(train=10, seed=1), whole.subset(train=10, seed=1)
    assert first.checksum() == second.checksum()
    rows = whole.split("train")
    places = [rows.inputs.index(text) for text in first.split("train").inputs]
    assert places == sorted(set(places))
    assert torch.equal(first.split("train").labels, rows.labels[places])


def test_a_split_is_drawn_independently_of_the_others():
    whole = task()
    alone, together = whole.subset(test=5), whole.subset(train=3, validation=2, test=5)
    assert alone.split("test").inputs == together.split("test").inputs
    assert alone.split("train") is whole.split("train")


def test_seeds_and_split_names_draw_differently_and_larger_draws_contain_smaller():
    whole = task(sizes=(40, 40, 40))
    drawn = {split: whole.subset(train=8, validation=8, test=8).split(split).inputs for split in SPLITS}
    places = {tuple(int(text.split("-")[1]) for text in inputs) for inputs in drawn.values()}
    assert len(places) == 3
    assert whole.subset(train=8, seed=1).split("train").inputs != drawn["train"]
    assert set(drawn["train"]) < set(whole.subset(train=20).split("train").inputs)


def test_a_subset_larger_than_the_split_is_the_split_and_an_empty_one_an_error():
    assert len(task().subset(test=1000).split("test")) == 20
    with pytest.raises(DataError, match=r"test=0.*at least one row"):
        task().subset(test=0)


HEAD = Head(torch.eye(2))
ROWS = task().split("train")
OTHERS = {
    "name": task("u"),
    "class names": replace(task(), label_names=["no", "maybe"]),
    "prompts": task(label_prompts=["a", "b"]),
    "tokens": replace(task(), max_tokens=8),
    "fewer rows": task().subset(test=19),
    "a text": replace(
        task(), splits=task().splits | {"train": Split(["new", *ROWS.inputs[1:]], ROWS.labels)}
    ),
    "a label": replace(task(), splits=task().splits | {"train": Split(ROWS.inputs, 1 - ROWS.labels)}),
    "the order": replace(task(), splits=task().splits | {"train": ROWS.take([1, 0, *range(2, 40)])}),
    "a head": task(head=HEAD),
    "a head's weight": task(head=Head(2 * torch.eye(2))),
    "a head's scale": task(head=Head(torch.eye(2), scale=2)),
}


def test_every_change_of_what_is_read_changes_the_checksum():
    sums = {what: other.checksum() for what, other in OTHERS.items()} | {"nothing": task().checksum()}
    assert len(set(sums.values())) == len(sums), sums
    assert task().checksum() == sums["nothing"]


def test_the_checksum_sees_the_shape_and_type_of_arrays():
    def images(array):
        rows = ([array, array], torch.tensor([0, 1]))
        return Task.from_tensors("i", ["a", "b"], train=rows, validation=rows, test=rows).checksum()

    zeros = np.zeros((2, 4), dtype=np.uint8)
    assert len({images(array) for array in (zeros, zeros.reshape(4, 2), zeros.view(np.int8), zeros + 1)}) == 4


# -- heads ---------------------------------------------------------------------------------------------------


def vectors(features, labels, **options):
    rows = (torch.tensor(features, dtype=torch.float32), torch.tensor(labels))
    return Task.from_tensors("v", ["a", "b"], train=rows, validation=rows, test=rows, **options)


def test_the_head_of_ones_own_is_used_as_it_is():
    assert build_head(task(head=HEAD), tiny.flat_encoder()) is HEAD


def test_a_head_of_the_wrong_size_is_an_error_with_both_sizes():
    with pytest.raises(DataError, match="has 3 outputs, the task 2 classes"):
        build_head(task(head=Head(torch.zeros(3, 4))), tiny.flat_encoder())


def test_prototypes_are_the_normalised_mean_of_unit_features_of_the_first_rows():
    features = [[3.0, 4.0], [0.0, 2.0], [5.0, 0.0], [-1.0, 0.0], [9.0, 9.0]]
    head = build_head(vectors(features, [0, 1, 0, 1, 0]), tiny.flat_encoder(), shots=2)
    first = torch.tensor([0.6 + 1.0, 0.8 + 0.0]) / 2
    second = torch.tensor([0.0 - 1.0, 1.0 + 0.0]) / 2
    torch.testing.assert_close(head.weight, torch.stack([first / first.norm(), second / second.norm()]))
    assert (head.scale, head.normalize, head.bias) == (20.0, True, None)


@pytest.mark.parametrize(("own", "asked", "cut"), [(None, 2, 2), (3, None, 3), (3, 2, 2), (None, None, None)])
def test_prototypes_are_made_of_texts_cut_as_asked_or_as_the_task_says(own, asked, cut, tmp_path):
    encoder = load_model(tiny.save_bert(tmp_path, tiny.bert()))
    rows = (["good film a dog", "bad code a film"], torch.tensor([0, 1]))
    short = Task.from_tensors("v", ["a", "b"], train=rows, validation=rows, test=rows)
    head = build_head(replace(short, max_tokens=own), encoder, max_tokens=asked)
    with torch.no_grad():
        expected = torch.stack([encoder(encoder.encode([text], cut))[0] for text in rows[0]])
    torch.testing.assert_close(head.weight, F.normalize(expected, dim=-1))


def test_a_class_without_training_rows_has_no_prototype():
    with pytest.raises(DataError, match="class 'b' of task 'v' has no training row"):
        build_head(vectors([[1.0, 0.0]], [0]), tiny.flat_encoder())


def test_prompts_become_unit_rows_times_the_encoders_scale(tmp_path):
    encoder = load_model(tiny.save_bert(tmp_path, tiny.bert()))
    prompts = ["a good film", "bad code"]
    head = build_head(task(label_prompts=prompts), encoder)
    with torch.no_grad():
        rows = torch.cat([encoder(encoder.encode([prompt])) for prompt in prompts])
        torch.testing.assert_close(head.weight, rows / rows.norm(dim=1, keepdim=True))
        features = encoder(encoder.encode(["a good dog"]))
        torch.testing.assert_close(head(features), 20 * F.cosine_similarity(features, head.weight)[None])
    assert not any(parameter.requires_grad for parameter in head.parameters())


def test_prompts_without_a_text_tower_fall_back_to_prototypes():
    with_prompts = vectors([[1.0, 0.0], [0.0, 1.0]], [0, 1], label_prompts=["x", "y"])
    assert torch.equal(build_head(with_prompts, tiny.flat_encoder()).weight, torch.eye(2))


def test_a_head_is_built_in_eval_mode_and_the_encoder_keeps_its_own():
    encoder = Encoder(nn.Sequential(nn.Dropout(0.9), nn.Linear(2, 2)))
    pairs = vectors([[1.0, 0.0], [0.0, 1.0]], [0, 1])
    expected = build_head(pairs, encoder.eval())
    assert torch.equal(build_head(pairs, encoder.train()).weight, expected.weight)
    assert encoder.training
    assert encoder.backbone[0].training


# -- the suite -----------------------------------------------------------------------------------------------

SUITE = suite()


def test_the_suite_loads_whole_and_in_order():
    assert tuple(shipped.name for shipped in SUITE) == NAMES
    assert [shipped.name for shipped in suite(["email_spam", "news_computing"])] == [
        "email_spam",
        "news_computing",
    ]


@pytest.mark.parametrize("shipped", SUITE, ids=NAMES)
def test_a_shipped_task_has_every_class_in_train_and_test_and_a_prompt_each(shipped):
    classes = len(shipped.label_names)
    assert len(set(shipped.label_names)) == len(shipped.label_prompts) == classes
    assert shipped.source
    for split in ("train", "test"):
        assert shipped.split(split).labels.unique().tolist() == list(range(classes))


@pytest.mark.parametrize("shipped", SUITE, ids=NAMES)
def test_a_shipped_task_has_the_rows_that_its_card_counts(shipped):
    card = read_json(DIRECTORY / shipped.name / "card.json")
    counted = {split: (entry["rows"], entry["classes"]) for split, entry in card["splits"].items()}
    assert counted == {
        split: (len(rows), len(rows.labels.unique())) for split, rows in shipped.splits.items()
    }


@pytest.mark.parametrize("shipped", SUITE, ids=NAMES)
def test_no_text_of_a_shipped_task_stands_in_two_splits(shipped):
    unique = {split: set(shipped.split(split).inputs) for split in SPLITS}
    assert len(set().union(*unique.values())) == sum(map(len, unique.values()))


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(DataError, match=r"no task 'email_spma'.*Did you mean 'email_spam'"):
        find_task("email_spma")
