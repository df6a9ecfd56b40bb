"""Self-pretraining: a start that was trained on the inputs of the tasks, without their labels."""

from collections.abc import Sequence

import torch

from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError
from tauspan.models import Encoder, in_memory, reinitialised, state_of, with_token_head
from tauspan.objectives import Objective
from tauspan.tasks import Task
from tauspan.train.finetuning import finetune
from tauspan.train.settings import Settings


@checked
def self_pretrained(
    encoder: Encoder,
    tasks: Sequence[Task],
    language: int,
    settings: Settings = Settings("standard", lr=1e-3, epochs=10, batch_size=64),
    objective: str | Objective = "masked-token(share=0.3)",
) -> Encoder:
    """A start between random and pre-trained weights: random ones, trained on the tasks' own inputs without labels.

    After Amos, Berant and Gupta, "Never train from scratch" (2024). The encoder is re-initialised with `settings.seed`,
    given a head that is tied to its embeddings (`with_token_head`), and trained as an ordinary model to predict hidden
    tokens of the training rows of all tasks. What is returned reads features like the encoder, and is a model of its
    own: heads are made of its own features, and vectors that start from it fit no other.

    Args:
        encoder: of texts, whose architecture is taken and not its weights.
        tasks: whose training rows are read; validation rows are only measured on.
        language: where texts are cut in self-pretraining.
        settings: of the training, in the standard regime. The seed is also that of the random weights.
        objective: of masked tokens.

    Raises:
        UsageError: another regime; see also `with_token_head`.

    Cost:
        The training, and memory for three copies of the weights.

    Example:
        >>> import tauspan as ts
        >>> few = ts.suite(["tweet_sentiment"])[0].subset(train=2, validation=1, test=1)
        >>> short = ts.Settings("standard", max_steps=1, params="last:1")
        >>> self_pretrained(ts.load("minilm"), [few], 8, short).source
        'minilm re-initialised with seed 0, self-pretrained on tweet_sentiment'
    """
    if settings.regime != "standard":
        raise UsageError(
            f"regime={settings.regime!r}: self-pretraining makes an ordinary model. Say Settings('standard', ...)."
        )
    made = reinitialised(encoder, settings.seed)
    texts = [task.as_texts(objective) for task in tasks]
    reader = with_token_head(made, language)
    vector = finetune(reader, texts, settings).task_vector.dense(reader)
    here = state_of(made)
    with torch.no_grad():
        for name, delta in in_memory(vector.deltas, made).items():
            here[name] += delta.to(here[name])
    made.source += f", self-pretrained on {', '.join(task.name for task in tasks)}"
    return made
