"""Tiny neural operators, convolutions, graph networks and function networks, for `helpers.architectures`."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FourierOperator(nn.Module):
    """Complex weights on the lowest modes, kept as pairs of real numbers, beside a pointwise map (Li et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.weight = nn.Linear(1, 2), nn.Parameter(torch.randn(2, 2, 3, 2))
        self.skip, self.out = nn.Conv1d(2, 2, 1), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        v = self.lift(x[..., None]).mT
        spectrum = torch.fft.rfft(v)
        low = torch.einsum("nim,iom->nom", spectrum[..., :3], torch.view_as_complex(self.weight))
        out = torch.zeros(len(x), 2, spectrum.shape[-1], dtype=spectrum.dtype)
        out[..., :3] = low
        return self.out(F.gelu(torch.fft.irfft(out, n=6) + self.skip(v)).flatten(1))


class FourierOperator2d(nn.Module):
    """The same on pictures, with all modes, by rfft2, and a shift of the spectrum."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.out = nn.Parameter(torch.randn(4, 3, 2)), nn.Linear(16, 2)
        self.filter = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.fft.irfft2(
            torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(self.weight), s=(4, 4), norm="ortho"
        )
        shifted = torch.fft.fftshift(torch.fft.fftn(y.tanh(), dim=(-2, -1)), dim=(-2, -1)) * self.filter
        return self.out(torch.fft.ifft2(torch.fft.ifftshift(shifted, dim=(-2, -1))).real.flatten(1))


class RationalLayer(nn.Module):
    """P(x) / (1 + |Q(x)|) with coefficients shared in groups (Yang and Wang 2024, KAT)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, 4) / 2), nn.Parameter(torch.randn(2, 3) / 2)
        self.mix, self.out = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        grouped = self.mix(x).view(len(x), 2, 3)
        powers = torch.stack([grouped**k for k in range(4)], -1)
        over = torch.einsum("ngik,gk->ngi", powers, self.a)
        under = 1 + torch.einsum("ngik,gk->ngi", powers[..., 1:], self.b).abs()
        return self.out((over / under).flatten(1))


class BSplineLayer(nn.Module):
    """sum_i c_i B_i(x) of cubic B-splines by their recursion, beside silu (Liu et al. 2024, KAN)."""

    def __init__(self) -> None:
        super().__init__()
        self.coefficients, self.base = nn.Parameter(torch.randn(2, 6, 5)), nn.Linear(6, 2)
        self.scale = nn.Parameter(torch.ones(6))
        self.register_buffer("grid", torch.arange(-4.0, 5.0))

    def basis(self, x: Tensor) -> Tensor:
        x, grid = x[..., None], self.grid
        found = ((x >= grid[:-1]) & (x < grid[1:])).to(x.dtype)
        for k in range(1, 4):
            left = (x - grid[: -k - 1]) / (grid[k:-1] - grid[: -k - 1])
            right = (grid[k + 1 :] - x) / (grid[k + 1 :] - grid[1:-k])
            found = left * found[..., :-1] + right * found[..., 1:]
        return found

    def forward(self, x: Tensor) -> Tensor:
        splines = self.basis(self.scale * x)
        return self.base(F.silu(x)) + torch.einsum("nik,oik->no", splines, self.coefficients)


class NeighbourhoodAttention(nn.Module):
    """Each place attends to the 3 x 3 window around it, with a bias for each offset (Hassani et al. 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.bias, self.out = nn.Conv2d(1, 6, 1), nn.Parameter(torch.randn(9)), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x[:, None]).chunk(3, 1)
        near = [F.unfold(part, 3, padding=1).view(len(x), 2, 9, 16) for part in (k, v)]
        inside = F.unfold(torch.ones(1, 1, 4, 4, dtype=x.dtype), 3, padding=1).bool()
        logits = (q.flatten(2)[:, :, None] * near[0]).sum(1) / math.sqrt(2) + self.bias[:, None]
        attention = logits.masked_fill(~inside, -math.inf).softmax(1)
        return self.out((near[1] * attention[:, None]).sum(2).flatten(1))


class InceptionNeXt(nn.Module):
    """Channels in four parts: as they are, a square, a wide and a tall depthwise kernel; then a perceptron (Yu 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 1)
        self.square = nn.Conv2d(2, 2, 3, padding=1, groups=2)
        self.wide = nn.Conv2d(2, 2, (1, 5), padding=(0, 2), groups=2)
        self.tall = nn.Conv2d(2, 2, (5, 1), padding=(2, 0), groups=2)
        self.norm, self.up, self.down = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.gamma, self.out = nn.Parameter(torch.full((8,), 0.5)), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x[:, None])
        same, square, wide, tall = torch.split(x, (2, 2, 2, 2), 1)
        mixed = torch.cat([same, self.square(square), self.wide(wide), self.tall(tall)], 1)
        x = x + self.gamma[:, None, None] * self.down(F.gelu(self.up(self.norm(mixed))))
        return self.out(x.mean((2, 3)))


class DilatedReparam(nn.Module):
    """A large depthwise kernel beside dilated small ones, each with its batch norm (Ding et al. 2024).

    With `merged` the dilated kernels are spread out by a transposed convolution and added to the large one, which gives
    the same function in one convolution.
    """

    def __init__(self, merged: bool = False) -> None:
        super().__init__()
        self.merged = merged
        self.stem, self.large = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 5, padding=2, groups=2, bias=False)
        self.small = nn.Conv2d(2, 2, 3, padding=2, dilation=2, groups=2, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(2), nn.BatchNorm2d(2)])
        for norm in self.norms:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
        self.squeeze, self.out = nn.Linear(2, 2), nn.Linear(50, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x[:, None])
        if self.merged:
            y = F.conv2d(x, *self.fused(), padding=2, groups=2)
        else:
            y = self.norms[0](self.large(x)) + self.norms[1](self.small(x))
        gate = torch.sigmoid(self.squeeze(y.mean((2, 3))))
        return self.out(F.gelu(y * gate[:, :, None, None]).flatten(1))

    def fused(self) -> tuple[Tensor, Tensor]:
        """The kernel and bias of both branches in one."""
        spread = F.conv_transpose2d(
            self.small.weight, torch.ones(1, 1, 1, 1, dtype=self.small.weight.dtype), stride=2
        )
        kernel, bias = 0.0, 0.0
        for weight, norm in zip((self.large.weight, spread), self.norms, strict=True):
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            kernel, bias = (
                kernel + weight * scale[:, None, None, None],
                bias + norm.bias - norm.running_mean * scale,
            )
        return kernel, bias


EDGES = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 0], [1, 0, 2, 1, 3, 2, 0, 3]])  # a ring of four, both ways


class GraphConvolution(nn.Module):
    """Messages along edges, added at their ends and divided by the degrees (Kipf and Welling 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def spread(self, h: Tensor) -> Tensor:
        source, target = EDGES
        degree = torch.bincount(target, minlength=h.shape[1]).to(h.dtype) + 1
        scale = degree.rsqrt()[source] * degree.rsqrt()[target]
        moved = torch.zeros_like(h).index_add(1, target, h[:, source] * scale[:, None])
        return moved + h / degree[:, None]

    def forward(self, x: Tensor) -> Tensor:
        return self.spread(self.second(self.spread(self.first(x)).relu())).mean(1)


class GraphAttention(nn.Module):
    """Softmax over the edges that end at a node, by scattered maxima and sums (Velickovic et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.score, self.out = nn.Linear(3, 4), nn.Parameter(torch.randn(8)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        source, target = EDGES
        h = self.map(x)
        e = F.leaky_relu(torch.cat([h[:, source], h[:, target]], -1) @ self.score, 0.2)
        places = target.expand_as(e)
        start = torch.full((len(x), 4), -math.inf, dtype=x.dtype)
        largest = start.scatter_reduce(1, places, e, "amax", include_self=False)
        weight = torch.exp(e - largest.gather(1, places))
        total = torch.zeros(len(x), 4, dtype=x.dtype).scatter_add(1, places, weight)
        weight = weight / total.gather(1, places)
        moved = torch.zeros_like(h).index_add_(1, target, weight[..., None] * h[:, source])
        return self.out(F.elu(moved).mean(1))


class SheafDiffusion(nn.Module):
    """x - D^-1/2 L D^-1/2 x with 2 x 2 restriction maps that a network makes of both ends (Bodnar et al. 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.maps, self.out = nn.Linear(3, 2), nn.Linear(6, 4), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        source, target = EDGES
        h = self.lift(x)
        maps = self.maps(torch.cat([x[:, source], x[:, target]], -1)).tanh().view(len(x), 8, 2, 2)
        back = maps[:, [1, 0, 3, 2, 5, 4, 7, 6]]  # the map of the same edge at its other end
        blocks = torch.zeros(len(x), 4, 2, 2, dtype=x.dtype).index_add(1, source, maps.mT @ maps)
        blocks = blocks + 0.1 * torch.eye(2, dtype=x.dtype)
        values, vectors = torch.linalg.eigh(blocks)
        root = vectors @ torch.diag_embed(values.rsqrt()) @ vectors.mT
        scaled = (root @ h[..., None])[..., 0]
        difference = maps @ scaled[:, source, :, None] - back @ scaled[:, target, :, None]
        laplacian = torch.zeros_like(h).index_add(1, source, (maps.mT @ difference)[..., 0])
        return self.out((h - (root @ laplacian[..., None])[..., 0]).tanh().mean(1))


class Siren(nn.Module):
    """sin(30 (W x + b)), layer after layer (Sitzmann et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.out = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 8)]), nn.Linear(8, 2)
        for place, layer in enumerate(self.layers):
            bound = 1 / 6 if place == 0 else math.sqrt(6 / 8) / 30
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(30 * layer(x))
        return self.out(x)


class ComplexNetwork(nn.Module):
    """Complex layers of real pairs, modReLU and phases (Trabelsi et al. 2018; Arjovsky et al. 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(4, 3, 2)), nn.Parameter(torch.randn(2, 4, 2))
        self.bias = nn.Parameter(0.1 * torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        z = torch.view_as_complex(x.view(len(x), 3, 2)) @ torch.view_as_complex(self.first).mT
        z = F.relu(z.abs() + self.bias) * z / (z.abs() + 1e-3)
        z = (
            z
            + 0.1 * z.conj() * torch.sgn(z)
            + 0.1 * torch.exp(1j * z.angle())
            + 0.1 * z.tanh()
            + z.pow(2) / 9
        )
        out = z @ torch.view_as_complex(self.second).mH.mT.resolve_conj().contiguous().mT
        return torch.view_as_real(out).sum(-1) + out.imag - out.abs().square() / 10


class QuantumCircuit(nn.Module):
    """Two qubits: rotations by the data and by parameters, an entangling gate, the expected signs (Havlicek 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.angles = nn.Parameter(torch.randn(2, 2))
        self.register_buffer("signs", torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1]]))

    def turned(self, state: Tensor, angle: Tensor, qubit: int) -> Tensor:
        """exp(-i angle X / 2) on one qubit of states (N, 2, 2)."""
        c, s = torch.cos(angle / 2), torch.sin(angle / 2)
        zero = torch.zeros_like(c)
        gate = torch.stack([torch.complex(c, zero), torch.complex(zero, -s)], -1)
        gate = torch.stack([gate, gate.flip(-1)], -2)
        paths = ("nij,njk->nik", "nij,nkj->nki")
        return torch.einsum(paths[qubit], gate, state)

    def state(self, x: Tensor) -> Tensor:
        """The amplitudes of each row, (N, 2, 2), of norm 1."""
        state = torch.zeros(len(x), 2, 2, dtype=torch.complex128)
        state[:, 0, 0] = 1
        entangle = torch.exp(1j * (math.pi / 4) * torch.tensor([[1.0, -1], [-1, 1]], dtype=x.dtype))
        for layer in self.angles:
            for qubit in range(2):
                state = self.turned(state, x[:, qubit] + layer[qubit], qubit)
            state = state * entangle
        return state

    def forward(self, x: Tensor) -> Tensor:
        state = self.state(x)
        return (state.conj() * state).real.flatten(1) @ self.signs.T


class Spectrogram(nn.Module):
    """A learned window, a short-time Fourier transform, log powers, and the signal of a filtered one."""

    def __init__(self) -> None:
        super().__init__()
        self.window, self.gain = nn.Parameter(torch.rand(8) + 0.5), nn.Parameter(torch.randn(5))
        self.out = nn.Linear(25 + 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.stft(x, 8, 4, window=self.window, return_complex=True)
        power = torch.log1p(spectrum.abs() ** 2)
        filtered = torch.istft(
            spectrum * self.gain[:, None], 8, 4, window=torch.hann_window(8, dtype=x.dtype), length=16
        )
        return self.out(torch.cat([power.flatten(1), filtered], 1))
