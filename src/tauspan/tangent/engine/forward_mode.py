"""Torch's rules of forward mode, loaded without the notices that torch gives of its own code while it loads them."""

import functools
import warnings

import torch


@functools.cache
def load_rules() -> None:
    """Load torch's rules of forward mode, before their first use would load them.

    Some are written in TorchScript, and from torch 2.13 on importing them prints that TorchScript is deprecated, a
    notice that users can do nothing about.
    """
    zero = torch.zeros(())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.func.jvp(torch.neg, (zero,), (zero,))
