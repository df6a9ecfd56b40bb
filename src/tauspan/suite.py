"""The seven text tasks that ship with the package; cards, licences and checksums lie beside the rows."""

from collections.abc import Sequence
from pathlib import Path

from tauspan.errors import DataError, nearest
from tauspan.tasks import Task

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


def suite(names: Sequence[str] | None = None) -> list[Task]:
    """The shipped tasks by name, checked against their checksums; all seven when no names are given.

    Example:
        >>> suite(["tweet_sentiment"])
        [Task('tweet_sentiment', 2 classes, train 1478, validation 211, test 422)]
    """
    return [find_task(name) for name in (NAMES if names is None else names)]


def find_task(name: str) -> Task:
    """A shipped task by name, or a task directory by path.

    Raises:
        DataError: neither; the message names the nearest shipped task.
    """
    if name in NAMES:
        return Task.from_directory(DIRECTORY / name)
    if (Path(name) / "card.json").is_file():
        return Task.from_directory(name)
    raise DataError(
        f"no task {name!r}: not a shipped one, and no directory with a card.json. {nearest(name, NAMES)}"
    )
