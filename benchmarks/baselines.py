"""What tauspan is measured against: the paper's linearised model and ordinary fine-tuning."""

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from tauspan.models import Batch


class PaperModel(nn.Module):
    """f(x; theta0) + J(x) (theta - theta0), the way arXiv 2305.12827 computes it.

    Its parameters are theta; the difference is formed in each forward pass. `torch.func.jvp` runs over a functional
    call, and autograd differentiates through it. theta0 does not require grad, which is the cheap way to write this:
    with it the step would cost 1.9 times as much.

    Args:
        module: the model at theta0; built with eager attention, because forward mode has no rule for the fused one.
        names: which parameters train; None takes all.
    """

    def __init__(self, module: nn.Module, names: list[str] | None = None) -> None:
        super().__init__()
        self.module = module.requires_grad_(False).eval()
        known = dict(module.named_parameters())
        self.names = list(known) if names is None else names
        self.theta0 = [known[name].detach() for name in self.names]
        self.theta = nn.ParameterList(nn.Parameter(start.clone()) for start in self.theta0)

    def forward(self, batch: Batch) -> Tensor:
        """The tangent model's outputs."""
        delta = tuple(theta - start for theta, start in zip(self.theta, self.theta0, strict=True))

        def function(*point: Tensor) -> Tensor:
            output: Tensor = functional_call(self.module, dict(zip(self.names, point, strict=True)), (batch,))
            return output

        with sdpa_kernel(
            SDPBackend.MATH
        ):  # only for a module built with "sdpa", as float64 checks of CLIP need
            value, tangent = jvp(function, tuple(self.theta0), delta)
        outputs: Tensor = value + tangent
        return outputs

    def optimiser(self, lr: float = 1e-3) -> torch.optim.Optimizer:
        """AdamW with torch's defaults."""
        return torch.optim.AdamW(self.theta, lr=lr)


def ordinary(module: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Ordinary fine-tuning of a module built with fused attention: all parameters train, by fused AdamW."""
    module.requires_grad_(True).eval()
    return module, torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
