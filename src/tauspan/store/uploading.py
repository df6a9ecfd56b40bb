"""Uploading: files that are on the disk, to a repository of the Hugging Face hub, all in one commit."""

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tauspan.core.errors import MissingExtraError, StoreError, UsageError
from tauspan.store.headers import refuse_pickle

CARD = "README.md"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?")


def is_hub_id(name: str) -> bool:
    """Whether a model's name can be an id of the hub, such as `org/name@revision`, and is no path of this machine."""
    return _HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def files_in(folder: Path) -> dict[str, Path]:
    """The files of a folder by their names in a repository; hidden ones stay behind.

    Raises:
        UsageError: a link, which may lead anywhere.
        PickleRefusedError: a pickle.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            continue
        if path.is_symlink():
            raise UsageError(
                f"{path} is a link, and what it leads to would be uploaded: put the file itself there, or take it out."
            )
        if path.is_file():
            refuse_pickle(path)
            found[name.as_posix()] = path
    return found


def upload(
    files: Mapping[str, Path | bytes],
    repo: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    message: str | None = None,
) -> str:
    """Write files into a model repository of the hub, which is made if it is not there; other files there stay.

    Args:
        files: by the name in the repository, a path or the content.
        repo: `name` or `owner/name`.
        private: of a new repository; None is the owner's default.
        token: None takes what `hf auth login` or the variable HF_TOKEN gives.
        revision: the branch; None is the main one.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        MissingExtraError: `huggingface_hub` is not installed.
        StoreError: the hub refuses or does not answer. No message holds the token.
    """
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise MissingExtraError(
            f"uploading to {repo} needs huggingface_hub: pip install 'tauspan[transformers]'."
        ) from error
    try:
        api = hub.HfApi(token=token, library_name="tauspan")
        made = api.create_repo(repo, private=private, exist_ok=True)
        operations = [
            hub.CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in files.items()
        ]
        done = api.create_commit(
            made.repo_id, operations, commit_message=message or "Upload with tauspan", revision=revision
        )
        return str(done.commit_url)
    except Exception as error:  # of the network, of the hub and of what it says of names and cards
        causes = [error, *([] if error.__cause__ is None else [error.__cause__])]
        said = _without(", from ".join(f"{type(one).__name__}: {one}" for one in causes), token, hub)
    raise StoreError(  # outside the handler: the error that it would show may hold the token
        f"{repo} on the hub could not be written: {said} Log in with `hf auth login`, or give a token that may write "
        "there."
    )


def _without(text: str, token: str | None, hub: Any) -> str:
    """A message in one line, without the token that was used, in either form in which a header has it."""
    text = " ".join(text.split())
    for secret in {token, hub.get_token()} - {None, ""}:
        for form in (secret, secret.strip(), repr(secret)[1:-1]):
            text = text.replace(form, "***") if form else text
    return text if text.endswith(".") else f"{text}."
