"""The memory that torch's own allocators give out: the truth that plans of memory are held to."""

from collections.abc import Callable

import torch


def allocated(work: Callable[[], object], device: str = "cpu") -> int:
    """The most bytes that torch allocates during some work, above what lay there before.

    On a GPU the allocator's own count. On a CPU what torch's profiler records of every allocation, kernels' own too;
    resident memory would count libraries and what was given back and not yet used again.
    """
    if device.startswith("cuda"):
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    kinds = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds, profile_memory=True) as profile:
        work()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
