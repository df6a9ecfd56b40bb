"""`Parametrisation`: how weights, their start and the learning rate scale with width, and what that makes of training."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError

WidthRegime: TypeAlias = Literal["unstable", "trivial", "kernel", "feature learning"]
_SAME = 1e-9  # exponents such as 1/3 are rounded


class ScaledLinear(nn.Linear):
    """scale W x, with W ~ N(0, std^2) of shape (outputs, inputs) and no bias."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        scale: float,
        std: float,
        generator: torch.Generator | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(
            inputs, outputs, bias=False, dtype=dtype, device="meta"
        )  # its own start is not drawn
        drawn = torch.randn(outputs, inputs, generator=generator, dtype=dtype) * std
        self.weight = nn.Parameter(drawn)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        return F.linear(x, self.weight) * self.scale


@dataclass(frozen=True)
class Parametrisation:
    """An abc-parametrisation of L hidden layers of width n: W^l = n^-a_l w^l, w^l ~ N(0, n^-2b_l), rate eta n^-c.

    The net is h^1 = W^1 x, h^l = W^l s(h^l-1), f = W^L+1 s(h^L), trained by SGD on the w^l. As n grows, hidden features
    move by n^-r in a step, with

        r = min(a_L+1 + b_L+1, 2 a_L+1 + c) + c - 1 + min over l <= L of (2 a_l + [l = 1]).

    It is *stable* if a_1 + b_1 = 0, a_l + b_l = 1/2 for the other hidden layers (features start at order 1),
    a_L+1 + b_L+1 >= 1/2 (so does the output, at most), r >= 0, a_L+1 + b_L+1 + r >= 1 and 2 a_L+1 + c >= 1 (no step blows
    up); *trivial* if the output does not move in the limit, that is, if none of the last two is an equality; it learns
    features if r = 0, and is a kernel regime if r > 0. Yang and Hu, "Feature learning in infinite-width neural networks"
    (2021), section 3; the exponents are those of SGD, and Adam has others.

    Args:
        a: exponents of the multipliers, L + 1 numbers, the input layer first and the readout last.
        b: exponents of the standard deviation at the start, as many.
        c: exponent of the learning rate.

    Raises:
        UsageError: fewer than two layers, or another number of a than of b.

    Example:
        >>> Parametrisation.mup(2).regime, Parametrisation.ntk(2).regime, Parametrisation.standard(2).regime
        ('feature learning', 'kernel', 'unstable')
        >>> Parametrisation.ntk(2).r
        0.5
        >>> Parametrisation.standard(2, c=1).reasons
        ('hidden features move as n^-1/2, and not at order 1 (r = 1/2, and 0 is wanted)',)
    """

    a: Sequence[float]
    b: Sequence[float]
    c: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "a", tuple(self.a))
        object.__setattr__(self, "b", tuple(self.b))
        if len(self.a) != len(self.b) or len(self.a) < 2:
            raise UsageError(
                f"a has {len(self.a)} exponents and b {len(self.b)}: give one of each for every layer, the hidden ones "
                "and the readout; Parametrisation.mup(2) shows how."
            )

    # -- the named ones --------------------------------------------------------------------------------------

    @classmethod
    @checked
    def standard(cls, hidden: int, c: float = 0.0) -> "Parametrisation":
        """What torch does, std 1/sqrt(fan_in) and no multiplier; c = 0 is one rate for all widths, c = 1 the rate eta/n.

        Args:
            hidden: L.
            c: exponent of the learning rate.

        Raises:
            UsageError: no hidden layer.
        """
        return cls((0.0,) * _layers(hidden), (0.0,) + (0.5,) * hidden, c)

    @classmethod
    @checked
    def ntk(cls, hidden: int) -> "Parametrisation":
        """The NTK parametrisation, W = w / sqrt(n): the tangent kernel stays fixed in the limit.

        Args:
            hidden: L.

        Raises:
            UsageError: no hidden layer.
        """
        return cls((0.0,) + (0.5,) * hidden, (0.0,) * _layers(hidden), 0.0)

    @classmethod
    @checked
    def mean_field(cls, hidden: int = 1) -> "Parametrisation":
        """The mean-field parametrisation of one hidden layer, f = V s(U x) / n with the rate eta n.

        Args:
            hidden: 1. Deeper, averages of random units vanish at the start.

        Raises:
            UsageError: more hidden layers than one, or none.
        """
        if hidden != 1:
            raise UsageError(
                f"hidden={hidden}: the mean-field parametrisation belongs to one hidden layer; with more, preactivations "
                f"vanish at the start. Take Parametrisation.mup({max(hidden, 1)}), which is the same for one."
            )
        return cls((0.0, 1.0), (0.0, 0.0), -1.0)

    @classmethod
    @checked
    def mup(cls, hidden: int) -> "Parametrisation":
        """The maximal update parametrisation: every layer learns features at one learning rate for all widths.

        Args:
            hidden: L.

        Raises:
            UsageError: no hidden layer.
        """
        return cls((-0.5, *(0.0,) * (_layers(hidden) - 2), 0.5), (0.5,) * (hidden + 1), 0.0)

    # -- what follows ----------------------------------------------------------------------------------------

    @property
    def hidden(self) -> int:
        """The number of hidden layers, L."""
        return len(self.a) - 1

    @property
    def r(self) -> float:
        """The exponent of the features' movement: hidden features change by n^-r in a step."""
        *below, last = zip(self.a, self.b, strict=True)
        readout = min(sum(last), 2 * last[0] + self.c)
        return readout + self.c - 1 + min(2 * a + (place == 0) for place, (a, _) in enumerate(below))

    @property
    def regime(self) -> WidthRegime:
        """What training becomes as n grows; a net that vanishes or blows up anywhere is unstable."""
        if self._unstable():
            return "unstable"
        if self._trivial():
            return "trivial"
        return "kernel" if self.r > _SAME else "feature learning"

    @property
    def reasons(self) -> tuple[str, ...]:
        """Which conditions fail, in words: of stability, else of a moving output, else of feature learning."""
        if self.regime == "feature learning":
            return ()
        still = (
            f"hidden features move as n^{_f(-self.r)}, and not at order 1 (r = {_f(self.r)}, and 0 is wanted)"
        )
        return self._unstable() or self._trivial() or (still,)

    def _unstable(self) -> tuple[str, ...]:
        start = [a + b for a, b in zip(self.a, self.b, strict=True)]
        last, found = start[-1], []
        for layer, total in enumerate(start[:-1], 1):
            wanted = 0.5 if layer > 1 else 0.0
            if abs(total - wanted) > _SAME:
                found.append(
                    f"preactivations of hidden layer {layer} start at order n^{_f(wanted - total)} "
                    f"(a_{layer} + b_{layer} = {_f(total)}, and {_f(wanted)} is wanted)"
                )
        own = 2 * self.a[-1] + self.c
        for wrong, what, why in (
            (0.5 - last, "the output starts", f"a + b of the readout is {_f(last)}, and at least 1/2 is wanted"),
            (-self.r, "hidden features move", f"r = {_f(self.r)}, and at least 0 is wanted"),
            (1 - last - self.r, "moved features move the output",
             f"a + b + r of the readout is {_f(last + self.r)}, and at least 1 is wanted"),
            (1 - own, "the readout's own step moves the output",
             f"2 a + c of the readout is {_f(own)}, and at least 1 is wanted"),
        ):  # fmt: skip
            if wrong > _SAME:
                found.append(f"{what} at order n^{_f(wrong)} ({why})")
        return tuple(found)

    def _trivial(self) -> tuple[str, ...]:
        features, own = self.a[-1] + self.b[-1] + self.r, 2 * self.a[-1] + self.c
        if min(features, own) <= 1 + _SAME:
            return ()
        return (
            f"the output moves as n^{_f(1 - min(features, own))} (a + b + r = {_f(features)} and 2 a + c = {_f(own)} of "
            "the readout, and one of them should be 1)",
        )

    @checked
    def shifted(self, t: float) -> "Parametrisation":
        """The same training in other numbers: (a + t, b - t, c - 2t) gives the same functions after every step of SGD.

        Args:
            t: any number.

        Example:
            >>> Parametrisation.mup(1).shifted(0.5) == Parametrisation.mean_field()
            True
        """
        moved = [a + t for a in self.a], [b - t for b in self.b]
        return Parametrisation(*moved, self.c - 2 * t)

    @checked
    def rate(self, width: int, eta: float = 1.0, *, base: int = 1) -> float:
        """The learning rate of SGD at a width, eta (width/base)^-c.

        Args:
            width: n.
            eta: the rate at the base width.
            base: the width at which multipliers are 1; see `network`.

        Example:
            >>> Parametrisation.standard(2, c=1).rate(256, 0.1, base=64)
            0.025
        """
        return float(eta * (width / base) ** -self.c)

    @checked
    def network(
        self,
        inputs: int,
        outputs: int,
        width: int,
        *,
        activation: Callable[[], nn.Module] = nn.Tanh,
        base: int = 1,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> nn.Sequential:
        """The net at a width: layers `hidden1`, ..., `readout`, with m = width/base in the place of n, and no biases.

        At the base width every parametrisation gives one net, with std 1/sqrt(fan_in): w^l ~ N(0, s_l^2 m^-2b_l), s_1 =
        1/sqrt(inputs), the others 1/sqrt(base).

        Args:
            inputs: d of the rows.
            outputs: of the readout.
            width: n.
            activation: makes the module after each hidden layer.
            base: the width at which multipliers are 1; with 1 the net is the definition's.
            seed: of all weights.
            dtype: of all weights.

        Raises:
            UsageError: a size below 1.

        Example:
            >>> net = Parametrisation.mup(2).network(3, 1, width=8)
            >>> [(name, tuple(p.shape)) for name, p in net.named_parameters()]
            [('hidden1.weight', (8, 3)), ('hidden2.weight', (8, 8)), ('readout.weight', (1, 8))]
        """
        if min(inputs, outputs, width, base) < 1:
            raise UsageError(
                f"inputs={inputs}, outputs={outputs}, width={width}, base={base}: all must be at least 1."
            )
        ratio, generator = width / base, torch.Generator().manual_seed(seed)
        sizes = [inputs, *[width] * self.hidden, outputs]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for place, (a, b) in enumerate(zip(self.a, self.b, strict=True)):
            std = (inputs if place == 0 else base) ** -0.5 * ratio**-b
            layer = ScaledLinear(sizes[place], sizes[place + 1], ratio**-a, std, generator, dtype)
            if place == self.hidden:
                layers["readout"] = layer
            else:
                layers |= {f"hidden{place + 1}": layer, f"act{place + 1}": activation()}
        return nn.Sequential(layers)


def _layers(hidden: int) -> int:
    if hidden < 1:
        raise UsageError(f"hidden={hidden}: a net whose width matters has at least 1 hidden layer.")
    return hidden + 1


def _f(number: float) -> str:
    """An exponent as a fraction."""
    return str(Fraction(number).limit_denominator(1000))
