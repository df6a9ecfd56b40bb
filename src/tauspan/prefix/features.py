"""Feature maps phi with phi(q).phi(k) near exp(q.k): what makes sums over a prefix's tokens of a few numbers."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan.core.errors import UsageError, nearest

Phi: TypeAlias = Literal["elu", "taylor", "positive"]


@dataclass(frozen=True)
class FeatureMap:
    """A feature map of queries and keys x, which are scaled first: u = x sqrt(s), s the scale of the attention scores.

    Args:
        phi: `"elu"`: ELU(u) + 1, entry by entry, r = d features, as NTK-Attention has it (arXiv 2406.14036).
            `"taylor"`: 1, u, and the products u_i u_j with i <= j, those with i = j over sqrt 2; r = 1 + d + d(d + 1)/2
            features, whose products are 1 + u.k + (u.k)^2/2. `"positive"`: exp(G u - |u|^2/2) / sqrt r with normal
            random G, whose products are exp(u.k) in the mean over G (FAVOR+, arXiv 2009.14794).
        features: r, of `"positive"` alone.
        seed: of G.

    Example:
        >>> u, k = torch.tensor([0.1, 0.2]), torch.tensor([0.3, -0.1])
        >>> taylor = FeatureMap("taylor")
        >>> float((taylor(u) * taylor(k)).sum()), float((u @ k).exp())
        (1.0100500583648682, 1.0100501775741577)
    """

    phi: Phi = "elu"
    features: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.phi not in get_args(Phi):
            raise UsageError(f"phi={self.phi!r} is no feature map. {nearest(str(self.phi), get_args(Phi))}")
        if self.features < 1:
            raise UsageError(f"features={self.features}: it must be at least 1.")

    @property
    def name(self) -> str:
        """The name of the part that an attention layer gets, which says all of the map: `prefix_positive_64_0`."""
        return f"prefix_{self.phi}" + (f"_{self.features}_{self.seed}" if self.phi == "positive" else "")

    def width(self, size: int) -> int:
        """The number of features r of keys of `size` entries."""
        return {"elu": size, "taylor": 1 + size + size * (size + 1) // 2, "positive": self.features}[self.phi]

    def directions(self, size: int) -> Tensor:
        """G of `"positive"`, shape (r, d); of the others an empty tensor."""
        if self.phi != "positive":
            return torch.zeros(0, size)
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(self.features, size, generator=generator, dtype=torch.float64)

    def __call__(self, u: Tensor, directions: Tensor | None = None) -> Tensor:
        """The features of scaled queries or keys of shape (..., d), shape (..., r)."""
        if self.phi == "elu":
            return F.elu(u) + 1
        if self.phi == "taylor":
            return _second_order(u)
        drawn = self.directions(u.shape[-1]) if directions is None else directions
        exponent = u @ drawn.to(u.device, u.dtype).T - (u * u).sum(-1, keepdim=True) / 2
        found: Tensor = exponent.exp() * float(self.features) ** -0.5
        return found


def _second_order(u: Tensor) -> Tensor:
    first, second = torch.triu_indices(u.shape[-1], u.shape[-1], device=u.device)
    weights = torch.ones(len(first), dtype=u.dtype, device=u.device).masked_fill(first == second, 0.5**0.5)
    products = u.index_select(-1, first) * u.index_select(-1, second) * weights
    return torch.cat([torch.ones_like(u[..., :1]), u, products], -1)
