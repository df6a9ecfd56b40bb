"""`coordinate_check`: how far each layer's features move in the first steps of training, at several widths."""

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tauspan import models
from tauspan.core.arguments import checked
from tauspan.core.errors import DataError, MismatchError, ModelError, UsageError, listed, nearest
from tauspan.core.measure import progress
from tauspan.core.recording import recording
from tauspan.core.report import provenance
from tauspan.kernel.diagnose.width.motion import CoordinateCheck, LayerMotion
from tauspan.models import Batch, Classifier, Encoder

Build: TypeAlias = Callable[[int, int], nn.Module]
Optimiser: TypeAlias = Callable[[nn.Module, int], torch.optim.Optimizer]
Coordinates: TypeAlias = dict[str, Tensor]
_OUTPUT = "output"


@checked
def coordinate_check(
    build: Build,
    widths: Sequence[int],
    batches: Sequence[tuple[Batch, Tensor]],
    *,
    loss: Callable[[Any, Tensor], Tensor],
    optimiser: Optimiser,
    steps: int = 3,
    seeds: int = 3,
    layers: str | Sequence[str] | None = None,
) -> CoordinateCheck:
    """Train nets of several widths for a few steps, and fit how each layer's movement scales: RMS(h_t - h_0) ~ n^slope.

    h_t are the features of a layer on the first batch after t steps; the root mean square goes over rows and units. As n
    grows, the slope of the hidden layer that moves most tends to -r of the parametrisation (`Parametrisation`): 0
    where features are learned, -1/2 in the NTK parametrisation, above 0 where training blows up. The check is that of
    Yang et al., "Tensor programs V" (2022). It says nothing about later steps. Modules run in eval mode.

    Args:
        build: width and seed to a new module. Torch's global numbers begin at that seed when it is called, so a builder
            may draw from them and ignore its second argument.
        widths: at least two, rising.
        batches: inputs and targets of one step each, used over and over; a mapping is given as keywords. The first is the
            probe.
        loss: the net's output and the targets to a scalar.
        optimiser: the module and its width to an optimiser of torch: any, with any parameter groups.
        steps: T.
        seeds: nets for each width, with seeds 0, 1, ...
        layers: names or patterns of modules, such as `"hidden*"`; None takes every module with parameters of its own.
            The output of the whole net is always measured.

    Returns:
        The movements with slopes, their standard errors over seeds, `.regime`, `.verdict` and `.report()`.

    Raises:
        UsageError: widths that do not rise, no batch, no step, or a pattern that fits no module.
        ModelError: no chosen layer grows with the width, or the builder ignores the seed.
        MismatchError: modules of two widths have other names.
        DataError: a loss that is no scalar.

    Cost:
        `len(widths) * seeds` nets, `steps` steps and `steps + 1` forward passes each; features of one net are kept.

    Example:
        >>> from torch.nn import functional as F
        >>> from tauspan.kernel.diagnose import Parametrisation
        >>> x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
        >>> lazy = Parametrisation.ntk(1)
        >>> found = coordinate_check(
        ...     lambda width, seed: lazy.network(4, 1, width, seed=seed), [64, 256, 1024], [(x, x[:, :1])],
        ...     loss=F.mse_loss, optimiser=lambda net, width: torch.optim.SGD(net.parameters(), lazy.rate(width, 0.1)))
        >>> found.regime, [one.name for one in found.layers]
        ('kernel', ['hidden1', 'readout', 'output'])
    """
    _require(widths, batches, steps, seeds)
    runs: dict[tuple[int, int], list[Coordinates]] = {}
    sizes: dict[int, dict[str, int]] = {}
    with progress("coordinate check", len(widths) * seeds) as advance:
        for width in widths:
            starts = []
            for seed in range(seeds):
                with _seeded(seed):
                    net = build(width, seed)
                    starts.append([p.detach().clone() for p in net.parameters()])
                    found = _trained(net, batches, loss, optimiser(net, width), steps, layers)
                runs[width, seed], sizes[width] = found[0], found[1]
                advance(1, f"width {width}")
            _require_seeded(starts, width)
    _require_names(sizes)
    first, last = sizes[widths[0]], sizes[widths[-1]]
    made = []
    for name in first:
        numbers = torch.tensor(
            [[[float(step[name]) for step in runs[width, seed]] for seed in range(seeds)] for width in widths]
        )
        by_step = numbers.movedim(2, 0)
        grows = name != _OUTPUT and last[name] > first[name]
        made.append(LayerMotion(name, grows, by_step[0], by_step[1:]))
    if not any(one.hidden for one in made):
        raise ModelError(
            f"no layer of {listed([one.name for one in made])} has more units at width {widths[-1]} than at {widths[0]}: "
            "build a net of the width that the builder is given, and choose layers inside it."
        )
    facts = provenance(widths=list(widths), steps=steps, seeds=seeds)
    return CoordinateCheck(widths=tuple(widths), layers=tuple(made), provenance=facts)


def _trained(
    net: nn.Module,
    batches: Sequence[tuple[Batch, Tensor]],
    loss: Callable[[Any, Tensor], Tensor],
    optimiser: torch.optim.Optimizer,
    steps: int,
    layers: str | Sequence[str] | None,
) -> tuple[list[Coordinates], dict[str, int]]:
    """RMS of h_0, then of h_t - h_0 for each step, by layer; and the number of entries of each layer's features."""
    names, probe = chosen_layers(net, layers), batches[0][0]
    with recording(), models.eval_mode(net):
        start = _features(net, probe, names)
        found = [{name: _rms(value) for name, value in start.items()}]
        for step in range(steps):
            inputs, targets = batches[step % len(batches)]
            optimiser.zero_grad(set_to_none=True)
            value = loss(_called(net, inputs), targets)
            if value.ndim:
                raise DataError(
                    f"the loss has the shape {tuple(value.shape)}, and a scalar is wanted: take its mean."
                )
            value.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            now = _features(net, probe, names)
            found.append({name: _rms(value - start[name]) for name, value in now.items()})
    return found, {name: value.numel() for name, value in start.items()}


def chosen_layers(net: nn.Module, layers: str | Sequence[str] | None) -> list[str]:
    """Names of modules that a choice picks, in the module's order.

    Raises:
        UsageError: a pattern fits none, or a chosen module has the name of the net's output.
    """
    known = [name for name, _ in net.named_modules() if name]
    if layers is None:
        chosen = [name for name in known if [*net.get_submodule(name).parameters(recurse=False)]]
    else:
        patterns = [layers] if isinstance(layers, str) else list(layers)
        for pattern in patterns:
            if not fnmatch.filter(known, pattern):
                raise UsageError(f"no module matches {pattern!r}. {nearest(pattern, known)}")
        chosen = [name for name in known if any(fnmatch.fnmatchcase(name, one) for one in patterns)]
    if _OUTPUT in chosen:
        raise UsageError(
            f"a module is called {_OUTPUT!r}, as the whole net's output is here: choose the others, "
            f"layers={[name for name in chosen if name != _OUTPUT]}."
        )
    return chosen


@torch.no_grad()
def _features(net: nn.Module, probe: Batch, names: Sequence[str]) -> Coordinates:
    """What each layer gives for the probe, and the net's output; of a layer that is called several times, all of it."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            seen[name].append(_tensor(output).detach().flatten().double())

        return hook

    hooks = [net.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        output = _tensor(_called(net, probe))
    finally:
        for hook in hooks:
            hook.remove()
    unused = [name for name, values in seen.items() if not values]
    if len(unused) == len(names):
        raise ModelError(f"none of the layers {listed(unused)} was called: choose others by `layers`.")
    found = {name: torch.cat(values) for name, values in seen.items() if values}
    return {**found, _OUTPUT: output.detach().flatten().double()}


def _called(net: nn.Module, batch: Batch) -> Any:
    if isinstance(batch, Mapping) and not isinstance(net, Encoder | Classifier):
        return net(**batch)
    return net(batch)


def _tensor(output: Any) -> Tensor:
    """The tensor of a module's output: itself, or the first one in a tuple or a mapping."""
    values = output.values() if isinstance(output, Mapping) else output
    if isinstance(values, Tensor):
        return values
    try:
        return next(value for value in values if isinstance(value, Tensor) and value.is_floating_point())
    except (StopIteration, TypeError):
        raise ModelError(
            f"a module gives {type(output).__name__} without a tensor of numbers: choose others by `layers`."
        ) from None


def _rms(values: Tensor) -> Tensor:
    return values.square().mean().sqrt().cpu()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Torch's global numbers begin at a seed, and go on afterwards where they were."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


# -- what is refused -----------------------------------------------------------------------------------------------


def _require(widths: Sequence[int], batches: Sequence[Any], steps: int, seeds: int) -> None:
    if len(widths) < 2 or widths[0] < 1 or any(low >= high for low, high in pairwise(widths)):
        raise UsageError(f"widths={list(widths)}: give two or more in rising order, such as [64, 256, 1024].")
    if not batches:
        raise UsageError("no batch: give at least one pair of inputs and targets.")
    if min(steps, seeds) < 1:
        raise UsageError(f"steps={steps}, seeds={seeds}: both must be at least 1.")


def _require_seeded(starts: Sequence[Sequence[Tensor]], width: int) -> None:
    if len(starts) > 1 and all(torch.equal(p, q) for p, q in zip(starts[0], starts[1], strict=True)):
        raise ModelError(
            f"build({width}, 0) and build({width}, 1) give equal parameters, so that a spread over seeds would be none: "
            "draw from torch's global numbers, or pass the seed on."
        )


def _require_names(sizes: Mapping[int, Mapping[str, int]]) -> None:
    (width, first), *others = sizes.items()
    for other, names in others:
        strange = sorted(set(first) ^ set(names))
        if strange:
            raise MismatchError(
                f"layer {strange[0]!r} is in the net of width {width if strange[0] in first else other} and not in "
                f"that of width {other if strange[0] in first else width}: build one architecture."
            )
