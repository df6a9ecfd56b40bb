"""Repairs of common wrong arguments, each in one line of code."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args, get_origin

_SHAPE = ("Sequence", "Mapping", "Iterable")
# the given type, the expected type, what to write; the first match counts. Names of classes or of their bases.
_RULES: tuple[tuple[str, str, str], ...] = (
    ("Task", "Sequence[Task]", "write [task]"),
    ("TaskVector", "Sequence[TaskVector]", "write [vector]"),
    ("TaskVector", "Mapping[Task, TaskVector]", "write {{task: vector}}"),
    ("TaskVector", "Mapping[str, Tensor]", "write vector.deltas"),
    ("Task", "Mapping[Task, TaskVector]", "write {{task: vector}}"),
    ("Mapping", "Sequence[TaskVector]", "write list(vectors.values())"),
    ("Mapping", "Sequence[Task]", "write list(vectors)"),
    ("Sequence", "Mapping[Task, TaskVector]", "write dict(zip(tasks, vectors, strict=True))"),
    ("Module", "Mapping[str, Tensor]", "write dict(module.named_parameters())"),
    ("str", "Sequence[Task]", "write tauspan.suite([{value}])"),
    ("str", "Sequence[str]", "write [{value}]"),
    ("path", "Encoder", "write tauspan.load({value})"),
    ("path", "Module", "write tauspan.load({value})"),
    ("path", "Linearized", "write tauspan.load({value})"),
    ("path", "TaskVector", "write tauspan.TaskVector.from_pretrained({value})"),
    ("path", "Task", "write tauspan.suite([{value}])[0]"),
    ("path", "Recipe", "write tauspan.Recipe.read({value})"),
    ("Finetuned", "TaskVector", "write run.task_vector"),
    ("Linearized", "TaskVector", "write tangent.task_vector()"),
    ("Linearized", "Encoder", "give the pre-trained encoder that it was made from"),
    ("Classifier", "Encoder", "write classifier.encoder"),
    ("Module", "Encoder", "write tauspan.load(module)"),
    ("TaskVector", "path", 'save it and give its file: vector.save_pretrained("vector.safetensors")'),
    ("Encoder", "path", 'save it and give its folder: tauspan.save(encoder, "folder")'),
    ("Module", "path", 'save it and give its folder: tauspan.save(module, "folder")'),
    ("ndarray", "Tensor", "write torch.from_numpy(array)"),
    ("Sequence", "Tensor", "write torch.tensor(values)"),
    ("Real", "Tensor", "write torch.tensor(number)"),
    ("Tensor", "float", "write tensor.item()"),
    ("Tensor", "int", "write int(tensor)"),
    ("ndarray", "float", "write float(array)"),
    ("str", "float", "write float({value})"),
    ("str", "int", "write int({value})"),
    ("float", "int", "write int({value})"),
    ("Iterator", "Sequence", "write list(...)"),
    ("Real", "Sequence", "write [{value}]"),
    ("set", "Tensor", "write torch.tensor(sorted(...))"),
    ("set", "Sequence", "write sorted(...)"),
)  # fmt: skip


def repair(value: Any, hint: Any, found: Any, wanted: Any) -> str | None:
    """What to write instead of a wrong argument; None if no repair is known.

    Args:
        value: the whole argument.
        hint: the type that the annotation gives.
        found: the part of the argument that is wrong, or all of it.
        wanted: the type expected for that part.
    """
    for one, of in ((value, hint), (found, wanted)):
        given, asked = _kinds(one), set(_types(of))
        for kind, kinds, text in _RULES:
            if kind in given and kinds in asked:
                return text.format(value=repr(str(one) if "path" in given else one))
    return None


def _kinds(value: Any) -> set[str]:
    """Names of a value's class, of its bases, and of the abstract types that it fits."""
    kinds = {one.__name__ for one in type(value).__mro__}
    behaves = {
        "path": isinstance(value, str) or "PurePath" in kinds,
        "Mapping": isinstance(value, Mapping),
        "Sequence": isinstance(value, list | tuple),
        "Iterator": isinstance(value, Iterator),
        "Real": isinstance(value, int | float),
    }
    return kinds | {name for name, so in behaves.items() if so}


def _types(hint: Any) -> Iterable[str]:
    """The names of a type and its choices: for `Sequence[Task] | None`, `Sequence[Task]`, `Sequence` and `None`."""
    origin, inner = get_origin(hint), get_args(hint)
    name = getattr(origin, "__name__", "")
    if name in _SHAPE:
        yield name
        yield f"{name}[{', '.join(getattr(one, '__name__', str(one)) for one in inner)}]"
    elif inner:
        for one in inner:
            yield from _types(one)
    else:
        plain = getattr(hint, "__name__", str(hint))
        yield "path" if plain in ("Path", "str") else plain
