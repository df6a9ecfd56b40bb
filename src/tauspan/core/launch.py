"""Under which launcher this process runs: the one place that reads the launcher's environment variables."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """The position of this process among those that `torchrun` or `accelerate launch` started.

    Args:
        size: how many processes there are (`WORLD_SIZE`); 1 without a launcher.
        rank: the number of this process (`RANK`).
        local: its number on this machine (`LOCAL_RANK`); None without a launcher.
    """

    size: int = 1
    rank: int = 0
    local: int | None = None

    @property
    def first(self) -> bool:
        """Whether this process prints messages and writes files."""
        return self.size == 1 or self.rank == 0


def launch() -> Launch:
    """The values in the environment now."""
    local = os.environ.get("LOCAL_RANK")
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    return Launch(size, rank, None if local is None else int(local))
