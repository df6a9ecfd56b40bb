"""`Edits`: the logits of a model at any coefficients of some directions, in any regime."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan import models
from tauspan.core.measure import progress, underway
from tauspan.core.params import require_finite_rows
from tauspan.core.reading import Reading
from tauspan.editing.edit import EditRegime, point_of, set_weights
from tauspan.editing.evaluate import accuracy, outputs
from tauspan.editing.search.directions import Directions
from tauspan.editing.search.objective import Targets, target_rows
from tauspan.models import Classifier, Encoder
from tauspan.tangent import Linearized, linearize
from tauspan.tangent.contributions import Contributions, contributions
from tauspan.tasks import Task, build_head
from tauspan.tasks.batches import Batches, batches
from tauspan.vector import TaskVector


class Edits:
    """Logits and accuracy at theta0 + sum_d a_d * direction_d, in any regime.

    In the tangent regimes one pass per split serves every choice of coefficients, because outputs are affine in
    them; the ordinary model is run anew at each choice, its weights set in place on one working copy.
    """

    def __init__(
        self, encoder: Encoder, tasks: Sequence[Task], directions: Directions, regime: EditRegime,
        reading: Reading, ) -> None:  # fmt: skip
        self.encoder, self.directions, self.regime = encoder, directions, regime
        self.point = point_of(list(directions.vectors.values()), reading.point)
        self._base = models.fingerprint_of(encoder)
        for vector in directions.vectors.values():
            self.fitted(vector)
        self.reading = reading
        with underway("heads"):
            self.heads = {task: build_head(task, encoder, max_tokens=reading.max_tokens) for task in tasks}
        self._passes: dict[tuple[Task, str], Contributions] = {}
        self._prepared: dict[tuple[Task, str], Batches] = {}
        self._tangents: dict[tuple[str, ...], Linearized] = {}
        self._copy: Encoder | None = None
        self._at: dict[str, float] | None = None
        self._accuracies: dict[tuple[Task, str, tuple[tuple[str, float], ...]], float] = {}

    def logits(self, task: Task, split: str, coefficients: Mapping[str, float]) -> Tensor:
        """Logits (N, K) of one task on one split; directions that are not named count as 0.

        Raises:
            NonFiniteError: a row's logits are NaN or infinite.
        """
        at = " + ".join(f"{value:g} x {name!r}" for name, value in coefficients.items() if value) or "theta0"
        about = f"the logits of {task.name!r} on {split} at {at}"
        if self.regime == "standard":
            return self._standard(task, split, coefficients, about)
        passed = self._passes[task, split]
        found = passed.logits([coefficients.get(name, 0.0) for name in passed.names])
        require_finite_rows(found, about)
        return found

    def accuracy(self, task: Task, split: str, coefficients: Mapping[str, float]) -> float:
        """Accuracy of one task on one split; computed once, since several directions share their zero and their own."""
        used = tuple(sorted((name, value) for name, value in coefficients.items() if value))
        key = (task, split, used)
        if key not in self._accuracies:
            self._accuracies[key] = accuracy(self.logits(task, split, coefficients), task.split(split).labels)
        return self._accuracies[key]

    def loss(
        self, task: Task, split: str, coefficients: Mapping[str, float], targets: Targets = "label"
    ) -> float:
        """Mean cross-entropy of one task on one split, to its labels or to the wrong classes."""
        logits = self.logits(task, split, coefficients).double()
        return float(
            F.cross_entropy(logits, target_rows(task.split(split).labels, logits.shape[-1], targets))
        )

    def fitted(self, vector: TaskVector) -> TaskVector:
        """A vector as the encoder takes it in this regime: under the names of its memory."""
        return vector.fitted(self.encoder, tangent=self.regime != "standard", base=self._base)

    def passed(self, task: Task, split: str) -> Contributions:
        """The cached pass of a tangent regime, after `prepare`."""
        return self._passes[task, split]

    def prepare(self, needs: Mapping[Task, Sequence[str]], split: str) -> None:
        """Make the one pass per task that the tangent regimes need: which directions on which task."""
        if self.regime == "standard":
            return
        with progress(f"tangents on {split}", sum(len(t.split(split)) for t in needs)) as advance:
            for task, names in needs.items():
                vectors = {name: self.fitted(self.directions.partial(name)) for name in names}
                tangent = self._tangent(task, tuple(vectors[names[0]].deltas))
                info = {"task": task.name, "split": split, "regime": self.regime}
                self._passes[task, split] = contributions(
                    tangent,
                    vectors,
                    self._batches(task, split),
                    task.split(split).labels,
                    info=info,
                    advance=advance,
                )

    def _tangent(self, task: Task, names: tuple[str, ...]) -> Linearized:
        """The tangent model under a task's head; all of them share one check of the engine."""
        if names not in self._tangents:
            self._tangents[names] = linearize(self.encoder, list(names))
        return self._tangents[names].under(self.heads[task], self.point)

    def _batches(self, task: Task, split: str) -> Batches:
        """The split's batches; tokenised once, since the ordinary model reads them at every choice."""
        if (task, split) not in self._prepared:
            rows, tokens = task.split(split), task.tokens(self.reading.max_tokens)
            self._prepared[task, split] = batches(self.encoder, rows, tokens, self.reading.batch_size)
        return self._prepared[task, split]

    def _standard(self, task: Task, split: str, coefficients: Mapping[str, float], about: str) -> Tensor:
        if self._copy is None:
            self._copy = models.working_copy(self.encoder).eval()
        if self._at != coefficients:
            set_weights(self._copy, self.encoder, self.fitted(self.directions.combined(coefficients)), 1.0)
            self._at = dict(coefficients)
        model = Classifier(self._copy, self.heads[task])
        with torch.inference_mode():
            return outputs(model, self._batches(task, split), what=about)
