"""Torch's rules of forward mode, loaded without the notices that torch gives of its own code while it loads them."""

import functools
import warnings

import torch


@functools.cache
def load_rules() -> None:
    """Load them once, before the first use would.

    Some are written in TorchScript, and from torch 2.13 on importing them prints that TorchScript is deprecated, which
    nobody who fine-tunes a model can do anything about.
    """
    zero = torch.zeros(())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.func.jvp(torch.neg, (zero,), (zero,))
