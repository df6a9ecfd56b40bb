"""`Factors`: the curvature of some rows as a value that is saved, merged and made smaller."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tauspan import store
from tauspan.core.arguments import checked
from tauspan.core.errors import BaseMismatchError, MismatchError, StoreError, UsageError, listed
from tauspan.core.notices import tell
from tauspan.core.params import Params
from tauspan.drift.blocks import BLOCKS, Block, Kronecker, Thin
from tauspan.kernel.rows.pieces import PART

_SPLIT = "|"  # in a file: parameter | form | field
_FORMAT = "tauspan-drift-factors"


@dataclass(frozen=True, eq=False)
class Factors:
    """An approximation of G = E_x J(x)^T J(x), a block for each parameter, such that tau^T G tau is about the drift.

    Args:
        blocks: by parameter, or by a view of one.
        base: the fingerprint of the model.
        facts: kind, rows, seed, tasks and cuts: everything that decided them; `merged`: how many tasks count alike.

    Example:
        >>> import torch, tauspan as ts
        >>> from tauspan.drift import factors
        >>> x, y = torch.eye(4).repeat(4, 1), torch.arange(4).repeat(4) % 2
        >>> task = ts.Task.from_tensors("parity", ["even", "odd"], train=(x, y), validation=(x, y), test=(x, y))
        >>> found = factors(ts.load(torch.nn.Linear(4, 3)), task)
        >>> found
        Factors(reduce, 2 blocks of parity, 16 rows)
    """

    blocks: Mapping[str, Block]
    base: str
    facts: Mapping[str, Any]

    def __repr__(self) -> str:
        of, rows = f"{len(self.blocks)} blocks of {listed(self.names)}", self.facts["rows"]
        return f"Factors({self.facts['kind']}, {of}, {rows} rows)"

    @property
    def names(self) -> list[str]:
        """The tasks whose rows they are of."""
        return [task["name"] for task in self.facts["tasks"]]

    @property
    def count(self) -> int:
        """How many tasks they are of: what they count in a mean with others."""
        return len(self.facts["tasks"])

    @property
    def bytes(self) -> int:
        """The size of all tensors."""
        return sum(
            one.numel() * one.element_size()
            for block in self.blocks.values()
            for one in block.tensors().values()
        )

    def drift(self, tau: Params) -> Tensor:
        """About E_x |J(x) tau|^2, as a scalar with its graph.

        Args:
            tau: by the parameters' names; other tensors are not allowed.

        Raises:
            MismatchError: a parameter without a block, or a block without its parameter.
        """
        owners = {name.partition(PART)[0] for name in self.blocks}
        if owners != set(tau):
            raise MismatchError(
                f"factors of {len(owners)} parameters and a vector of {len(tau)}: "
                f"{listed(sorted(owners ^ set(tau)))} is in one alone. Compute the factors with the same `params`."
            )
        parts = []
        for name, block in self.blocks.items():
            whole = tau[name.partition(PART)[0]]
            if all(
                one.numel() for one in block.tensors().values()
            ):  # else no output depends on the parameter
                parts.append(block.square(viewed(name, whole)))
        return torch.stack(parts).sum()

    @checked
    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write one safetensors file.

        Raises:
            StoreError: the file is there and `overwrite` is not set.
        """
        path = Path(path)
        store.require_free(path, overwrite)
        tensors = {
            _SPLIT.join((name, block.word, field)): tensor
            for name, block in self.blocks.items()
            for field, tensor in block.tensors().items()
        }
        facts = {"format": _FORMAT, "base": self.base, "facts": json.dumps(self.facts)}
        store.write_tensors(path, tensors, facts)
        return path

    @staticmethod
    @checked
    def load(path: str | Path) -> "Factors":
        """Read what `save` wrote.

        Raises:
            StoreError: not there, damaged, or another kind of file.
        """
        path = Path(path)
        file = store.Checkpoint(path)
        if file.metadata.get("format") != _FORMAT:
            raise StoreError(f"{path} holds no drift factors. `Factors.save` writes them.")
        try:
            fields: dict[str, dict[str, Tensor]] = {}
            forms: dict[str, str] = {}
            for key, tensor in file.read().items():
                name, form, field = key.rsplit(_SPLIT, 2)
                forms[name] = form
                fields.setdefault(name, {})[field] = tensor
            blocks = {name: BLOCKS[forms[name]](**own) for name, own in fields.items()}
            facts = json.loads(file.metadata["facts"])
            found = Factors(
                blocks, file.metadata["base"], {key: facts[key] for key in ("kind", "rows", "tasks", *facts)}
            )
            repr(found)
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path} is damaged: {error!r}. Compute the factors again.") from error
        return found


def merged(several: Sequence[Factors]) -> Factors:
    """One set of factors in the place of several, in which each task counts alike, as in TAK (arXiv 2602.17385).

    With n_s tasks in set s its blocks count n_s / sum_u n_u, and the value is about the mean drift over all tasks. So
    `merged([merged([a, b]), c])` is `merged([a, b, c])`: for EK-FAC only where the merged set comes first. Its blocks
    keep the eigenvectors of the first set, and what others have off the diagonal there is lost; what `merged([b, c])`
    lost, `merged([a, merged([b, c])])` does not have. The trace is the same in any order.

    Kronecker blocks gain cross terms A_s x B_u of different tasks. Thin factors beside full ones give full ones.

    Raises:
        UsageError: no set, or a task that is in two of them.
        MismatchError: other kinds, bases or parameters, or blocks of two forms.
    """
    if not several:
        raise UsageError("no factors to merge: give at least one.")
    require_each_once(several)
    first = several[0]
    counts = [one.count for one in several]
    facts = {**first.facts, "merged": sum(counts)}
    if any(one.facts.get("energy") != first.facts.get("energy") for one in several):
        facts.pop("energy", None)
    for other in several[1:]:
        if other.base != first.base:
            raise BaseMismatchError(
                f"factors of two models, {first.base[:12]} and {other.base[:12]}: merge those of one."
            )
        if other.blocks.keys() != first.blocks.keys() or other.facts["kind"] != first.facts["kind"]:
            raise MismatchError(
                f"{first!r} and {other!r} have other kinds or parameters: compute them with the same `kind` and `params`."
            )
    shares = [count / sum(counts) for count in counts]
    blocks = {name: _merged(name, [one.blocks[name] for one in several], shares) for name in first.blocks}
    tasks = [task for one in several for task in one.facts["tasks"]]
    rows = sum(one.facts["rows"] for one in several)
    return Factors(blocks, first.base, {**facts, "tasks": tasks, "rows": rows})


def require_each_once(several: Sequence[Factors]) -> None:
    """Raise `UsageError` if a task is in two sets of factors, and warn of sets whose tasks do not count alike."""
    names = [name for one in several for name in set(one.names)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(
            f"the task {twice!r} is in {names.count(twice)} of {listed(map(repr, several))}, and would count as often: "
            "give each task once. Tasks are told by name: another one of the same name needs its own, such as "
            "`dataclasses.replace(task, name=...)`, before its factors are computed."
        )
    for one in several:
        if one.facts.get("merged", one.count) != one.count or len(set(one.names)) < one.count:
            tell(
                f"{one!r} were merged by a version in which each set counted as much, whatever its tasks: those of this "
                "one do not count alike. Merge the sets of its single tasks again."
            )


def _merged(name: str, blocks: Sequence[Block], shares: Sequence[float]) -> Block:
    """The mean block of a parameter. Thin factors beside full ones are multiplied out; empty blocks count as zero."""
    pairs = [
        (one, share)
        for one, share in zip(blocks, shares, strict=True)
        if all(tensor.numel() for tensor in one.tensors().values())
    ]
    if not pairs:
        return blocks[0]
    moved = [one for one, _ in pairs]
    if any(isinstance(one, Kronecker) for one in moved):
        moved = [one.full() if isinstance(one, Thin) else one for one in moved]
    kind = type(moved[0])
    other = next((one for one in moved if type(one) is not kind), None)
    if other is not None:
        raise MismatchError(
            f"the blocks of {name!r} are {kind.word!r} in one set of factors and {other.word!r} in another: compute "
            "both anew with the same `kind`."
        )
    return kind.mean(moved, [share for _, share in pairs])


def compressed(given: Factors, energy: float = 0.99) -> Factors:
    """Thin Kronecker factors: the leading eigenvectors that hold a share of each factor's trace, in float32.

    The value becomes smaller, by at most about 2 (1 - energy) where a vector is spread like the factors.

    Raises:
        UsageError: a share outside (0, 1], or no Kronecker factors.
    """
    if not 0 < energy <= 1:
        raise UsageError(f"energy={energy}: a share above 0, at most 1.")
    if not any(isinstance(block, Kronecker) for block in given.blocks.values()):
        raise UsageError(f"{given!r} has no Kronecker factors: 'expand' and 'reduce' have.")
    blocks = {
        name: Thin(_root(block.inputs, energy), _root(block.outputs, energy))
        if isinstance(block, Kronecker)
        else block
        for name, block in given.blocks.items()
    }
    return Factors(blocks, given.base, {**given.facts, "energy": energy})


def _root(matrix: Tensor, energy: float) -> Tensor:
    """A thin root R, R R^T about the matrix."""
    values, vectors = torch.linalg.eigh(matrix.double())
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    shares = values.cumsum(0) / values.sum().clamp(min=1e-300)
    rank = int((shares < energy).sum()) + 1
    root: Tensor = vectors[:, :rank] * values[:rank].sqrt()
    return root.float()


def viewed(name: str, whole: Tensor) -> Tensor:
    """The view of a parameter that a block is of; its name says offset, shape and strides."""
    _, part, label = name.partition(PART)
    if not part:
        return whole
    offset, rest = label.split(" ", 1)
    shape, strides = (
        tuple(int(one) for one in text.strip("() ").split(",") if one.strip()) for text in rest.split(") (")
    )
    return torch.as_strided(whole.contiguous(), shape, strides, int(offset))
