"""Tiny state-space models, long convolutions and scans, for `helpers.architectures`."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STATES = 3


def convolved(u: Tensor, kernel: Tensor) -> Tensor:
    """The causal convolution over the last axis, by FFT of twice the length."""
    length = u.shape[-1]
    spectrum = torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
    return torch.fft.irfft(spectrum, n=2 * length)[..., :length]


def scanned(decay: Tensor, drive: Tensor) -> Tensor:
    """h_t = decay_t h_{t-1} + drive_t over axis 1, by doubling: the associative scan of pairs (a, b)."""
    a, b, step = decay, drive, 1
    while step < b.shape[1]:
        before_a = torch.cat([torch.ones_like(a[:, :step]), a[:, :-step]], 1)
        before_b = torch.cat([torch.zeros_like(b[:, :step]), b[:, :-step]], 1)
        a, b, step = a * before_a, a * before_b + b, 2 * step
    return b


class S4D(nn.Module):
    """K_l = 2 Re sum_n C_n (exp(dt A_n) - 1)/A_n exp(l dt A_n), A_n = -1/2 + i pi n (Gu et al. 2022, S4D-Lin)."""

    def __init__(self) -> None:
        super().__init__()
        self.log_dt = nn.Parameter(torch.tensor(-1.0))
        self.log_decay = nn.Parameter(torch.full((STATES,), math.log(0.5)))
        self.frequency = nn.Parameter(math.pi * torch.arange(STATES))
        self.c = nn.Parameter(torch.randn(STATES, 2))
        self.skip, self.out = nn.Parameter(torch.randn(1)), nn.Linear(6, 2)

    def kernel(self, length: int) -> Tensor:
        a = torch.complex(-self.log_decay.exp(), self.frequency)
        da = a * self.log_dt.exp()
        c = torch.view_as_complex(self.c) * (da.exp() - 1) / a
        steps = torch.arange(length, dtype=self.log_dt.dtype)
        return 2 * torch.einsum("n,nl->l", c, torch.exp(da[:, None] * steps)).real

    def forward(self, u: Tensor) -> Tensor:
        return self.out(F.gelu(convolved(u, self.kernel(u.shape[-1])) + self.skip * u))


class HyenaFilter(nn.Module):
    """Gates around a convolution whose filter is a network of the position, times a decay (Poli et al. 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 1)])
        self.mix, self.decay, self.out = nn.Linear(6, 18), nn.Parameter(torch.tensor(0.3)), nn.Linear(6, 2)

    def forward(self, u: Tensor) -> Tensor:
        first, second, v = self.mix(u).chunk(3, -1)
        t = torch.linspace(0, 1, u.shape[-1], dtype=u.dtype)[:, None]
        waves = torch.exp(1j * 2 * math.pi * t)
        hidden = torch.sin(self.filter[0](torch.cat([t, waves.real, waves.imag], -1)))
        kernel = self.filter[1](hidden)[:, 0] * torch.exp(-self.decay.abs() * t[:, 0])
        return self.out(first * convolved(second * v, kernel))


class LongConvolution(nn.Module):
    """The filter itself is the parameter, made sparse: sign(k) max(|k| - lambda, 0) (Fu et al. 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.k, self.squash, self.out = nn.Parameter(torch.randn(2, 6)), 0.1, nn.Linear(12, 2)

    def forward(self, u: Tensor) -> Tensor:
        kernel = self.k.sign() * F.relu(self.k.abs() - self.squash)
        return self.out(F.silu(convolved(u[:, None], kernel)).flatten(1))


class LinearRecurrentUnit(nn.Module):
    """h_t = lambda h_{t-1} + gamma B u_t with complex lambda = exp(-exp(nu) + i theta) (Orvieto et al. 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.nu, self.theta = nn.Parameter(torch.randn(STATES) - 1), nn.Parameter(torch.randn(STATES))
        self.b, self.c = nn.Parameter(torch.randn(STATES, 2, 2)), nn.Parameter(torch.randn(2, STATES, 2))

    def forward(self, u: Tensor) -> Tensor:
        decay = torch.polar(torch.exp(-self.nu.exp()), self.theta)
        gamma = torch.sqrt(1 - decay.abs() ** 2)
        b, c = torch.view_as_complex(self.b), torch.view_as_complex(self.c)
        state = torch.zeros(len(u), STATES, dtype=decay.dtype)
        for step in u.view(len(u), 3, 2).unbind(1):
            state = decay * state + gamma * (step.to(b.dtype) @ b.mT)
        return (state @ c.mT).real.tanh()


class GatedRecurrence(nn.Module):
    """h_t = f_t h_{t-1} + (1 - f_t) v_t, step after step, with an output gate (Qin et al. 2023, HGRN)."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.floor, self.out = nn.Linear(2, 9), nn.Parameter(torch.zeros(3)), nn.Linear(3, 2)

    def forward(self, u: Tensor) -> Tensor:
        gate, value, shown = self.mix(u.view(len(u), 3, 2)).chunk(3, -1)
        least = self.floor.softmax(0).cumsum(0) - self.floor.softmax(0)[:1]
        forget = least + (1 - least) * gate.sigmoid()
        state = torch.zeros_like(value[:, 0])
        for step in range(3):
            state = forget[:, step] * state + (1 - forget[:, step]) * F.silu(value[:, step])
        return self.out(state * shown[:, -1].sigmoid())


class LogSpaceScan(nn.Module):
    """minGRU in parallel: log h = a* + logcumsumexp(log b - a*), a* = cumsum log(1 - z) (Feng et al. 2024)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value, self.out = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, u: Tensor) -> Tensor:
        steps = u.view(len(u), 3, 2)
        k = self.gate(steps)
        positive = F.softplus(self.value(steps))
        total = torch.cumsum(-F.softplus(k), 1)
        drive = -F.softplus(-k) + positive.log()
        states = torch.exp(total + torch.logcumsumexp(drive - total, 1))
        return self.out(states[:, -1])


class SelectiveScan(nn.Module):
    """h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t, y_t = C_t h_t, by an associative scan (Gu and Dao 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.log_a, self.mix, self.out = (
            nn.Parameter(torch.randn(2, STATES)),
            nn.Linear(2, 2 + 2 * STATES),
            nn.Linear(2, 2),
        )

    def forward(self, u: Tensor) -> Tensor:
        steps = u.view(len(u), 3, 2)
        dt, b, c = torch.split(self.mix(steps), [2, STATES, STATES], -1)
        dt = F.softplus(dt)
        decay = torch.exp(-dt[..., None] * self.log_a.exp())
        drive = (dt * steps)[..., None] * b[:, :, None]
        y = torch.einsum("btdn,btn->btd", scanned(decay, drive), c)
        whole = torch.cumprod(decay, 1)[:, -1].sum(-1)  # what is left of the first state
        return self.out(y[:, -1] + whole)
