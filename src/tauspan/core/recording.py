"""`recording`: autograd records inside the block, whatever the caller switched off."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tauspan.core.errors import UsageError


@contextmanager
def recording() -> Iterator[None]:
    """Autograd records inside the block, also where the caller is under `torch.no_grad`.

    Raises:
        UsageError: under `torch.inference_mode`, where it cannot.
    """
    if torch.is_inference_mode_enabled():
        raise UsageError(
            "there are no derivatives under torch.inference_mode(): leave it, or take torch.no_grad() in its place."
        )
    with torch.enable_grad():
        yield
