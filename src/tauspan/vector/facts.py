"""What a vector's `info` says, of one vector and of a sum."""

from collections.abc import Mapping
from typing import Any


def tasks_of(info: Mapping[str, Any]) -> list[Any]:
    """The names of the tasks that a vector was made for; empty where nothing says it."""
    named = info.get("tasks")
    if isinstance(named, list | tuple) and named:
        return list(named)
    return [info["task"]] if "task" in info else []


def common(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What is true of the sum of two vectors: the facts that they share, the first's id of the base, and all tasks.

    Example:
        >>> common({"task": "a", "seed": 1, "point": "logits"}, {"task": "b", "seed": 2, "point": "logits"})
        {'point': 'logits', 'tasks': ['a', 'b']}
    """
    shared = {name: value for name, value in one.items() if name in other and other[name] == value}
    if "base_id" in one:  # one base may go by several names
        shared["base_id"] = one["base_id"]
    tasks = list(dict.fromkeys([*tasks_of(one), *tasks_of(other)]))
    return {**shared, "tasks": tasks} if len(tasks) > 1 else shared
