"""E f(sigma z), z ~ N(0, 1), for any elementwise function f and many sigma at once."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from tauspan.core.errors import NonFiniteError, UsageError

_REACH = 9.0  # standard deviations on both sides
_DEGREE = 16  # Chebyshev nodes in each half octave of sigma, and Gauss-Legendre nodes in each panel
_FINE, _PARTS, _DEEP = (
    12,
    8,
    40,
)  # panels around each kink: 8 in each halving of the distance, from the 12th on one
_CLOSE, _HALVINGS, _MOST = (
    1e-12,
    60,
    20_000,
)  # change of a panel that is halved; how often, and how many panels
_NOTHING = 1e-290  # means so small that their last digits are lost to underflow
_NODES, _WEIGHTS = (torch.from_numpy(one) for one in np.polynomial.legendre.leggauss(_DEGREE))


class GaussianMeans:
    """F(sigma) = E f(sigma z), to 1e-9 of the E |f(sigma z)| of its half octave.

    F is analytic in s = log sigma for |Im s| < pi/4, whatever f is. So it is interpolated there, by a polynomial for each
    half octave of sigma, at 16 Chebyshev nodes. At these F is an integral over v = sigma z by Gauss-Legendre panels that
    become narrower towards each kink. A panel is halved until its halves agree with it to 1e-12 of E |f|, so that a jump
    or a kink that was not named is found. Half octaves are computed when they are first asked for, and kept.

    Args:
        function: f, elementwise.
        kinks: where f is not smooth, or has a narrow peak.

    Raises:
        UsageError: a function that is not elementwise; an integral that does not settle.
        NonFiniteError: f is NaN or infinite at a node.

    Cost:
        About 0.1 s for each half octave when it is first asked for, 1 s where f has jumps that are not named; after that
        16 multiplications for each entry.

    Example:
        >>> cosine = GaussianMeans(torch.cos)
        >>> sigma = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
        >>> bool(torch.allclose(cosine(sigma), torch.exp(-sigma.square() / 2), rtol=0, atol=1e-13))
        True
    """

    def __init__(self, function: Callable[[Tensor], Tensor], kinks: Sequence[float] = (0.0,)) -> None:
        """Nothing is computed yet."""
        self.function, self.kinks = function, tuple(kinks)
        self._pieces: dict[int, Tensor] = {}

    def __call__(self, sigma: Tensor) -> Tensor:
        """F of every entry, in sigma's dtype; f(0) where sigma is 0, NaN where it is NaN."""
        found, some = sigma.double(), sigma > 0
        if bool((sigma == 0).any()):
            found = found + (sigma == 0) * self._values(torch.zeros(1, dtype=torch.float64))
        if not bool(some.any()):
            return found.to(sigma)
        place = 2 * sigma[some].double().log2()  # counts half octaves
        numbers, index = place.floor().detach().long().unique(return_inverse=True)  # type: ignore[no-untyped-call]
        table = torch.stack([self._piece(number) for number in numbers.tolist()]).to(sigma.device)
        x = 2 * (place - place.floor().detach()) - 1
        before, now = torch.zeros_like(x), torch.zeros_like(x)
        for k in reversed(range(1, _DEGREE)):  # Clenshaw
            before, now = now, table[index, k] + 2 * x * now - before
        return found.masked_scatter(some, table[index, 0] + x * now - before).to(sigma)

    def _piece(self, number: int) -> Tensor:
        """The Chebyshev coefficients of F for sigma between 2^(number/2) and 2^((number+1)/2), shape (16,)."""
        if number not in self._pieces:
            angles = math.pi * (torch.arange(_DEGREE, dtype=torch.float64) + 0.5) / _DEGREE
            sigma = 2 ** ((number + (angles.cos() + 1) / 2) / 2)
            basis = (torch.arange(_DEGREE, dtype=torch.float64)[:, None] * angles).cos() * 2 / _DEGREE
            coefficients = basis @ self._integrals(sigma)
            coefficients[0] /= 2
            self._pieces[number] = coefficients
        return self._pieces[number]

    def _integrals(self, sigma: Tensor) -> Tensor:
        """F at a few sigma that are close to one another."""
        low, high = self._panels(_REACH * float(sigma.max()))
        total, sizes = torch.zeros_like(sigma), torch.zeros_like(sigma)
        coarse, _ = self._sums(low, high, sigma)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            left, right = self._sums(low, middle, sigma), self._sums(middle, high, sigma)
            fine, size = left[0] + right[0], left[1] + right[1]
            differ = ((fine - coarse).abs() > _CLOSE * (sizes + size.sum(0)) + _NOTHING).any(1)
            if not bool(differ.any()):
                return total + fine.sum(0)
            if int(differ.sum()) > _MOST:
                break
            total, sizes = total + fine[~differ].sum(0), sizes + size[~differ].sum(0)
            before, after = total + coarse[differ].sum(0), total + fine[differ].sum(0)
            low, high, coarse = (
                torch.cat([one[differ], other[differ]])
                for one, other in ((low, middle), (middle, high), (left[0], right[0]))
            )
        worst = int((after - before).abs().argmax())
        raise UsageError(
            f"the mean of the derivative under N(0, {float(sigma[worst]) ** 2:.4g}) does not settle: "
            f"{float(before[worst]):.9g}, and {float(after[worst]):.9g} with twice as many nodes. Give a function that "
            "is computed in float64 and integrable, and name in kinks where it jumps or is not bounded."
        )

    def _panels(self, reach: float) -> tuple[Tensor, Tensor]:
        """Ends of panels that cover [-reach, reach] and become narrower towards each kink."""
        octaves = torch.cat([torch.arange(0, _FINE, 1 / _PARTS), torch.arange(_FINE, _DEEP)]).double()
        steps = reach * 2.0**-octaves
        kinks = torch.tensor([0.0, *self.kinks], dtype=torch.float64)[:, None]
        edges = torch.cat([kinks.flatten(), (kinks + steps).flatten(), (kinks - steps).flatten()])
        edges = torch.cat([edges.clamp(-reach, reach), torch.tensor([-reach, reach]).double()]).sort().values
        kept = edges.diff() > 0
        return edges[:-1][kept], edges[1:][kept]

    def _sums(self, low: Tensor, high: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """What each panel adds to E f and to E |f|, shapes (panels, sigmas)."""
        half = (high - low)[:, None] / 2
        v = (low + high)[:, None] / 2 + half * _NODES
        f = self._values(v) * _WEIGHTS * half
        density = torch.exp(-(v[..., None] / sigma).square() / 2) / (math.sqrt(2 * math.pi) * sigma)
        return torch.einsum("pn,pns->ps", f, density), torch.einsum("pn,pns->ps", f.abs(), density)

    def _values(self, v: Tensor) -> Tensor:
        found = self.function(v)
        if found.shape != v.shape:
            raise UsageError(
                f"the derivative maps {tuple(v.shape)} to {tuple(found.shape)}: it must be elementwise."
            )
        if not bool(torch.isfinite(found).all()):
            place = float(v[~torch.isfinite(found)][0])
            raise NonFiniteError(f"the derivative is not finite at {place:.6g}: give a function that is.")
        return found.detach().double()
