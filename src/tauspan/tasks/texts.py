"""Texts to be continued: whole ones, or completions of prompts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tauspan.core.errors import DataError
from tauspan.core.notices import tell
from tauspan.objectives.conversations import conversation, dialogue
from tauspan.tasks.assembly import Gathered, told
from tauspan.tasks.rows import Rows, fault_of, incomplete
from tauspan.tasks.split import Split


def continued(
    found: Mapping[str, Sequence[Rows]], prompts: bool, clean: bool, what: str, chat: bool = False
) -> Gathered:
    """The splits of a task of texts; a row's label is how many characters of its text are a prompt.

    Args:
        found: the rows of each split; with `prompts`, their labels are prompts that go before the texts.
        prompts: whether the labels are prompts.
        clean: drop rows without a text, instead of raising.
        what: the task's name.
        chat: prompt and text become a conversation, of which the text is the answer.

    Raises:
        DataError: a row without a text, or whose prompt is no text; it names file and row.
    """
    splits, left_out = {}, {}
    for split, parts in found.items():
        texts: list[str] = []
        lengths: list[int] = []
        counts: Counter[str] = Counter()
        for rows in parts:
            for row, (text, label) in enumerate(zip(rows.inputs, rows.labels, strict=True)):
                prompt = (label or "") if prompts else ""
                if not isinstance(prompt, str):
                    raise DataError(f"{rows.place(row)}: the prompt {prompt!r} is no text.")
                fault = fault_of(text) or (None if isinstance(text, str) else "that is no text")
                if fault is None and chat and prompts:
                    texts.append(dialogue(prompt, text, rows.place(row)))
                    lengths.append(0)
                elif fault is None:
                    texts.append(prompt + text)
                    lengths.append(len(prompt))
                elif clean:
                    counts[fault] += 1
                else:
                    raise incomplete(rows, row, fault)
        splits[split] = Split(texts, torch.tensor(lengths, dtype=torch.long))
        if counts:
            left_out[split] = dict(counts)
    if left_out:
        tell(f"task {what!r} leaves out {told(left_out)}.")
    return Gathered([], splits, left_out)


def text_rows(name: str, split: str, given: Any, chat: bool = False) -> Split:
    """Texts of one split, and the lengths of their prompts in characters; None for none.

    Of a `chat` task a row is a list of messages, or a text of JSON that is one.

    Raises:
        DataError: no list of texts, or other lengths than texts.
    """
    texts, lengths = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if chat and isinstance(texts, list | tuple):
        texts = [conversation(one, f"{split} of {name!r}, row {row}") for row, one in enumerate(texts)]
    listed = not isinstance(texts, str) and hasattr(texts, "__len__") and hasattr(texts, "__iter__")
    if not listed or not all(isinstance(text, str) for text in texts):
        raise DataError(
            f"{split} of {name!r}: give a list of texts, or a pair of it and the lengths of their prompts in "
            "characters; not "
            f"{'one text' if isinstance(texts, str) else 'other things'}."
        )
    try:
        wanted = torch.zeros(len(texts), dtype=torch.long) if lengths is None else torch.as_tensor(lengths)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{split} of {name!r}: the lengths of prompts are no numbers: {error}.") from error
    if wanted.is_floating_point() or wanted.is_complex() or wanted.dtype == torch.bool:
        raise DataError(
            f"{split} of {name!r}: lengths of prompts are whole numbers of characters, not {wanted.dtype}."
        )
    wanted = wanted.long()
    if wanted.shape != (len(texts),):
        raise DataError(
            f"{split} of {name!r}: {len(texts)} texts and lengths of prompts of shape {tuple(wanted.shape)}: give "
            "one for each text."
        )
    long = [
        n
        for n, (text, length) in enumerate(zip(texts, wanted.tolist(), strict=True))
        if not text[length:].strip()
    ]
    if long:
        raise DataError(
            f"{split} of {name!r}, row {long[0]}: nothing follows its prompt of {int(wanted[long[0]])} characters. "
            "Write a text, shorten the prompt, or take the row out."
        )
    return Split(list(texts), wanted)
