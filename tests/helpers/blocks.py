"""One tensor of several models through a merging method, in memory, in blocks of a chosen size."""

import torch

from tauspan.merge.engine.engine import Engine
from tauspan.merge.engine.settings import Settings
from tauspan.merge.methods import METHODS
from tauspan.merge.methods.method import Block
from tauspan.merge.methods.scope import shaped, specs_of


def merged(name, values, options=None, *, base=None, size=1 << 18):
    """What the method makes of `values`, shape (T, *shape), as they are: displacements, or models."""
    return all_merged(name, {"w": values}, options, base={"w": base}, size=size)["w"]


def all_merged(name, tensors, options=None, *, base=None, size=1 << 18):
    """The same for several tensors, by name."""
    method, count = METHODS[name], len(next(iter(tensors.values())))
    settings = Settings.of(method, options or {}, count)
    labels = tuple(str(number) for number in range(count))

    def read(spec, start, stop):
        def cut(tensor):
            flat = tensor.reshape(-1)[start:stop]
            return shaped(flat, spec.shape, method.grain)

        values = torch.stack([cut(value) for value in tensors[spec.name]])
        point = (base or {}).get(spec.name)
        return Block(
            values, None if point is None else cut(point), spec.name, start, spec.shape, spec.options, labels
        )

    shapes = {tensor: values.shape[1:] for tensor, values in tensors.items()}
    specs = specs_of(method, shapes, settings.at, dict.fromkeys(shapes), labels)
    engine = Engine(method, specs, read, size)
    engine.measure()
    return {
        spec.name: torch.cat([result for *_, result in engine.combined(spec, engine.ready(spec))]).view(
            spec.shape
        )
        for spec in specs
    }


def drawn(*shape, seed=0, dtype=torch.float64):
    """Standard normal numbers that depend on the seed and the shape alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
