"""How far a vector moves its own task's logits, and the coefficient at which it moves them so far.

drift_t(a) = mean_x |c(f(x; theta0 + a tau_t)) - c(f(x; theta0))| / mean_x |c(f(x; theta0))|, x from task t's own rows,
where c takes from the logits what the task's objective does not see, for classes the row's mean logit, and |.| is the
Euclidean norm. Logits, since predictions are read off them and every regime has them; centred, since a shift of all
logits decides nothing; a ratio of means, since rows on which the pre-trained model is undecided have |c(f)| near 0 and
would rule a mean of ratios.
"""

import math
from collections.abc import Callable

from scipy.optimize import brentq
from torch import Tensor

from tauspan.core.errors import NonFiniteError, UsageError
from tauspan.objectives import Classification, Objective

_TOLERANCE = 1e-4  # of a coefficient, relative: the maps' own standard errors are a hundred times that
_WIDER = 8  # doublings of a coefficient before a drift counts as out of reach


class Drift:
    """The drift of one vector on its own task's rows as a function of its coefficient; each value is computed once.

    Args:
        name: of the task, for errors.
        logits: at a coefficient, shape (N, K).
        affine: whether they are affine in it; then drift(a) = |a| drift(1) exactly.
        objective: it says what of the logits is seen, c.

    Raises:
        UsageError: the pre-trained model gives every class of every row the same logit; or the outputs are states of a
            language model.

    Example:
        >>> import torch
        >>> start, slope = torch.tensor([[3.0, -3.0]]), torch.tensor([[-1.0, 1.0]])
        >>> drift = Drift("task", lambda a: start + a * slope, affine=True)
        >>> round(drift(1.0), 4), round(drift.coefficient(1.0), 4), round(drift.coefficient(-1.0), 4)
        (0.3333, 3.0, -3.0)
    """

    def __init__(
        self,
        name: str,
        logits: Callable[[float], Tensor],
        affine: bool,
        objective: Objective = Classification(),
    ) -> None:
        if objective.headless and not objective.embeds:
            raise UsageError(
                f"how far {name!r}, a {objective.word} task, is moved is not measured, since its outputs are states: "
                "`Editor.evaluate` gives its metric at any coefficients."
            )
        self.name, self._logits, self._affine, self._objective = name, logits, affine, objective
        self._start = objective.seen(logits(0.0).double())
        self._size = float(self._start.norm(dim=-1).mean())
        self._known = {0.0: 0.0}
        if not self._size:
            raise UsageError(
                f"the pre-trained model gives all classes of {name!r} the same logit, so that drift, relative to "
                "them, has no meaning. Leave drift out, or take another head."
            )

    def __call__(self, alpha: float) -> float:
        """drift(alpha)."""
        if self._affine and abs(alpha) != 1:
            return abs(alpha) * self(1.0)
        if alpha not in self._known:
            moved = self._objective.seen(self._logits(alpha).double()) - self._start
            self._known[alpha] = float(moved.norm(dim=-1).mean()) / self._size
        return self._known[alpha]

    def coefficient(self, target: float) -> float:
        """The coefficient whose drift is |target|, with the sign of `target`; NaN where the vector never moves so far.

        Where drift is not proportional to the coefficient a root is found between 0 and the first doubling of
        |target| / drift(1) that reaches the target; if drift does not rise steadily there, it is one of several. A model
        whose logits are bounded, such as those of normalised features, does not reach every target.

        Raises:
            UsageError: the vector moves nothing on these rows.
        """
        sign, size = (-1.0 if target < 0 else 1.0), abs(target)
        if not size:
            return 0.0
        at_one = self(sign)
        if not at_one:
            raise UsageError(
                f"the vector of {self.name!r} moves nothing on its own rows: no coefficient gives drift."
            )
        high = size / at_one
        if self._affine:
            return sign * high
        try:
            for _ in range(_WIDER):
                if self(sign * high) >= size:
                    break
                high *= 2
            else:
                return math.nan
        except NonFiniteError:  # so far out that the model overflows
            return math.nan
        root = brentq(lambda a: self(sign * a) - size, 0.0, high, xtol=_TOLERANCE * high, rtol=_TOLERANCE)
        return sign * float(root)
