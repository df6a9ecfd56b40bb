"""Conversations as rows: messages with a role and a content, checked and written in one form."""

import json
from collections.abc import Mapping
from typing import Any

from tauspan.core.errors import DataError, listed

ROLES = ("system", "developer", "user", "assistant", "tool")
_KEYS = ("role", "content")
_ELSEWHERE = {"from", "value"}  # as ShareGPT writes messages


def conversation(given: Any, place: str) -> str:
    """A list of messages as a text of JSON, which a row of a task holds.

    Args:
        given: the list, or a text of JSON that is one.
        place: which row it is, for errors.

    Raises:
        DataError: no list of messages; another role or key than those known; no answer; an answer without content.

    Example:
        >>> conversation([{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}], "row 0")
        '[{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]'
    """
    return json.dumps(messages_of(given, place), ensure_ascii=False)


def messages_of(given: Any, place: str) -> list[dict[str, str]]:
    """The messages of a conversation, checked; see `conversation`."""
    messages = given
    if isinstance(given, str):
        try:
            messages = json.loads(given)
        except json.JSONDecodeError as error:
            raise DataError(
                f'{place}: {given[:40]!r} is no list of messages ({error}): write [{{"role": "user", "content": '
                "...}, ...], or name the columns of question and answer (`prompt=`, `text=`)."
            ) from error
    if not isinstance(messages, list | tuple) or not messages:
        raise DataError(
            f"{place}: a list of messages is wanted, each with role and content, not {str(given)[:60]!r}."
        )
    made = [_message(message, f"{place}, message {n}") for n, message in enumerate(messages)]
    answers = [message["content"] for message in made if message["role"] == "assistant"]
    if not answers or made[0]["role"] == "assistant":
        raise DataError(
            f"{place}: its roles are {listed(one['role'] for one in made)}; a conversation has a message before the "
            "assistant's, and an answer of the assistant to learn from. Complete it or take it out."
        )
    if not all(answer.strip() for answer in answers):
        raise DataError(f"{place}: an answer of the assistant is empty. Complete it or take it out.")
    return made


def dialogue(question: str, answer: str, place: str) -> str:
    """A question of the user and the assistant's answer as a conversation.

    Raises:
        DataError: there is no question.
    """
    if not question.strip():
        raise DataError(
            f"{place}: its prompt is empty, and a conversation begins with a message of the user."
        )
    return conversation(
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], place
    )


def _message(message: Any, place: str) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise DataError(f"{place} is {str(message)[:40]!r}: a message is an object with role and content.")
    keys = {key for key, value in message.items() if value is not None}
    empty = [key for key in _KEYS if key in message and message[key] is None]
    if empty:
        raise DataError(f"{place} has {listed(empty)} null: a message is a role and a content, both texts.")
    if message.keys() >= _ELSEWHERE:
        raise DataError(
            f"{place} has the keys {listed(message)}: call `from` role and `value` content, and its roles user and "
            "assistant."
        )
    if keys != set(_KEYS) or not all(isinstance(message[key], str) for key in _KEYS):
        raise DataError(
            f"{place} has the keys {listed(keys) or 'none'}: a message is a role and a content, both texts."
        )
    if message["role"] not in ROLES:
        raise DataError(f"{place} has the role {message['role']!r}; known are {listed(ROLES)}.")
    return {key: message[key] for key in _KEYS}
