"""Conversations as texts, by the tokenizer's own chat template, and which characters of them the assistant wrote."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tauspan.core.errors import DataError, ModelError
from tauspan.objectives.passages import Passage

Messages = Sequence[Mapping[str, str]]
_MARKS = re.compile(
    r"\{%-?\s*generation\s*-?%\}"
)  # around what the assistant writes, in templates that say so


def rendered(tokenizer: Any, messages: Messages) -> Passage:
    """A conversation as the model reads it; what counts is what the assistant says, with the marks that end its turns.

    A template with `{% generation %}` says itself which characters these are. Of another one the conversation is rendered
    up to each answer, and up to its end, and both are compared with the whole.

    Raises:
        ModelError: the tokenizer has no template.
        DataError: the template refuses the conversation, or changes an answer when others follow it.
    """
    if not messages or messages[0]["role"] == "assistant":
        raise DataError("a conversation begins with a message that is not the assistant's.")
    template = _template(tokenizer)
    whole = _rendered(tokenizer, messages, False)
    if _MARKS.search(template):
        return Passage(whole, _marked(tokenizer, messages), True)
    answers = (place for place, message in enumerate(messages) if message["role"] == "assistant")
    return Passage(whole, tuple(_span(tokenizer, messages, place, whole) for place in answers), True)


def _span(tokenizer: Any, messages: Messages, place: int, whole: str) -> tuple[int, int]:
    """Where the answer at a place begins and ends in the whole: from where it is asked for to the mark that ends it.

    Raises:
        DataError: the whole does not have the answer there.
    """
    answer = messages[place]["content"].strip()
    before = _rendered(tokenizer, messages[:place], True)
    after = _rendered(tokenizer, messages[: place + 1], False)
    begin, end = len(before), _alike(after, whole)
    if whole.startswith(before):
        if answer in whole[begin:end]:
            return begin, end
        if answer in after and whole.startswith(answer, begin):  # the last answer alone has more before it
            end = begin + len(answer)
            return begin, end + _alike(after.rpartition(answer)[2], whole[end:])
    raise DataError(
        f"the chat template writes the answer {answer[:40]!r} otherwise when messages follow it, or when it is asked "
        "for, so it cannot be told which tokens are the assistant's: put {% generation %} around them in the template, "
        "or give conversations of one answer."
    )


def asked(tokenizer: Any, messages: Messages) -> str:
    """A conversation up to where the assistant answers.

    Raises:
        ModelError, DataError: as `rendered`.
    """
    if not messages or not all({"role", "content"} <= message.keys() for message in messages):
        raise DataError("a conversation is a list of messages, each with role and content.")
    _template(tokenizer)
    return _rendered(tokenizer, messages, True)


def _alike(first: str, second: str) -> int:
    """How many characters two texts have in common from their beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))


def _template(tokenizer: Any) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise ModelError(
            f"{type(tokenizer).__name__} has no chat template: save the model with one (chat_template.jinja beside its "
            'tokenizer), or write prompts and completions as plain texts, objective="next-token".'
        ) from error


def _rendered(tokenizer: Any, messages: Messages, asks: bool) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(_plain(messages), tokenize=False, add_generation_prompt=asks)
        )
    except Exception as error:  # templates raise what they want
        raise DataError(
            f"the chat template refuses the conversation that begins {json.dumps(messages[0])[:80]}: {error}. Change the "
            "roles, or their order, to what it takes."
        ) from error


def _marked(tokenizer: Any, messages: Messages) -> tuple[tuple[int, int], ...]:
    """Where what the template marks begins and ends; marks side by side are one."""
    made = tokenizer.apply_chat_template(
        _plain(messages), return_dict=True, return_assistant_tokens_mask=True,
        tokenizer_kwargs={"return_offsets_mapping": True},
    )  # fmt: skip
    spans: list[tuple[int, int]] = []
    last = 0
    for there, (begin, end) in zip(made["assistant_masks"], made["offset_mapping"], strict=True):
        if there and last and spans:
            spans[-1] = (spans[-1][0], end)
        elif there:
            spans.append((begin, end))
        last = there
    return tuple(spans)


def _plain(messages: Messages) -> list[dict[str, str]]:
    return [dict(message) for message in messages]
