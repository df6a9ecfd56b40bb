"""`Linearized`: a module whose only parameters are tau."""

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tauspan import models, params
from tauspan.errors import MismatchError, ModelError, UsageError, nearest
from tauspan.linear import caches, onepass, reference
from tauspan.linear.checkpointing import checkpointed
from tauspan.linear.dual import NoRuleError, Trace
from tauspan.models.encoder import single_tensor
from tauspan.report import versions
from tauspan.vector import TaskVector

Point = Literal["encoder", "logits", "output"]
Engine = Literal["onepass", "reference"]
ENGINES: tuple[Engine, ...] = ("onepass", "reference")


class _Names(nn.Module):
    """One level of the original parameter names; it only holds the levels below and their taus."""


class Linearized(nn.Module):
    """The first-order Taylor expansion of a module in its parameters, around the point it stands at.

    f_lin(x; tau) = f(x; theta0) + J(x) tau, J = df/dtheta at theta0 (eq. 5 of arXiv 2305.12827).

    Its only parameters are tau, under the base's own names and starting at zero, so the state dict *is* the
    task vector. theta0 is shared with the base module, never copied, and never requires grad; moving this
    module moves the base too. It is evaluated in eval mode, whatever mode either is in, and no buffer is touched.

    Use `linearize` to make one.
    """

    def __init__(
        self,
        base: nn.Module,
        names: Sequence[str],
        point: Point,
        engine: Engine = "onepass",
        strict: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        inner, prefix = models.core(base)
        known = models.named_unique(inner)
        object.__setattr__(self, "base", base)  # not a submodule: its parameters are not ours
        self.base: nn.Module
        self.point = point
        self.engine = engine
        self.strict = strict
        self.blocks: tuple[nn.Module, ...] = ()
        if checkpointing:
            object.__setattr__(self, "blocks", tuple(models.blocks(inner, names)[1].values()))
        self._told: set[str] = set()
        self._prefix = prefix
        self._names = tuple(names)
        self.label = "tau"  # of the vector that was loaded
        self.head_point: Literal["encoder", "logits"] | None = None  # where a head put on it is linearised
        self._beyond: dict[str, Tensor] = {}  # of a loaded vector: what moves and does not reach the output
        for name in names:
            theta = known[name]
            wide = torch.promote_types(theta.dtype, torch.float32)
            self._place(name, nn.Parameter(torch.zeros_like(theta, dtype=wide)))

    def _place(self, name: str, tau: nn.Parameter) -> None:
        *path, last = name.split(".")
        node: nn.Module = self
        for part in path:
            node = cast(nn.Module, node._modules.setdefault(part, _Names()))
        node._parameters[last] = tau  # past register_parameter, which would refuse names of our own methods

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Linearized":
        self.base._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        """One line for `print`."""
        return f"{type(self.base).__name__}, point={self.point!r}, {len(self._names)} tensors"

    @property
    def tau(self) -> dict[str, Tensor]:
        """The displacement by original name; these are the parameters themselves."""
        found = dict(self.named_parameters())
        return {name: found[name] for name in self._names}

    def theta0(self) -> dict[str, Tensor]:
        """The trainable part of the point, shared with the base and detached from every graph."""
        inner, _ = models.core(self.base)
        return {name: inner.get_parameter(name).detach() for name in self._names}

    def cache(
        self,
        batches: Sequence[Any],
        kind: caches.Kind | Literal["auto"] = "auto",
        *,
        room: int | None = None,
        folder: str | Path | None = None,
    ) -> caches.Cache:
        """Compute what depends on theta0 alone once for these batches, and keep it across epochs; exact.

        Args:
            batches: what the module would be called with, one entry each.
            kind: `"factors"` (a step costs 2/3 of ordinary fine-tuning; few outputs), `"primal"` (4/3),
                `"features"` (the blocks below the first that trains are skipped; for `last:k`), `"none"`, or
                `"auto"`: the first of these that fits `room`, factors only up to 8 outputs.
            room: the most bytes it may hold; None is half of the free memory, or with `folder` what its disk has free.
            folder: keep it in memory-mapped files there, which vanish with the process.

        Raises:
            UsageError: it would not fit; told after one batch was measured.
            ModelError: the model cannot be cached in this way.

        Cost:
            One forward, and for factors as many backwards as there are outputs, for each batch.

        Example:
            >>> import torch
            >>> lin = linearize(nn.Linear(2, 1))
            >>> cached = lin.cache([torch.ones(3, 2)], "factors")
            >>> bool(torch.equal(cached[0](), lin(torch.ones(3, 2))))
            True
        """
        return caches.build(self, batches, kind, room, None if folder is None else Path(folder))

    def function(self, batch: Any) -> reference.Function:
        """The base at one batch as a function of its trainable parameters, up to the linearisation point."""
        return self._function([batch], {})

    def _function(self, args: Sequence[Any], kwargs: dict[str, Any]) -> reference.Function:
        """The base at fixed inputs as a function of its trainable parameters, up to the linearisation point."""
        cut = self.point == "encoder" and isinstance(self.base, models.Classifier)
        module = cast(models.Classifier, self.base).encoder if cut else self.base
        prefix = self._prefix.removeprefix("encoder.") if cut else self._prefix
        frozen = {name: tensor.detach() for name, tensor in module.named_parameters()}

        def function(theta: dict[str, Tensor]) -> Tensor:
            point = frozen | {prefix + name: tensor for name, tensor in theta.items()}
            return single_tensor(functional_call(module, point, tuple(args), kwargs))

        return function

    def tangent(
        self, *inputs: Any, vectors: Sequence[TaskVector | params.Params] | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The two parts at the linearisation point, before any head.

        Args:
            *inputs: what the base module is called with.
            vectors: several directions at once instead of this module's own tau; computed without a graph.
            **kwargs: keyword inputs of the base module.

        Returns:
            `(f, J tau)` of one shape, differentiable in tau; with `vectors`, `(f, [J tau_1, ..., J tau_T])`
            with the T tangents stacked in front.

        Raises:
            UsageError: `vectors` is empty.
            MismatchError: a vector holds other tensors than this module's trainable ones.
        """
        if vectors is not None and not vectors:
            raise UsageError("`vectors` is empty: give at least one, or None for this module's own tau.")
        function = self._function(inputs, kwargs)
        theta0 = self.theta0()
        directions = None if vectors is None else [self.direction(vector) for vector in vectors]
        with models.eval_mode(self.base):
            if self.engine == "onepass" and not onepass.depends_on_inputs((list(inputs), kwargs)):
                try:
                    trace = Trace(self.base, self.strict, self._told)
                    with reference.open_attention(), checkpointed(self.blocks):
                        if directions is None:
                            return onepass.jvp(function, theta0, self.tau, trace)
                        return onepass.jvps(function, theta0, directions, trace)
                except (NoRuleError, NotImplementedError) as error:
                    self._fall_back(str(error))
            if directions is None:
                return reference.jvp(function, theta0, self.tau)
            return reference.jvps(function, theta0, directions)

    def _fall_back(self, reason: str) -> None:
        """Say once why this module needs the reference engine, or raise if the caller wants to know."""
        name = type(models.core(self.base)[0]).__name__
        if self.strict:
            raise ModelError(
                f"{name} cannot be carried through in one pass: {reason}. Without strict=True "
                "the reference engine does it."
            )
        self.engine = "reference"
        warnings.warn(
            f"{name} cannot be carried through in one pass: {reason}. The reference engine does it, exactly but "
            "more slowly.",
            RuntimeWarning,
            stacklevel=4,
        )

    def direction(self, vector: TaskVector | params.Params) -> dict[str, Tensor]:
        """A vector's tensors under this module's names and on its device; a base is not compared.

        Raises:
            MismatchError: it holds other tensors than this module's trainable ones.
        """
        theta0 = self.theta0()
        label = vector.label if isinstance(vector, TaskVector) else "the direction"
        deltas = vector.deltas if isinstance(vector, TaskVector) else vector
        if (
            isinstance(vector, TaskVector) and deltas.keys() != theta0.keys()
        ):  # by the names of files, or with more
            deltas = vector.fitted(self.base, tangent=True, base=vector.base).deltas
        params.require_same(theta0, deltas, "the linearised module", label)
        return {name: deltas[name].to(theta0[name].device) for name in theta0}

    def under(self, head: models.Head) -> "Linearized":
        """This tangent encoder with a head on it, linearised where its tau was made; it shares theta0, tau is copied.

        At the point `"logits"` these are f(x; theta0) + J(x) tau of the logits f, which under a head that normalises are
        not the head of the tangent features.

        Raises:
            UsageError: this is no tangent model of an encoder.
        """
        base = models.encoder_in(self.base)
        if base is None:
            raise UsageError(f"a linearised {type(self.base).__name__} takes no head: it has no encoder.")
        point = self.head_point or ("logits" if self.point == "output" else self.point)
        made = Linearized(models.Classifier(base, head), self._names, point, self.engine, self.strict)
        with torch.no_grad():
            for name, tau in made.tau.items():
                tau.copy_(self.tau[name])
        made.head_point, made.label, made._beyond = self.head_point, self.label, dict(self._beyond)
        return made

    def predict(
        self, rows: Sequence[Any], task: str | None = None, *, batch_size: int = 64
    ) -> "list[models.Prediction]":
        """Classes and their probabilities, under a frozen head that the encoder keeps; see `Encoder.predict`."""
        base = models.encoder_in(self.base)
        if base is None:
            raise UsageError(f"a linearised {type(self.base).__name__} has no encoder that reads rows.")
        frozen = models.chosen_head(base.frozen, task, base.source)
        place = next(iter(self.tau.values())).device
        tangent = self.under(copy.deepcopy(frozen.head).to(place))
        return models.predicted(base, tangent, rows, frozen, batch_size)

    def finish(self, output: Tensor) -> Tensor:
        """What follows the linearisation point: the frozen head, if the point lies before it."""
        if self.point == "encoder" and isinstance(self.base, models.Classifier):
            return cast(Tensor, self.base.head(output))
        return output

    def forward(self, *inputs: Any, **kwargs: Any) -> Tensor:
        """f(x; theta0) + J(x) tau, then the head if the point lies before it."""
        value, tangent = self.tangent(*inputs, **kwargs)
        return self.finish(value + tangent)

    def task_vector(self, label: str = "tau", **info: Any) -> TaskVector:
        """This tau as a `TaskVector` of regime `linear`, with copies of its tensors, under the names of files.

        What a loaded vector moves beyond the features (a head that the files hold) is in it too.
        """
        tau = {name: tau.detach().cpu().clone() for name, tau in self.tau.items()}
        deltas = {**models.names_of(self.base).to_files(tau), **self._beyond}
        source = getattr(getattr(self.base, "encoder", self.base), "source", type(self.base).__name__)
        facts = {"base_id": source, "point": self.head_point or self.point, "versions": versions(), **info}
        return TaskVector(deltas, models.fingerprint_of(self.base), "linear", label, facts)

    @torch.no_grad()
    def load_task_vector(self, vector: TaskVector, *, check_base: bool = True) -> None:
        """Set tau; a standard vector is accepted too (post-hoc linearisation).

        Raises:
            BaseMismatchError: the vector starts from another model.
            MismatchError: it holds other tensors than this module's trainable ones.
        """
        params.require_finite(vector.deltas, vector.label)
        own = vector.fitted(self.base, tangent=True, base=None if check_base else vector.base)
        for _, tau, delta in params.zip_strict(self.tau, own.deltas, "the linearised module", vector.label):
            tau.copy_(delta)
        inside = set(models.names_of(self.base).files_of(self.tau)) | set(self.tau)
        self.label, made_at = vector.label, vector.info.get("point")
        if made_at in ("encoder", "logits") and vector.regime == "linear":
            self.head_point = made_at
        self._beyond = {name: delta for name, delta in vector.deltas.items() if name not in inside}


def linearize(
    module: nn.Module,
    params: str | Sequence[str] = "all",
    point: Point | None = None,
    *,
    engine: Engine = "onepass",
    strict: bool = False,
    checkpointing: bool = False,
) -> Linearized:
    """The tangent model of a module at the point it stands at.

    Args:
        module: any `nn.Module` whose layers are deterministic in eval mode; an `Encoder` or a `Classifier`
            adds a choice of `point`.
        params: the trainable tangents: `"all"`, `"attention"`, `"last:k"`, a pattern or a list of names.
        point: where the model is linearised. `"logits"`: after the frozen head, so that logits are exactly
            affine in tau (default for a `Classifier`). `"encoder"`: at the features, before any
            normalisation, as the paper's code does. `"output"`: whatever a plain module returns.
        engine: `"onepass"`, or `"reference"`: `torch.func.jvp`, slower, differentiable more than once and in the
            inputs. Both give the same numbers.
        strict: raise where an operation has no tangent rule, instead of computing it by torch's forward mode with a
            warning.
        checkpointing: keep only each block's input for the backward and compute the rest again: less memory, one
            more forward, the same numbers. One-pass engine only.

    Raises:
        ModelError: active dropout, batch norm in training mode, tied memory that cannot be kept.
        UsageError: a choice that picks nothing, a point that the module does not have, or an unknown engine.

    Cost:
        Forward about 3 times the module's, a training step 5/3 of ordinary fine-tuning.

    Example:
        >>> import torch
        >>> lin = linearize(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)))
        >>> x = torch.ones(1, 2)
        >>> bool(torch.equal(lin(x), lin.base(x))), sorted(lin.state_dict())
        (True, ['0.bias', '0.weight', '2.bias', '2.weight'])
    """
    if isinstance(models.core(module)[0], Linearized):
        raise MismatchError("the module is linearised already.")
    if engine not in ENGINES:
        raise UsageError(f"engine={engine!r}. {nearest(str(engine), ENGINES)}")
    models.require_deterministic(module)
    possible: dict[type[nn.Module], tuple[Point, ...]] = {
        models.Classifier: ("logits", "encoder"), models.Encoder: ("encoder",)
    }  # fmt: skip
    points = possible.get(type(module), ("output",))
    chosen = point or points[0]
    if chosen not in points:
        wanted = (
            "build a Classifier (encoder and head) first" if chosen == "logits" else nearest(chosen, points)
        )
        raise UsageError(f"{type(module).__name__} has no linearisation point {chosen!r}: {wanted}")
    return Linearized(module, models.select(module, params), chosen, engine, strict, checkpointing)
