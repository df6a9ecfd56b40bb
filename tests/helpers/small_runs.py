"""A run on two small tasks, and what it used again."""

from typing import Any

import pytest
import transformers

from helpers import checkpoints, zoo
from tauspan.core.report import Report
from tauspan.experiments.run import Maps, Negation, Recipe, Rows, Training

TASKS = ("movie_sentiment", "email_spam")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    model = checkpoints.write(tmp_path_factory.mktemp("model") / "bert", "bert")
    config = zoo.bert_model().config
    config.max_position_embeddings = 256  # the prototypes of a head read as many tokens as a task's card says
    checkpoints.write_model(model, zoo.stirred(transformers.BertModel(config), scale=0.1).float())
    return Recipe(
        str(model), TASKS, "a small run", seeds=(0, 1), rows=Rows(8, 8, 8), max_tokens=8,
        finetune=Training(max_steps=1, batch_size=4), grid=(0.0, 0.5, 1.0),
        parts=(Negation(("email_spam",)), Maps((TASKS,), (0.0, 1.0), rows=4)),
    )  # fmt: skip


def reused(report: Report) -> dict[tuple[Any, Any], tuple[Any, Any]]:
    return {(row["regime"], row["stage"]): (row["runs"], row["reused"]) for row in report.tables[-1].rows}
