"""`OrdinaryModel`: f at the edited weights, run anew at each choice of coefficients."""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from tauspan import models
from tauspan.core.choices import Point
from tauspan.core.errors import listed
from tauspan.core.params import require_finite_rows
from tauspan.editing.model.below import Below, of_rows
from tauspan.editing.model.edited import Coefs, EditedModel
from tauspan.editing.model.outputs import outputs
from tauspan.editing.model.token_tables import moving_table
from tauspan.models import Classifier, Encoder, Origin
from tauspan.models.intact import Intact
from tauspan.models.language import Language
from tauspan.tangent.contributions import Advance
from tauspan.tasks import Task
from tauspan.vector import TaskVector

_ROOM = 2**26  # bytes of outputs that are kept


class OrdinaryModel(EditedModel):
    """f(x; theta0 + sum_d a_d direction_d): run at each choice, weights set in place on one working copy.

    Cost:
        One forward pass over the split for each choice of coefficients, through the blocks from the first edited one on
        once the first choice has run them all; see `Below`. A choice that was asked before is not run again, as long as
        its outputs are among the first 64 MB.
    """

    regimes = ("standard",)
    tangent = False

    @staticmethod
    def applied(module: nn.Module, vector: TaskVector, scale: float, point: Point) -> nn.Module:
        """A copy with other weights, of the same class."""
        own = vector.fitted(module)
        edited = models.working_copy(module)
        _tell_kept(edited)
        _set_weights(edited, module, own, scale)
        encoder, base = models.encoder_in(edited), models.encoder_in(module)
        if encoder is not None and base is not None:
            encoder.origin = Origin.of(base)
            encoder.edit = " + ".join(filter(None, [base.edit, f"{scale:g} {vector.label}"]))
            if encoder.home is not None:
                encoder.home = encoder.home.moved(own.deltas, scale)
            if encoder.language is not None:
                encoder.language = encoder.language.moved(own.deltas, scale)
        return edited

    def _begin(self) -> None:
        self._copy: Encoder | None = None
        self._at: Coefs | None = None
        self._below: Below | None = None
        self._outputs: dict[tuple[Task, str, tuple[tuple[str, float], ...]], Tensor] = {}
        self._room = _ROOM

    def affine(self, task: Task) -> bool:
        """It is not known to be."""
        return False

    def read(self, needs: Mapping[Task, Sequence[str]], split: str) -> None:
        """Nothing can be read ahead."""

    def _logits(self, task: Task, split: str, used: Coefs, about: str, advance: Advance) -> Tensor:
        key = (task, split, tuple(sorted(used.items())))
        if key in self._outputs:
            advance(len(self._outputs[key]), "")
            return self._outputs[key]
        edited = self._edited(used)
        model, run = Classifier(edited, self.head(task)), None
        if self._below:
            run = partial(self._below, model)
        with models.eval_mode(edited), torch.inference_mode():
            found = outputs(model, self.batches(task, split), advance, about, run)
        if found.nbytes <= self._room:
            self._room -= found.nbytes
            self._outputs[key] = found
        return found

    def classes_of(self, task: Task, split: str, coefficients: Coefs, rows: Tensor) -> Tensor:
        """The classes of some rows, shape (n,), where `rows` (N,) says which; the others are not computed."""
        edited = self._edited({name: value for name, value in coefficients.items() if value})
        model, found = Classifier(edited, self.head(task)), torch.zeros(len(rows), dtype=torch.int)
        run = self._below.part if self._below else of_rows
        wanted = set(rows.nonzero()[:, 0].tolist())
        with models.eval_mode(edited), torch.inference_mode(), Intact(model)():
            for places, batch in self.batches(task, split):
                inside = [at for at, place in enumerate(places) if place in wanted]
                if inside:
                    logits = run(model, batch, inside)
                    require_finite_rows(logits, f"the logits of {task.name!r} on {split}")
                    found[[places[at] for at in inside]] = logits.argmax(-1).int().cpu()
        return found[rows]

    def _language(self, used: Coefs) -> Language | None:
        """With the table of the edited model."""
        return self._edited(used).language

    def _moved(self) -> set[str]:
        """The parameters that some direction moves."""
        fitted = (self.fitted(self.directions.partial(name)) for name in self.directions.names)
        return {name for one in fitted for name, delta in one.deltas.items() if delta.any()}

    def _edited(self, used: Coefs) -> Encoder:
        if not self.directions.vectors:
            return self.encoder
        if self._copy is None:
            self._copy = models.working_copy(self.encoder).eval()
            if self.encoder.inputs.modality != "image":  # whose batches are made anew each time
                self._below = Below(self._copy, self._moved())
        if self._at != used:
            total = self.directions.combined(used)
            _set_weights(self._copy, self.encoder, self.fitted(total), 1.0)
            if self.encoder.language is not None:
                moved = moving_table(total, self.encoder, self.fingerprint)
                self._copy.language = self.encoder.language.moved(moved)
            self._at = dict(used)
        return self._copy


def _tell_kept(edited: nn.Module) -> None:
    inner, _ = models.core(edited)
    kept = models.kept_outside(inner)
    if kept:
        warnings.warn(
            f"{type(inner).__name__} keeps tensors outside its parameters and buffers ({listed(kept)}), and the edited "
            "copy keeps the same. If an earlier call has made them from weights, they are those of the old "
            "weights: edit a module that nobody has called yet, or empty these places in the copy.",
            RuntimeWarning,
            stacklevel=5,
        )


def _set_weights(edited: nn.Module, base: nn.Module, vector: TaskVector, scale: float) -> None:
    """Set a copy's weights to theta0 + scale * tau in place; `base` is only read, and the vector is fitted to it."""
    origin = models.state_of(base)
    for name, tensor in models.state_of(edited).items():
        if name in vector.deltas:
            tensor.copy_(vector.moved(name, origin[name], scale))
