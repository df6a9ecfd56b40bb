"""The recipes that come with the package, by name."""

from pathlib import Path

from tauspan.core.errors import StoreError, nearest

_FOLDER = Path(__file__).parent / "recipes"


def shipped() -> dict[str, Path]:
    """The file of each recipe that comes with the package, by the recipe's name.

    Example:
        >>> list(shipped())
        ['demo', 'made-to-add', 'text7', 'text7-merging']
    """
    return {file.stem: file for file in sorted(_FOLDER.glob("*.yaml"), key=lambda file: file.stem)}


def recipe_file(given: str) -> Path:
    """The file that is meant: one of the user's, which comes first, or the recipe of that name.

    Raises:
        StoreError: a name that no recipe has, or a path that leads nowhere and ends as a recipe of the package is
            named. Another path that leads nowhere is returned: reading it raises.

    Example:
        >>> recipe_file("text7").name
        'text7.yaml'
        >>> recipe_file("text8")
        Traceback (most recent call last):
        tauspan.core.errors.StoreError: there is no recipe text8, neither a file nor one that comes with the package. \
Did you mean 'text7'?
    """
    path, known = Path(given), shipped()
    if given in known and not path.is_file():
        return known[given]
    if not path.exists() and path.suffix and path.stem in known:
        raise StoreError(
            f"there is no recipe {given}; one of that name comes with the package: `tauspan run {path.stem}`."
        )
    if path.exists() or path.suffix or len(path.parts) > 1:
        return path
    raise StoreError(
        f"there is no recipe {given}, neither a file nor one that comes with the package. {nearest(given, known)}"
    )
