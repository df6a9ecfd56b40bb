"""Texts of a model, many prompts at once: the likeliest, or drawn with a seed."""

from collections.abc import Sequence

import torch
from benchmarks.unlearning.measures import logits as logits_of
from torch import Tensor, nn

from tauspan.models import Encoder

BATCH = 64


def continued(
    model: nn.Module,
    encoder: Encoder,
    prompts: Sequence[str],
    tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    stop: str = "",
    least: int = 0,
) -> list[str]:
    """What follows each prompt, up to the end token.

    Every step reads the texts again, so that one loop serves ordinary and tangent models; `tauspan.editing.Decoder` keeps
    what it read, one text at a time.

    Args:
        model: an encoder or a tangent model that gives last states.
        encoder: the pre-trained one, which knows tokens and their table.
        prompts: the beginnings.
        tokens: at most so many.
        temperature: 0 takes the likeliest token; else tokens are drawn from softmax(logits / temperature).
        seed: of the draws.
        stop: a text also ends with the first token that holds this.
        least: the end token does not come before so many, so that no model is judged by how early it stops.
    """
    draw = torch.Generator().manual_seed(seed)
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    found = [""] * len(prompts)
    for begin in range(0, len(order), BATCH):
        places = order[begin : begin + BATCH]
        made = _batch(
            model, encoder, [prompts[place] for place in places], tokens, temperature, draw, stop, least
        )
        for place, text in zip(places, made, strict=True):
            found[place] = text
    return found


def _batch(
    model: nn.Module, encoder: Encoder, prompts: Sequence[str], tokens: int, temperature: float,
    draw: torch.Generator, stop: str, least: int,
) -> list[str]:  # fmt: skip
    language = encoder.language
    assert language is not None  # noqa: S101 - the study's models are language models
    words = language.inputs.tokenizer
    ids = [language.begun(prompt)[1].tolist() for prompt in prompts]
    made: list[list[int]] = [[] for _ in prompts]
    live = list(range(len(prompts)))
    for count in range(tokens):
        live = [row for row in live if len(ids[row]) < language.table.length]
        if not live:
            break
        logits = _next(model, encoder, [ids[row] for row in live])
        if count < least and words.eos_token_id is not None:
            logits[:, words.eos_token_id] = -torch.inf
        if temperature:
            chosen = torch.multinomial((logits / temperature).softmax(-1), 1, generator=draw)[:, 0]
        else:
            chosen = logits.argmax(-1)
        ended = set()
        for row, token in zip(live, chosen.tolist(), strict=True):
            if token == words.eos_token_id:
                ended.add(row)
                continue
            ids[row].append(token)
            made[row].append(token)
            if stop and stop in words.decode([token]):
                ended.add(row)
        live = [row for row in live if row not in ended]
    return [str(words.decode(one)) for one in made]


@torch.no_grad()
def _next(model: nn.Module, encoder: Encoder, ids: Sequence[Sequence[int]]) -> Tensor:
    """The logits of the token after each text, float64."""
    assert encoder.language is not None  # noqa: S101
    table = encoder.language.table
    longest = max(map(len, ids))
    padded = torch.zeros(len(ids), longest, dtype=torch.long)
    mask = torch.zeros_like(padded)
    for row, one in enumerate(ids):
        padded[row, : len(one)] = torch.tensor(one)
        mask[row, : len(one)] = 1
    states = model({"input_ids": padded, "attention_mask": mask}).view(len(ids), table.length, -1)
    last = states[torch.arange(len(ids)), mask.sum(1) - 1]
    return logits_of(table, last)
