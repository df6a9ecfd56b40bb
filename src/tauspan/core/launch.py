"""Under which launcher this process runs: the one place that reads the launcher's environment variables."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """This process's place among those that `torchrun` or `accelerate launch` started.

    Args:
        size: how many processes there are (`WORLD_SIZE`); 1 without a launcher.
        rank: which of them this is (`RANK`).
        local: which of those on this machine (`LOCAL_RANK`); None without a launcher.
    """

    size: int = 1
    rank: int = 0
    local: int | None = None

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes."""
        return self.size == 1 or self.rank == 0


def launch() -> Launch:
    """What the environment says now."""
    local = os.environ.get("LOCAL_RANK")
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    return Launch(size, rank, None if local is None else int(local))
