"""Fetch files of a repository, with one sentence where that cannot be done."""

from collections.abc import Sequence
from pathlib import Path

from hf_unlearn.errors import UserError, no_such_model


def fetch(repo_id: str, patterns: Sequence[str], revision: str | None = None, token: str | None = None) -> Path:
    """Download the files of a repository that match, or find them in the cache.

    Args:
        repo_id: A Hub id.
        patterns: Which files, as in `fnmatch`.
        revision: A branch, tag or commit.
        token: A token that can read a private repository.

    Returns:
        The snapshot's folder, named after its commit.

    Raises:
        UserError: It is no repository name, there is no such repository or revision, or the Hub cannot be reached.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(patterns), token=token))
    except HFValidationError as error:
        raise no_such_model(repo_id) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{repo_id} has no revision {revision!r}; name a branch, tag or commit of it.") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{repo_id} is neither a folder here nor a repository that you may read; check the name, or give a token."
        ) from error
    except (HTTPError, OSError) as error:
        go = "unset HF_HUB_OFFLINE" if constants.is_offline_mode() else "try again later"
        raise UserError(
            f"{repo_id} is no folder here and not in the cache, and the Hub cannot be reached "
            f"({type(error).__name__}); name a folder that is there, or {go}."
        ) from error
