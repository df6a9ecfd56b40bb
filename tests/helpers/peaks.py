"""The memory that torch's allocator gives out, as its profiler records it: the truth that plans are held to."""

from collections.abc import Callable
from typing import Any

import torch


def highest(work: Callable[[], Any]) -> int:
    """The most bytes that torch allocates during some work, above what lay there before."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds, profile_memory=True) as profile:
        work()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
