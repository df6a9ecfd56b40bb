"""A module's own parameter names: which are trainable, which are tied, whether it is deterministic."""

import fnmatch
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from tauspan.core.arguments import checked
from tauspan.core.errors import ModelError, UsageError, listed, nearest
from tauspan.models.encoder import Classifier, Encoder

Selection = str | Sequence[str]
_ATTENTION = {"attn", "attention", "self_attn", "self_attention", "selfattention", "mha", "multihead_attn"}
_ATTENTION |= {"crossattention", "cross_attn", "encoder_attn", "encdecattention"}


def core(module: nn.Module) -> tuple[nn.Module, str]:
    """The module whose parameter names a task vector carries, and its prefix inside `module`."""
    if isinstance(module, Classifier):
        return module.encoder.backbone, "encoder.backbone."
    if isinstance(module, Encoder):
        return module.backbone, "backbone."
    return module, ""


def named_unique(module: nn.Module) -> dict[str, Tensor]:
    """Parameters by name; a tied parameter is there once, under its first name.

    Raises:
        ModelError: two different parameters share memory without being the same object, or some have no values.
    """
    unique: dict[str, Tensor] = dict(module.named_parameters())
    require_values(module, unique)
    spans = sorted((*_span(tensor), place, name) for place, (name, tensor) in enumerate(unique.items()))
    for (device, _, end, _, first), (other, start, _, _, second) in itertools.pairwise(spans):
        if device == other and start < end:
            raise ModelError(
                f"parameters {first!r} and {second!r} share memory but are two objects, so one tau per "
                f"storage cannot be kept. Tie them (`module.{second} = module.{first}`) or give each its own "
                "memory."
            )
    return unique


def require_values(module: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    """Raise `ModelError` for a parameter on the meta device: its weights are not loaded yet, or were offloaded."""
    name = next((name for name, tensor in parameters.items() if tensor.is_meta), None)
    if name is not None:
        raise ModelError(
            f"parameter {name!r} of {type(module).__name__} has no values (it is on the meta device). Load the weights "
            "first; of a model that accelerate has offloaded to memory or files, load it without a `device_map`."
        )


def _span(tensor: Tensor) -> tuple[str, int, int]:
    """Device, first address and the address after the last of a tensor's memory."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    values = last + 1 if tensor.numel() else 0
    return str(tensor.device), tensor.data_ptr(), tensor.data_ptr() + values * tensor.element_size()


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """The point in weight space: unique parameters and floating-point buffers that are saved with them."""
    inner, _ = core(module)
    point = named_unique(inner)
    saved = inner.state_dict(keep_vars=True)
    point |= {name: b for name, b in inner.named_buffers() if name in saved and b.is_floating_point()}
    return {name: tensor.detach() for name, tensor in point.items()}


def movable(module: nn.Module) -> tuple[str, ...]:
    """Names of the floating-point parameters of `core(module)` on the path to the features, frozen or not."""
    known = named_unique(core(module)[0])
    return tuple(name for name in known if known[name].is_floating_point() and on_path(module, name))


@checked
def select(module: nn.Module, choice: Selection = "all") -> tuple[str, ...]:
    """Names of the parameters of `core(module)` that a choice picks, in the module's order.

    Args:
        module: a plain module, an `Encoder` or a `Classifier`.
        choice: `"all"` (everything on the path to the features), `"attention"` (projections inside attention
            blocks, no norms), `"last:k"` (the last k blocks of the longest stack), a pattern such as
            `"encoder.layer.*"`, or a list of names and patterns; of the module, or of its files where none there fits.
            The first three leave out parameters that are frozen (`requires_grad=False`), so that of a PEFT model only
            the adapter trains; names and patterns pick frozen ones too.

    Raises:
        UsageError: the choice picks nothing; the message names the nearest parameter, or says that all are frozen.
        ModelError: it picks a complex parameter.

    Example:
        >>> select(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), "1.*")
        ('1.weight', '1.bias')
    """
    inner, _ = core(module)
    known = named_unique(inner)
    names = [
        name
        for name, tensor in known.items()
        if (tensor.is_floating_point() or tensor.is_complex()) and on_path(module, name)
    ]
    trainable = [name for name in names if known[name].requires_grad]
    by_kind = choice in ("all", "attention") or (isinstance(choice, str) and choice.startswith("last:"))
    if choice == "all":
        chosen = trainable
    elif choice == "attention":
        chosen = _attention(inner, trainable)
    elif isinstance(choice, str) and by_kind:
        chosen = [name for name in _last_blocks(inner, names, choice) if known[name].requires_grad]
    else:
        patterns = _spelt([choice] if isinstance(choice, str) else choice, module, names)
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise UsageError(f"no parameter matches {pattern!r}. {nearest(pattern, names)}")
        chosen = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    if not chosen:
        if by_kind and len(trainable) < len(names):
            raise FrozenError(
                f"the choice {choice!r} picks no parameter of {type(inner).__name__} that is trainable: "
                f"{len(names) - len(trainable)} of {len(names)} are frozen (requires_grad=False). Call "
                "`module.requires_grad_(True)`, or name the ones that should move, frozen or not: `params='*'`."
            )
        raise UsageError(
            f"the choice {choice!r} picks no parameter of {type(inner).__name__} ({listed(known)})."
        )
    _require_real(inner, known, names, chosen)
    return tuple(chosen)


class FrozenError(UsageError):
    """A choice such as `"all"` or `"attention"` fits only parameters that are frozen."""


def _require_real(
    inner: nn.Module, known: Mapping[str, Tensor], names: Sequence[str], chosen: Sequence[str]
) -> None:
    imaginary = [name for name in chosen if known[name].is_complex()]
    if imaginary:
        real = [name for name in names if not known[name].is_complex()]
        way = (
            f"Leave them where they are by naming the others (`params={real[:2]!r}`{' and so on' if real[2:] else ''})"
            if real
            else "There is no other parameter to move"
        )
        raise ModelError(
            f"{listed(imaginary)} of {type(inner).__name__} {'are' if imaginary[1:] else 'is'} complex, and tangents of "
            f"complex parameters are not carried. {way}, or keep real and imaginary parts as a real parameter and use "
            "torch.view_as_complex in the forward; without a change of the module, "
            "torch.nn.utils.parametrize.register_parametrization with a module whose forward is torch.complex(real, "
            "imag) and whose right_inverse is (value.real, value.imag)."
        )


def _spelt(patterns: Sequence[str], module: nn.Module, names: Sequence[str]) -> list[str]:
    """The patterns; those that fit only names in files (as in a task vector) are replaced by the names in memory."""
    if all(fnmatch.filter(names, pattern) for pattern in patterns):
        return list(patterns)
    from tauspan.models.home import names_of  # it imports this module

    known = names_of(module)
    inside = known.memory_of(known.files_of(names))
    found: list[str] = []
    for pattern in patterns:
        fitting = [] if fnmatch.filter(names, pattern) else fnmatch.filter(inside, pattern)
        found += [inside[name] for name in fitting] or [pattern]
    return list(dict.fromkeys(found))


def on_path(module: nn.Module, name: str) -> bool:
    """Whether a parameter of the module's core can move the features: by the encoder's `prefixes` and its small space."""
    encoder = module.encoder if isinstance(module, Classifier) else module
    if not isinstance(encoder, Encoder):
        return True
    inside = encoder.space is None or name in encoder.space.small
    return inside and (not encoder.prefixes or name.startswith(encoder.prefixes))


def _attention(inner: nn.Module, names: Sequence[str]) -> list[str]:
    chosen = []
    for name in names:
        owner = name.rpartition(".")[0]
        is_norm = "norm" in type(inner.get_submodule(owner)).__name__.lower()
        if not is_norm and _ATTENTION & set(owner.lower().split(".")):
            chosen.append(name)
    return chosen


def blocks(inner: nn.Module, names: Sequence[str]) -> tuple[str, dict[str, nn.Module]]:
    """The longest stack of blocks that holds some of the named parameters: its prefix, and its blocks by name.

    Raises:
        UsageError: there is no such stack.
    """
    stacks = {name: m for name, m in inner.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential)}
    held = {
        f"{name}." if name else "": stack
        for name, stack in stacks.items()
        if any(n.startswith(f"{name}." if name else "") for n in names)
    }
    if not held:
        raise UsageError(f"{type(inner).__name__} has no stack of blocks (a ModuleList).")
    prefix, stack = max(held.items(), key=lambda item: len(item[1]))
    return prefix, dict(stack.named_children())


def _last_blocks(inner: nn.Module, names: Sequence[str], choice: str) -> list[str]:
    count = choice.removeprefix("last:")
    try:
        prefix, stack = blocks(inner, names)
    except UsageError as error:
        raise UsageError(f"{choice!r} needs a stack of blocks: {error}") from error
    if not count.isdigit() or not 1 <= int(count) <= len(stack):
        where = prefix.removesuffix(".") or "the module"
        raise UsageError(f"{choice!r}: k must lie between 1 and {len(stack)}, the blocks of {where!r}.")
    heads = tuple(
        f"{prefix}{block}." for block in list(stack)[-int(count) :]
    )  # by name: they need not be numbers
    return [name for name in names if name.startswith(heads)]


def require_deterministic(module: nn.Module) -> None:
    """Raise `ModelError` if a layer would draw random numbers or mix the examples of a batch."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.training and layer.p > 0:
            raise ModelError(
                f"dropout {name!r} (p={layer.p}) is active: f(x) would be random. Call `.eval()` first."
            )
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            if layer.training:
                raise ModelError(
                    f"batch norm {name!r} is in training mode: f(x) would depend on the batch and change "
                    "the running statistics. Call `.eval()` first."
                )
            if layer.running_mean is None:
                raise ModelError(
                    f"batch norm {name!r} keeps no running statistics, so f(x) depends on the whole "
                    "batch. Use a layer with track_running_stats=True or another norm."
                )


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Run a block with every submodule in eval mode, and give each its own mode back afterwards."""
    training = [layer for layer in module.modules() if layer.training]
    for layer in training:
        layer.training = False
    try:
        yield
    finally:
        for layer in training:
            layer.training = True
