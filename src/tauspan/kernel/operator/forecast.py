"""Which start to train from: the loss that the tangent kernel of each predicts for a budget of training."""

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tauspan import models
from tauspan.core import params as named
from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError, listed
from tauspan.core.report import noted, provenance
from tauspan.kernel.operator.budget import Budget, Flow
from tauspan.kernel.operator.closed_form import logits_at_base
from tauspan.kernel.operator.starts import Forecast, Outcome, Start
from tauspan.kernel.operator.tangent import TangentKernel
from tauspan.kernel.rows.data import Data
from tauspan.kernel.solvers.flow import Modes
from tauspan.kernel.solvers.solution import vector_for

Scales = Mapping[str, Sequence[float]] | Sequence[Mapping[str, float]]
_SEED = "seed"


@noted
@checked
def forecast(
    build: Callable[..., nn.Module],
    x: Data,
    y: Tensor,
    scales: Scales,
    *,
    budget: Budget | None = None,
    held_out: tuple[Data, Tensor] | None = None,
    seeds: int = 3,
    params: str | Sequence[str] = "all",
    batch_size: int = 32,
) -> Forecast:
    """The loss that the tangent kernel of each start predicts for a budget of training, and the start with the least.

    With K = J(x) J(x)^T = U lambda U^T at the start, and r = y - f0(x), gradient flow of the linearised model on half the
    squared error leaves 1/2 sum_i (u_i r)^2 exp(-2 lambda_i t) after a time t; on other rows it gives
    f0(z) + J(z) J(x)^T alpha_t. Both are shown as mean squared errors over rows and outputs. A model that is linear in
    its parameters trains exactly so; any other only as long as its kernel stays where it is (`tauspan.kernel.diagnose`
    measures how far it moves). Optimisers that scale each parameter on its own, such as Adam, follow another path: take
    the order of the starts, not the numbers.

    Args:
        build: makes a start from the scales as keyword arguments, with a `seed` too if it has an argument of that
            name. It is called under a seed of torch's own generator, which is put back.
        x: the training rows, as for `TangentKernel`.
        y: their targets, shape (N, O), or (N) where O = 1.
        scales: the values of each scale, of which all combinations are tried; or a list of combinations.
        budget: `Flow(time)` or `Descent(steps, lr)`. None is `Flow()`, gradient flow for 1000/lambda_max, about what
            1000 steps at a learning rate of 1/lambda_max do: relative to each start's own lambda_max, because a start
            that is merely larger learns as fast with a smaller learning rate.
        held_out: other rows and their targets. The start is then chosen by the error on them: one that fits the
            training rows one by one, and not the function between them, has a small error on the former alone.
        seeds: how many starts of each combination; errors are standard errors over them.
        params: the parameters that train.
        batch_size: rows per batch.

    Raises:
        UsageError: no combination, combinations of other names, targets of another length, several seeds that give one
            start, a budget with which every start diverges.
        NonFiniteError: NaN or infinity in rows, targets or outputs.
        MismatchError, ModelError: as of `TangentKernel`.

    Cost:
        For each start the kernel of the training rows, 9 (N O)^3 FLOPs for its eigenpairs, and, with held-out rows, a
        backward pass over x and a tangent pass over z. One start is held at a time.

    Example:
        >>> def build(w):
        ...     net = nn.Linear(2, 1, bias=False)
        ...     with torch.no_grad():
        ...         net.weight.fill_(w)
        ...     return net
        >>> found = forecast(build, torch.eye(2), torch.ones(2), {"w": [0.0, 0.5]}, budget=Flow(0.0), seeds=1)
        >>> dict(found.chosen.scales), found.chosen.loss.value
        ({'w': 0.5}, 0.25)
    """
    combinations, spent = _combinations(scales), budget or Flow()
    if seeds < 1:
        raise UsageError(f"seeds={seeds}: at least 1; from 2 on there is a standard error.")
    own_seed = _takes_seed(build, combinations[0])
    starts: list[Start] = []
    for combination in combinations:
        outcomes = []
        for seed in range(seeds):
            module = _built(build, combination, seed if own_seed else None, seed)
            outcomes.append(_outcome(module, (x, y), held_out, spent, params, batch_size))
        if not starts:
            _require_apart(build, outcomes)
        starts.append(Start(combination, tuple(outcomes)))
    if all(math.isinf(one.value) for one in starts):
        most = max(min(outcome.lr_max for outcome in one.outcomes) for one in starts)
        raise UsageError(
            f"{spent} diverges from every start of {len(starts)}: the largest 2 / lambda_max is {most:.3g}. Take a "
            "learning rate below it, or `relative=True`."
        )
    facts = provenance(budget=str(spent), seeds=list(range(seeds)), params=params)
    return Forecast(starts=tuple(starts), budget=spent, provenance=facts)


def _combinations(scales: Scales) -> list[dict[str, float]]:
    """Every combination as a mapping; all of the same names."""
    if isinstance(scales, Mapping):
        found = [dict(zip(scales, values, strict=True)) for values in itertools.product(*scales.values())]
    else:
        found = [dict(one) for one in scales]
    if not found or not found[0]:
        raise UsageError(
            "scales: no combination to try. Give the values of each, `{'weight_std': [0.5, 1.0, 2.0]}`, or a list of "
            "combinations, `[{'weight_std': 1.0}]`."
        )
    for place, one in enumerate(found):
        if set(one) != set(found[0]):
            raise UsageError(
                f"scales: combination {place} names {listed(one)}, and the first {listed(found[0])}: give each of them "
                "a value in every combination."
            )
        if not all(math.isfinite(value) for value in one.values()):
            raise UsageError(f"scales: combination {place} is {one}: give finite numbers.")
    return found


def _takes_seed(build: Callable[..., Any], combination: Mapping[str, float]) -> bool:
    """Whether `build` has an argument for the seed."""
    if _SEED in combination:
        raise UsageError(
            "scales: `seed` is what `forecast` itself gives; ask for several starts by `seeds=3`, and name the scale "
            "otherwise."
        )
    return _SEED in inspect.signature(build).parameters


def _built(
    build: Callable[..., nn.Module], combination: Mapping[str, float], own: int | None, seed: int
) -> nn.Module:
    """One start; torch's global random state is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        extra = {} if own is None else {_SEED: own}
        module = build(**combination, **extra)
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"build({', '.join(f'{name}={value:g}' for name, value in combination.items())}) gives "
            f"{type(module).__name__}, and a start is an nn.Module: return the module."
        )
    return module


def _outcome(
    module: nn.Module, rows: tuple[Data, Tensor], held_out: tuple[Data, Tensor] | None, budget: Budget,
    params: str | Sequence[str], batch_size: int,
) -> Outcome:  # fmt: skip
    """What the kernel of one start predicts."""
    kernel = TangentKernel(module, rows[0], params=params, batch_size=batch_size)
    target = vector_for(kernel, rows[1], "the targets")
    residual = target - logits_at_base(kernel).flatten()
    modes = Modes.of(kernel)
    half, count = budget.loss(modes, residual), len(target)
    unseen = None
    if held_out is not None:
        other = TangentKernel(module, held_out[0], params=params, batch_size=batch_size)
        wanted = vector_for(other, held_out[1], "the targets of the held-out rows")
        unseen = math.inf
        if math.isfinite(half):
            tau = kernel.pullback(budget.alpha(modes, residual))
            predicted = logits_at_base(other).flatten() + other.push(tau)
            unseen = float((wanted - predicted).square().mean())
    largest = float(modes.values[-1])
    return Outcome(
        start=float(residual.square().mean()), loss=2 * half / count, held_out=unseen, lr_max=modes.lr_max,
        median=float(modes.values.median()) / largest if largest else 0.0,
        fingerprint=named.fingerprint(models.state_of(module)),
    )  # fmt: skip


def _require_apart(build: Callable[..., Any], outcomes: Sequence[Outcome]) -> None:
    """Raise where all seeds give one start, which would make its standard error 0."""
    if len(outcomes) > 1 and len({one.fingerprint for one in outcomes}) == 1:
        name = getattr(build, "__name__", type(build).__name__)
        raise UsageError(
            f"{name} gives the same start for each of {len(outcomes)} seeds: draw from torch's own generator, or take an "
            "argument `seed`; for a start without randomness ask for `seeds=1`."
        )
