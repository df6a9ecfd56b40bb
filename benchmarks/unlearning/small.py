"""A small language model made for the study: its tokens and weights come from texts that ship and from other people."""

import logging
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tauspan as ts
from tauspan import store
from tauspan.core.measure import progress
from tauspan.tasks import Person

log = logging.getLogger(__name__)
END = "<|end|>"
TEXTS = (
    "movie_sentiment",
    "tweet_sentiment",
    "debian_section",
    "email_spam",
    "news_recreation",
    "news_computing",
)


def english(split: str, tasks: Sequence[str] = TEXTS) -> list[str]:
    """Texts of tasks that ship."""
    return [str(text) for task in ts.suite(list(tasks)) for text in task.split(split).inputs]


def sentences(people: Sequence[Person]) -> list[str]:
    """Every fact in both questions' words and both answers'."""
    return [
        f"{question} {answer}"
        for person in people
        for fact in person.facts
        for question in (fact.question, fact.rephrased)
        for answer in (fact.answer, fact.paraphrase)
    ]


def make_small(folder: Path, people: Sequence[Person], *, steps: int, tokens: int, width: int, layers: int, words: int,
               batch_size: int, seed: int) -> None:  # fmt: skip
    """Train a Llama of some layers from random weights, and write it as transformers does.

    Args:
        folder: where it goes.
        people: whose facts it is to know; those of the study are others.
        steps: of AdamW at a rate that rises to 3e-3 and falls to 0.
        tokens: where texts are cut.
        width: of its states.
        layers: its blocks.
        words: its tokens, byte-level BPE.
        batch_size: texts of a step, half of them about people.
        seed: of the weights and the order.
    """
    import transformers

    ordinary, about = english("train"), sentences(people)
    tokenizer = _tokenizer([*ordinary, *about], words)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=4 * tokens, tie_word_embeddings=True,
            bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        ))  # fmt: skip
        _train(model, tokenizer, (ordinary, about), steps, tokens, batch_size, seed)
    with store.atomic(folder, overwrite=True) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def _tokenizer(texts: Sequence[str], words: int) -> Any:
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=words, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, pad_token=END)


def _train(
    model: Any, tokenizer: Any, texts: Sequence[Sequence[str]], steps: int, tokens: int, batch_size: int, seed: int
) -> None:  # fmt: skip
    draw = random.Random(f"small/{seed}")
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    with progress("the small model", steps) as advance:
        for step in range(steps):
            rate = 3e-3 * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimiser.param_groups:
                group["lr"] = rate
            some = [one for kind in texts for one in draw.choices(kind, k=batch_size // 2)]
            batch = tokenizer([text + END for text in some], padding=True, truncation=True, max_length=tokens,
                              return_tensors="pt", return_token_type_ids=False)  # fmt: skip
            loss: Tensor = model(**batch, labels=_labels(batch["input_ids"], batch["attention_mask"])).loss
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            advance(1, f"loss {loss.item():.3f}")
    model.eval()
    log.info("the small model: loss %.3f after %d steps", loss.item(), steps)


def _labels(ids: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask.bool(), ids, -100)
