"""Tiny models of every family, with something to call them with; the weights are stirred."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from benchmarks.families.inputs import inputs_of
from benchmarks.families.shrink import ROWS, shrunk
from benchmarks.families.special import LEFT_OUT, SPECIAL, Special
from safetensors.torch import load_model
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from tauspan.core.errors import ModelError
from tauspan.models.encoder import single_tensor

FAMILIES = tuple(sorted(name for name in MODEL_MAPPING_NAMES if name not in LEFT_OUT))

_LARGEST = 1000.0  # that a parameter may start from


class First(nn.Module):
    """A model by the first tensor (N, ...) of an output in which tauspan finds none by name."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **inputs: Any) -> Tensor:
        """The tensor."""
        return next(_tensors(self.inner(**inputs)))


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor) and output.is_floating_point() and output.ndim > 1 and len(output) == ROWS:
        yield output
    elif isinstance(output, Mapping | tuple | list):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(part)


@dataclass(frozen=True)
class Example:
    """A model in eval mode, and what to call it with.

    Args:
        model: in float64, or in float32 where it does not run otherwise.
        inputs: by name, in float64.
        oracle: the same weights in float64, with experts one after the other where grouped products need float32; None
            where the model is float32 throughout.
    """

    model: nn.Module
    inputs: dict[str, Any]
    oracle: nn.Module | None = None

    @property
    def name(self) -> str:
        """The class."""
        return type(self.model.inner if isinstance(self.model, First) else self.model).__name__

    @property
    def single(self) -> bool:
        """Whether the model is in float32."""
        return all(p.dtype == torch.float32 for p in self.model.parameters())

    def given(self, double: bool) -> dict[str, Any]:
        """The inputs with their real numbers in float64, or in float32."""
        return {
            name: value.to(torch.float64 if double else torch.float32)
            if isinstance(value, Tensor) and value.is_floating_point()
            else value
            for name, value in self.inputs.items()
        }

    def read_back(self, folder: Path) -> tuple[nn.Module, str]:
        """What the model's own library makes of a folder, and how.

        Raises:
            ValueError: it misses tensors, or finds some that it does not expect.
        """
        if not isinstance(self.model, PreTrainedModel):
            again = anew(self.model)
            load_model(again, folder / "model.safetensors")
            return again, "safetensors"
        dtype = next(self.model.parameters()).dtype
        again, info = type(self.model).from_pretrained(folder, output_loading_info=True, dtype=dtype)
        found = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
        if found:
            raise ValueError(f"{type(self.model).__name__}.from_pretrained: {found}")
        return again.eval().to(dtype), "from_pretrained"  # buffers that no file holds are float32 else


def anew(model: nn.Module) -> nn.Module:
    """A copy in eval mode without what the model keeps of its weights between calls, which training drops."""
    return copy.deepcopy(model).train().eval()


def stirred(model: nn.Module, seed: int = 0) -> nn.Module:
    """In float64 eval mode, each parameter moved off its start: zero biases, unit norms, gates at 0."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter[~(parameter.abs() < _LARGEST)] = 0  # memory that nobody has filled
            width = parameter.shape[-1] if parameter.ndim > 1 else 16
            parameter.add_((0.5 / width**0.5) * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator, dtype=torch.float64))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator, dtype=torch.float64))
    return model


def config_of(family: str) -> Any:
    """The family's configuration, shrunk."""
    kind = CONFIG_MAPPING[family]
    given = shrunk(kind().to_dict())
    for path, value in SPECIAL.get(family, Special()).config.items():
        *outer, last = path.split(".")
        inner = given
        for part in outer:
            inner[part] = inner.get(part) or {}
            inner = inner[part]
        if value is None:
            inner.pop(last, None)
        else:
            inner[last] = value
    return kind(**given)


def make(family: str) -> Example:
    """A tiny model of a family, the same at each call."""
    name = MODEL_MAPPING_NAMES[family]
    kind = getattr(transformers, name if isinstance(name, str) else name[0])
    special = SPECIAL.get(family, Special())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = stirred(kind(config_of(family)))
    inputs = inputs_of(model) | special.inputs(model)
    inputs = {name: value for name, value in inputs.items() if value is not None}
    single = special.single or _has_experts(model)
    oracle = None if special.single else copy.deepcopy(model)
    if oracle is not None and _has_experts(oracle):
        oracle.set_experts_implementation("eager")
    example = Example(model.float() if single else model, inputs, oracle)
    return example if _has_tensor(example) else _by_first(example)


def _has_experts(model: nn.Module) -> bool:
    """Whether it multiplies groups of rows, which torch does in float32 and less alone."""
    parts = [one for one in model.modules() if isinstance(one, PreTrainedModel)]
    return any(one._can_set_experts_implementation() for one in parts)


def _has_tensor(example: Example) -> bool:
    with torch.no_grad():
        output = example.model(**example.given(not example.single))
    try:
        found = single_tensor(output)
    except ModelError:
        return False
    if not bool(found.isfinite().all()):
        raise ValueError("its output is not finite")
    return True


def _by_first(example: Example) -> Example:
    oracle = None if example.oracle is None else First(example.oracle).eval()
    return Example(First(example.model).eval(), example.inputs, oracle)
