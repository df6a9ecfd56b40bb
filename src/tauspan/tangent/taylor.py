"""`Linearized`: a module whose only parameters are tau."""

import copy
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from tauspan import models
from tauspan.core import params
from tauspan.core.arguments import checked, described
from tauspan.core.choices import CacheKind
from tauspan.core.computing import Check, Way
from tauspan.core.computing import Engine as Name
from tauspan.core.errors import UsageError
from tauspan.core.report import versions
from tauspan.models.at import held_by
from tauspan.models.calling import inputs_of
from tauspan.models.intact import Intact
from tauspan.tangent.cache import caches
from tauspan.tangent.engine.call import Call
from tauspan.tangent.engine.check import require_finite_rows
from tauspan.tangent.engine.engines import Reference
from tauspan.tangent.engine.forward_mode import load_rules
from tauspan.tangent.engine.onepass import depends_on_inputs
from tauspan.tangent.engine.plan import Plan
from tauspan.vector import TaskVector

Point = Literal["encoder", "logits", "output"]


class _Names(nn.Module):
    """One level of the original parameter names; it only holds the levels below and their taus."""


class Linearized(nn.Module):
    """The first-order Taylor expansion of a module in its parameters, around its current point.

    f_lin(x; tau) = f(x; theta0) + J(x) tau, J = df/dtheta at theta0 (eq. 5 of arXiv 2305.12827).

    Its only parameters are tau, under the base's own names and starting at zero, so the state dict *is* the
    task vector. theta0 is shared with the base module, never copied, and never requires grad; moving this
    module to a device moves the base too. It always runs in eval mode, and no buffer is changed.

    Use `linearize` to make one.
    """

    def __init__(
        self,
        base: nn.Module,
        names: Sequence[str],
        point: Point,
        way: Way,
        strict: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        load_rules()
        inner, prefix = models.core(base)
        known = models.named_unique(inner)
        object.__setattr__(self, "base", base)  # not a submodule: its parameters do not belong to this module
        self.base: nn.Module
        self.point = point
        self.strict = strict
        blocks = tuple(models.blocks(inner, names)[1].values()) if checkpointing else ()
        self.told: set[str] = set()  # operations without a rule for which a warning was given
        self._way = way
        self._plan = Plan(base, way.engine, strict, blocks, way.check, self.told)
        self._prefix = prefix
        self._cut = point == "encoder" and isinstance(base, models.Classifier)
        self._intact = Intact(cast(models.Classifier, base).encoder if self._cut else base)
        self._names = tuple(names)
        self.label = "tau"  # the label of the loaded vector
        self.head_point: Literal["encoder", "logits"] | None = None  # where a head put on it is linearised
        self._beyond: dict[str, Tensor] = {}  # tensors of a loaded vector that do not affect the output
        for name in names:
            theta = known[name]
            wide = torch.promote_types(theta.dtype, torch.float32)
            self._place(name, nn.Parameter(torch.zeros_like(theta, dtype=wide)))

    def _place(self, name: str, tau: nn.Parameter) -> None:
        *path, last = name.split(".")
        node: nn.Module = self
        for part in path:
            node = cast(nn.Module, node._modules.setdefault(part, _Names()))
        node._parameters[last] = tau  # register_parameter would refuse the names of this class's methods

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Linearized":
        self.base._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __repr__(self) -> str:
        """One line; print `base` for the layers."""
        name = type(self.base).__name__
        return f"Linearized({name}, point={self.point!r}, {len(self._names)} tensors, engine={self.engine!r})"

    @property
    def tau(self) -> dict[str, Tensor]:
        """The displacement by original name; these are the parameters themselves."""
        found = dict(self.named_parameters())
        return {name: found[name] for name in self._names}

    def theta0(self) -> dict[str, Tensor]:
        """The trainable part of the point, shared with the base and detached from every graph."""
        known = dict(models.core(self.base)[0].named_parameters())
        return {name: known[name].detach() for name in self._names}

    def cache(
        self,
        batches: Sequence[Any],
        kind: CacheKind | Literal["auto"] = "auto",
        *,
        room: int | None = None,
        folder: str | Path | None = None,
    ) -> caches.Cache:
        """Compute everything that depends on theta0 alone once for these batches, and keep it across epochs; exact.

        Args:
            batches: the inputs of the module, one entry per batch.
            kind: `"factors"` (a step costs 2/3 of ordinary fine-tuning; few outputs), `"primal"` (4/3),
                `"features"` (the blocks below the first that trains are skipped; for `last:k`), `"none"`, or
                `"auto"`: the first of these that fits `room`, factors only up to 8 outputs.
            room: the most bytes it may hold; None is half of the free memory, or with `folder` what its disk has free.
            folder: keep it in memory-mapped files there, which vanish with the process.

        Raises:
            UsageError: it would not fit, as estimated from one batch.
            ModelError: the model cannot be cached in this way.

        Cost:
            One forward per batch; for factors also one backward per output.

        Example:
            >>> import torch
            >>> from tauspan import linearize
            >>> lin = linearize(nn.Linear(2, 1))
            >>> cached = lin.cache([torch.ones(3, 2)], "factors")
            >>> bool(torch.equal(cached[0](), lin(torch.ones(3, 2))))
            True
        """
        return caches.build(self, batches, kind, room, None if folder is None else Path(folder))

    @property
    def engine(self) -> Name:
        """The engine of the last pass; before the first pass, the engine that is tried first."""
        return self._plan.engine

    @property
    def check(self) -> Check:
        """Whether answers are checked against ordinary autograd."""
        return self._plan.check

    def function(self, batch: Any) -> Call:
        """The base at one batch as a function of its trainable parameters, up to the linearisation point.

        Args:
            batch: a tensor, a tuple of several inputs, or a mapping of them by name; see `tauspan.models.calling`.
        """
        return self._looked(self._call(*self.inputs_of(batch)))

    def verified(self, batch: Any) -> Name:
        """The engine for a batch; the first batch of a kind is checked."""
        return self._plan.engine_for(self.function(batch), self.theta0()).name

    def as_traced(
        self, tau: params.Params, held: params.Params, inputs: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """`(f, J tau)` for `torch.compile`: by the engine of the last pass, whose answers are not checked here.

        Args:
            tau: this module's own, as the compiler's tensors.
            held: all parameters and buffers of the base up to the linearisation point, too.
            inputs: positional inputs of the base.
            kwargs: keyword inputs.
        """
        call = replace(self._call(inputs, kwargs), constants=held)
        theta0 = {name: held[call.prefix + name] for name in self._names}
        return self._plan.traced(call, theta0, tau)

    def inputs_of(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inputs of a call on one batch."""
        return inputs_of(self.base, batch)

    def _call(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Call:
        for item in (*args, *kwargs.values()):
            if isinstance(item, Set | Iterator):
                raise UsageError(
                    f"an input of {type(self.base).__name__} is {described(item)}, which no module reads: give a tensor, "
                    "such as torch.tensor(list(rows))."
                )
        inner, _ = models.core(self.base)
        prefix = self._prefix.removeprefix("encoder.") if self._cut else self._prefix
        known = dict(inner.named_parameters())
        parameters = {name: known[name] for name in self._names}
        return Call(self._intact.module, tuple(args), kwargs, parameters, prefix, self._intact)

    @staticmethod
    def _looked(call: Call) -> Call:
        """The same call, after finding the tensors that the module keeps, since a user may have called it meanwhile."""
        call.intact.look(call.bare)
        return call

    def tangent(
        self, *inputs: Any, vectors: Sequence[TaskVector | params.Params] | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The two parts at the linearisation point, before any head.

        Args:
            *inputs: positional inputs of the base module.
            vectors: several directions at once instead of this module's own tau; computed without a graph.
            **kwargs: keyword inputs of the base module.

        Returns:
            `(f, J tau)` of one shape, differentiable in tau; with `vectors`, `(f, [J tau_1, ..., J tau_T])`
            with the T tangents stacked in front.

        Raises:
            NonFiniteError: an output of the module or its tangent is NaN or infinite; it names the row.
            UsageError: `vectors` is empty.
            MismatchError: a vector holds other tensors than this module's trainable ones.
        """
        outputs = self.parts(*inputs, vectors=vectors, **kwargs)
        # numbers of a compiled call or of torch's transforms cannot be looked at
        if not torch.compiler.is_compiling() and not depends_on_inputs((list(inputs), kwargs)):
            value, moved = outputs
            require_finite_rows(value, models.core(self.base)[0])
            params.require_finite_rows(moved, "J(x) tau", axis=0 if vectors is None else 1)
        return outputs

    def parts(
        self, *inputs: Any, vectors: Sequence[TaskVector | params.Params] | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """`tangent` for callers that check the outputs themselves, since they know whose rows these are."""
        if vectors is not None and not vectors:
            raise UsageError("`vectors` is empty: give at least one, or None for this module's own tau.")
        if torch.compiler.is_compiling() and vectors is None:
            from tauspan.tangent.compiled import traced  # Dynamo is loaded already

            return traced(self, self.tau, held_by(self._intact.module), inputs, kwargs)
        call, theta0 = self._looked(self._call(inputs, kwargs)), self.theta0()
        if vectors is not None:
            directions = [self.direction(vector) for vector in vectors]
            return self._plan.run(call, theta0, lambda engine: engine.jvps(call, theta0, directions))
        if depends_on_inputs((list(inputs), kwargs)):  # J tau is to be derived in the inputs
            return Reference().jvp(call, theta0, self.tau)
        return self._plan.run(call, theta0, lambda engine: engine.jvp(call, theta0, self.tau))

    def direction(self, vector: TaskVector | params.Params) -> dict[str, Tensor]:
        """A vector's tensors under this module's names and on its device; fingerprints are not compared.

        Raises:
            MismatchError: it holds other tensors than this module's trainable ones.
        """
        theta0 = self.theta0()
        label = vector.label if isinstance(vector, TaskVector) else "the direction"
        deltas = vector.deltas if isinstance(vector, TaskVector) else vector
        if isinstance(vector, TaskVector) and (
            deltas.keys() != theta0.keys() or vector.space is not None
        ):  # names of files, more tensors, or a small space, which is compared
            deltas = vector.fitted(self.base, tangent=True, base=vector.base).deltas
        params.require_same(theta0, deltas, "the linearised module", label)
        return {name: deltas[name].to(theta0[name].device) for name in theta0}

    def under(self, head: models.Head, point: Literal["encoder", "logits"] | None = None) -> "Linearized":
        """This tangent encoder with another head.

        It shares theta0 and the results of earlier checks; tau is copied. At the point `"logits"` the new model is
        f(x; theta0) + J(x) tau of the logits f. If the head normalises, this is not the head of the tangent features.

        Args:
            head: a frozen head.
            point: where the new model is linearised; None takes the point for which tau was made, else this model's.

        Raises:
            UsageError: this is not a tangent model of an encoder.
        """
        base = models.encoder_in(self.base)
        if base is None:
            raise UsageError(f"a linearised {type(self.base).__name__} takes no head: it has no encoder.")
        own = self.head_point or ("logits" if self.point == "output" else self.point)
        tangent = Linearized(models.Classifier(base, head), self._names, point or own, self._way, self.strict)
        with torch.no_grad():
            for name, tau in tangent.tau.items():
                tau.copy_(self.tau[name])
        tangent.head_point, tangent.label, tangent._beyond = self.head_point, self.label, dict(self._beyond)
        tangent._plan, tangent.told = self._plan, self.told
        return tangent

    def predict(
        self, rows: Sequence[Any], task: str | None = None, *, batch_size: int = 64
    ) -> "list[models.Prediction]":
        """Classes and their probabilities, under a frozen head that the encoder keeps; see `Encoder.predict`."""
        base = models.encoder_in(self.base)
        if base is None:
            raise UsageError(f"a linearised {type(self.base).__name__} has no encoder that reads rows.")
        frozen = models.chosen_head(base.frozen, task, base.source)
        device = next(iter(self.tau.values())).device
        tangent = self.under(copy.deepcopy(frozen.head).to(device))
        return models.predicted(base, tangent, rows, frozen, batch_size)

    def finish(self, output: Tensor) -> Tensor:
        """The logits from an output at the linearisation point: the frozen head is applied if the point is before it."""
        return cast(Tensor, cast(models.Classifier, self.base).head(output)) if self._cut else output

    def forward(self, *inputs: Any, **kwargs: Any) -> Tensor:
        """f(x; theta0) + J(x) tau, then the head if the point is before it."""
        value, tangent = self.tangent(*inputs, **kwargs)
        return self.finish(value + tangent)

    def task_vector(self, label: str = "tau", **info: Any) -> TaskVector:
        """This tau as a `TaskVector` of regime `linear`, with copies of its tensors, under the names of files.

        It includes the tensors of a loaded vector that do not affect the features, such as a head in the files.
        """
        tau = {name: tau.detach().cpu().clone() for name, tau in self.tau.items()}
        deltas = {**models.names_of(self.base).to_files(tau), **self._beyond}
        encoder = models.encoder_in(self.base)
        origin = {"base_id": type(self.base).__name__} if encoder is None else encoder.facts
        facts = {**origin, "point": self.head_point or self.point, "versions": versions(), **info}
        base, space = models.fingerprint_of(self.base), models.space_of(self.base)
        return TaskVector(deltas, base, "linear", label, facts, space)

    @torch.no_grad()
    @checked
    def load_task_vector(self, vector: TaskVector, *, check_base: bool = True) -> None:
        """Set tau; a standard vector is accepted too (post-hoc linearisation).

        Raises:
            BaseMismatchError: the vector starts from another model.
            MismatchError: it holds other tensors than this module's trainable ones.
        """
        params.require_finite(vector.deltas, vector.label)
        own = vector.fitted(self.base, tangent=True, base=None if check_base else vector.base)
        vector = vector.suited(self.base)
        for _, tau, delta in params.zip_strict(self.tau, own.deltas, "the linearised module", vector.label):
            tau.copy_(delta)
        inside = set(models.names_of(self.base).files_of(self.tau)) | set(self.tau)
        self.label, made_at = vector.label, vector.info.get("point")
        if made_at in ("encoder", "logits") and vector.regime == "linear":
            self.head_point = made_at
        self._beyond = {name: delta for name, delta in vector.deltas.items() if name not in inside}
