"""A task by name: the seven text tasks that ship with the package, the catalog's data sets, and directories."""

from collections.abc import Sequence
from pathlib import Path

from tauspan.core.arguments import checked
from tauspan.core.errors import DataError, nearest
from tauspan.tasks import Task
from tauspan.tasks.data import catalog, open_task

DIRECTORY = Path(__file__).parent / "suite_data"
NAMES = (
    "news_computing",
    "news_recreation",
    "news_science_society",
    "movie_sentiment",
    "tweet_sentiment",
    "email_spam",
    "debian_section",
)


@checked
def suite(names: Sequence[str] | None = None) -> list[Task]:
    """The shipped tasks by name, checked against their checksums; all seven when no names are given.

    Example:
        >>> suite(["tweet_sentiment"])
        [Task('tweet_sentiment', 2 classes, train 1478, validation 211, test 422)]
    """
    return [find_task(name) for name in (NAMES if names is None else names)]


@checked
def find_task(name: str, root: str | Path | None = None, *, seed: int = 0) -> Task:
    """A task by name.

    Args:
        name: the name of a shipped task (licences and checksums are beside the rows) or of a data set of
            `tauspan.tasks.data.catalog`, or the path of a directory with a `card.json`.
        root: where the data sets of the catalog are; None takes them from the hub.
        seed: of the catalog's validation splits.

    Raises:
        DataError: none of these; the message names the nearest shipped task or data set.
    """
    if name in NAMES:
        return Task.from_directory(DIRECTORY / name)
    if name in catalog():
        return open_task(name, root, seed=seed)
    if (Path(name) / "card.json").is_file():
        return Task.from_directory(name)
    beside = Path(name).parent
    here = [str(card.parent) for card in sorted(beside.glob("*/card.json"))]
    raise DataError(
        f"no task {name!r}: not a shipped one, no data set of the catalog, and no directory with a card.json. "
        f"{nearest(name, [*here, *NAMES, *catalog()])}"
    )
