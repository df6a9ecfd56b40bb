"""`Recorder`: the parameters of a model at chosen steps of any training, kept in memory or in files."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor, nn

from tauspan import models, store
from tauspan.core.arguments import checked
from tauspan.core.errors import MismatchError, StoreError, UsageError
from tauspan.core.params import Params
from tauspan.models.select import Selection
from tauspan.tangent import Linearized

_STEP = "step-{:09d}.safetensors"


def spaced_steps(last: int, count: int = 20) -> tuple[int, ...]:
    """0, `last` and whole numbers between them whose ratios are about equal; at most `count` + 1, each once.

    Raises:
        UsageError: `last` below 1, or `count` below 2.

    Example:
        >>> spaced_steps(1000, 4)
        (0, 1, 10, 100, 1000)
    """
    if last < 1 or count < 2:
        raise UsageError(f"last={last}, count={count}: give a last step of 1 or more, and 2 points or more.")
    found = {round(last ** (place / (count - 1))) for place in range(count)}
    return (0, *sorted(found))


class Recorder:
    """Points of a training: called in the loop, it keeps the parameters at chosen steps, for `trajectory`.

    `recorder(step, model)` copies what may move, and nothing at other steps. The first call is the start, so call it once
    before the first update, with step 0: the tangent model and all changes are relative to that point. Iterating gives
    (step, tensors by name), one at a time.

    Args:
        steps: which steps are kept; see `spaced_steps`.
        params: which parameters move, as in `tauspan.linearize`; buffers that are saved with them, such as running means,
            are kept too, so that `trajectory` sees whether they moved.
        folder: keep each point in a safetensors file there instead of in memory; the folder may be read again later by
            `Recorder.read`.

    Raises:
        UsageError: no step, or a negative one.

    Cost:
        A copy of the parameters for each kept step, in their own dtype, on the CPU.

    Example:
        >>> import torch
        >>> net = nn.Linear(2, 1)
        >>> recorder = Recorder([0, 2])
        >>> for step in range(3):
        ...     kept = recorder(step, net)
        ...     with torch.no_grad():
        ...         net.bias += 1.0
        >>> [step for step, _ in recorder], recorder
        ([0, 2], Recorder(2 points, steps 0 to 2))
    """

    @checked
    def __init__(
        self, steps: Iterable[int], params: Selection = "all", *, folder: str | Path | None = None
    ) -> None:
        self.steps = frozenset(steps)
        if not self.steps or min(self.steps) < 0:
            raise UsageError(
                f"steps={sorted(self.steps)}: name the steps that are kept, from 0 on; `spaced_steps(1000)` makes some."
            )
        self.params = params
        self.folder = None if folder is None else Path(folder)
        self._kept: dict[int, Params | Path] = {}
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            if any(self.folder.glob("step-*.safetensors")):
                raise StoreError(
                    f"{self.folder} holds the points of another training already: choose an empty folder, or read them "
                    f"with `Recorder.read({str(self.folder)!r})`."
                )

    @staticmethod
    @checked
    def read(folder: str | Path) -> "Recorder":
        """The points that a recorder kept in a folder; tensors are read when they are asked for.

        Raises:
            StoreError: there is none.
        """
        files = sorted(Path(folder).glob("step-*.safetensors"))
        if not files:
            raise StoreError(
                f"{folder} holds no point of a recorder (step-*.safetensors): give the folder that was named when it "
                "recorded."
            )
        kept = {int(file.stem.removeprefix("step-")): file for file in files}
        found = Recorder(list(kept))
        found._kept.update(kept)
        return found

    def __call__(self, step: int, model: nn.Module) -> bool:
        """Keep the model's parameters if the step is one of those chosen; whether it did.

        Raises:
            UsageError: a step that was kept already or is below the last one; a tangent model.
        """
        if step not in self.steps:
            return False
        if isinstance(models.core(model)[0], Linearized):
            raise UsageError(
                "a tangent model is its own linearisation, which it never leaves: record the ordinary module."
            )
        last = max(self._kept, default=-1)
        if step <= last:
            raise UsageError(
                f"step {step} after step {last}: steps rise in one training. Make a new Recorder for another one."
            )
        point = self._copied(model)
        if self.folder is None:
            self._kept[step] = point
        else:
            file = self.folder / _STEP.format(step)
            store.write_tensors(file, point)
            self._kept[step] = file
        return True

    def _copied(self, model: nn.Module) -> dict[str, Tensor]:
        names, state = models.select(model, self.params), models.state_of(model)
        inner = models.core(model)[0]
        buffers = {name for name, _ in inner.named_buffers()}
        chosen = [*names, *(name for name in state if name in buffers)]
        for first in self._kept.values():
            if isinstance(first, dict) and first.keys() != set(chosen):
                raise MismatchError(
                    "the model's moving tensors are other ones than at the first kept step: parameters were frozen or "
                    "thawed meanwhile. Name all that ever move: `Recorder(steps, params='*')`."
                )
            break
        return {name: state[name].detach().cpu().clone() for name in chosen}

    def __iter__(self) -> Iterator[tuple[int, Params]]:
        for step, point in self._kept.items():
            yield step, store.Checkpoint(point).read() if isinstance(point, Path) else point

    def __len__(self) -> int:
        return len(self._kept)

    def __repr__(self) -> str:
        if not self._kept:
            return f"Recorder(no point yet of {len(self.steps)})"
        return f"Recorder({len(self._kept)} points, steps {min(self._kept)} to {max(self._kept)})"
