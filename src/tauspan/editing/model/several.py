"""`EditedModels`: the edited models of an encoder and its vectors, each made when a question first needs it."""

from collections.abc import Mapping, Sequence

from tauspan.core.choices import EditRegime
from tauspan.core.errors import UsageError, nearest
from tauspan.core.reading import Reading
from tauspan.editing.model.directions import Directions
from tauspan.editing.model.edited import EditedModel
from tauspan.editing.model.kinds import edited_model
from tauspan.models import Encoder
from tauspan.tasks import Task
from tauspan.vector import TaskVector


class EditedModels:
    """Edited models by their directions, so that what one pass found serves later questions.

    Args:
        encoder: the pre-trained encoder.
        named: vectors by name.
        regime: how they edit.
        reading: batches, where texts are cut, and the linearisation point.
        ahead: read every direction on every task; False makes each model anew and reads what a question needs.
    """

    def __init__(
        self,
        encoder: Encoder,
        named: Mapping[str, TaskVector],
        regime: EditRegime,
        reading: Reading,
        ahead: bool,
    ) -> None:
        self.encoder, self.named, self.regime = encoder, named, regime
        self.reading, self.ahead = reading, ahead
        self._made: dict[tuple[tuple[str, tuple[str, ...]], ...], EditedModel] = {}

    def whole(self, tasks: Sequence[Task]) -> EditedModel:
        """The model whose directions are the whole vectors, with the heads of these tasks."""
        return self.of(Directions.whole(self.named), tasks)

    def parts(self, directions: Directions, tasks: Sequence[Task]) -> EditedModel:
        """The model whose directions are parts of the vectors; `ahead` cuts all vectors in the same way."""
        return self.of(Directions(self.named, directions.groups) if self.ahead else directions, tasks)

    def of(self, directions: Directions, tasks: Sequence[Task]) -> EditedModel:
        """The model of these directions, with the heads of these tasks."""
        key = tuple((group, tuple(names)) for group, names in directions.groups.items())
        model = self._made.get(key) if self.ahead else None
        if model is None:
            # all layers of all vectors would be many tangents
            ahead = self.ahead and len(directions.groups) == 1
            model = edited_model(self.encoder, directions, self.regime, self.reading, ahead)
            self._made[key] = model
        model.make_heads(tasks)
        return model

    def tangent(self, directions: Directions, tasks: Sequence[Task], ahead: bool = False) -> EditedModel:
        """A tangent model of these directions, also of ordinary vectors."""
        regime: EditRegime = "linear" if self.regime == "linear" else "posthoc"
        model = edited_model(self.encoder, directions, regime, self.reading, ahead)
        model.make_heads(tasks)
        return model

    def given(self, coefficients: float | Mapping[str, float]) -> Mapping[str, float]:
        """Coefficients by name, as they were given.

        Raises:
            UsageError: a name of no vector.
        """
        if not isinstance(coefficients, Mapping):
            return dict.fromkeys(self.named, coefficients)
        for name in coefficients:
            if name not in self.named:
                raise UsageError(f"coefficients name no vector {name!r}. {nearest(name, list(self.named))}")
        return coefficients

    def numbers(self, coefficients: float | Mapping[str, float]) -> dict[str, float]:
        """A coefficient for each vector; what is not named counts as 0."""
        given = self.given(coefficients)
        return {name: float(given.get(name, 0.0)) for name in self.named}
