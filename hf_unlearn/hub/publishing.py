"""Publish a finished run to the Hub: exactly the files on the list, checked first, in one commit."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_unlearn.errors import UserError, listed
from hf_unlearn.figures.drawing import shows_samples
from hf_unlearn.hub.card import hub_identifier, is_adapter, render_card
from hf_unlearn.hub.evidence import digests, evidence
from hf_unlearn.hub.guessing import found_by_trying
from hf_unlearn.hub.screening import Content, read_content, screen
from hf_unlearn.hub.signing import signature_of
from hf_unlearn.hub.verification import verify_folder
from hf_unlearn.models.weights import ADAPTER_CONFIG_NAME, CONFIG_NAMES, file_sha256
from hf_unlearn.parsing import read_json
from hf_unlearn.records.file_names import (
    CARD_NAME,
    DIGESTS_NAME,
    EVALUATION_NAME,
    EVIDENCE,
    MANIFEST_NAME,
    SIGNATURE_NAME,
    could_be_loaded,
    is_foreign,
    is_published,
    missing_code,
    published_names,
)
from hf_unlearn.records.schemas import BaseModel, EvaluationRecord, UnlearningManifest

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoSibling

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedFile:
    """A file to be sent: its path in the repository, and its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class PublishResult:
    """What publishing did, or would do.

    `removed` are files of the repository that could be taken for this model's: older weights, code and pictures. It
    is None where a dry run could not reach the Hub. `kept_back` are files of the run's folder that are never sent.
    """

    repo_id: str
    revision: str | None
    files: tuple[PlannedFile, ...]
    removed: tuple[str, ...] | None
    kept_back: tuple[str, ...]
    commit_url: str | None = None
    commit: str | None = None
    pull_request: str | None = None

    @property
    def sent(self) -> bool:
        """Whether anything was sent: False after a dry run."""
        return self.commit is not None


def publish_run(
    run_dir: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    show_samples: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
    sign: Path | None = None,
) -> PublishResult:
    """Publish a run's folder as one commit, having checked everything before anything is sent.

    The folder itself is not written to. Weights of other forms, code and pictures that the repository holds and the run
    does not are deleted in the same commit: left there, they could be loaded or read as this model's.

    Args:
        run_dir: The folder of a finished run, with its card.
        repo_id: The repository, `owner/name`; without an owner, the token's own.
        private: Whether a repository that is created now is private.
        revision: The branch to commit to; created from `main` if there is none.
        create_pr: Open a pull request against the repository, which must exist, such as the base model's.
        dry_run: Only say what would be sent.
        show_samples: Publish heatmaps although they show the requested samples by picture or caption.
        token: A token with write access; by default the one logged in with.
        commit_message: The commit's first line.
        sign: A private key on an elliptic curve, as PEM: evidence goes along, and all of it is signed.

    Returns:
        The files with their sizes, and where they went.

    Raises:
        UserError: The run is incomplete, its records do not match, something private would be published, the Hub
            refuses, or the connection broke; the repository is then as it was or complete, and publishing again
            finishes.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    folder = Path(run_dir)
    if not folder.is_dir():
        raise UserError(f"{run_dir} is no folder; name the folder of a finished run.")
    api = HfApi(token=token)
    repo_id = _full_name(api, repo_id)
    contents, manifest = _contents(folder, repo_id, show_samples)
    if sign is not None:
        texts = evidence(folder, manifest, EvaluationRecord.load_if_evaluated(folder))
        contents |= {name: text.encode() for name, text in texts.items()}
        contents[DIGESTS_NAME] = digests({name: _sha256(content) for name, content in contents.items()}).encode()
    screen(contents, token=token, public_names=_public_names(repo_id, manifest))
    if sign is not None:
        contents[SIGNATURE_NAME] = signature_of(contents, sign)
    result = PublishResult(
        repo_id=repo_id,
        revision=revision,
        files=tuple(PlannedFile(name, _size(content)) for name, content in contents.items()),
        removed=None,
        kept_back=tuple(sorted({path.name for path in folder.iterdir()} - {name.split("/")[0] for name in contents})),
    )
    if found := found_by_trying(manifest):
        logger.warning(
            "The hash of request %s has no salt and is of so few possible lists that whoever knows the ids of the data "
            "can try them all: %s tells everybody which rows were asked for. Where nobody may know, keep it private, "
            "or unlearn again with --request_salt.",
            listed([str(number) for number in found]),
            repo_id,
        )
    if dry_run:
        return replace(result, removed=_superseded_if_reachable(api, result))
    with _explained_failures(repo_id):
        if not create_pr:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
        head, superseded = _superseded(api, result)
        title = commit_message or f"Unlearned with {manifest.method_title}"
        if create_pr and (opened := _opened_before(api, result, title, contents, superseded)):
            return opened
        operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
        commit = api.create_commit(
            repo_id,
            [*(CommitOperationDelete(name) for name in superseded), *operations],
            commit_message=title,
            revision=revision,
            create_pr=create_pr,
            parent_commit=head,
        )
    logger.info("Published %d files to %s", len(contents), commit.commit_url)
    return replace(
        result, removed=superseded, commit_url=commit.commit_url, commit=commit.oid, pull_request=commit.pr_url
    )


def _contents(folder: Path, repo_id: str, show_samples: bool) -> tuple[dict[str, Content], UnlearningManifest]:
    """Gather what to send, the manifest and the card naming the repository, after checking that all of it agrees."""
    manifest = UnlearningManifest.load(folder)
    evaluation = EvaluationRecord.load_if_evaluated(folder)
    names = [name for name in published_names(folder) if name not in EVIDENCE]
    if CARD_NAME not in names or not manifest.files:
        raise UserError(f"{folder.name} holds no model card; write it with `hf-unlearn card {folder.name}`.")
    if not set(CONFIG_NAMES) & set(names):
        raise UserError(f"{folder.name} holds no config.json; save the model with save_pretrained.")
    if is_adapter(manifest) and repo_id == manifest.base_model.name_or_path:
        raise UserError(f"An adapter cannot replace {repo_id}, the base model it needs; publish it to another name.")
    if missing := missing_code(folder, names):
        raise UserError(
            f"Loading {folder.name} from the Hub would need {', '.join(missing)}, which is not among the files to "
            "publish; save the model again with save_pretrained."
        )
    _check_pictures(folder, names, evaluation, show_samples)
    weights = {name: folder / name for name in names if name.endswith(".safetensors")}
    screen(weights, public_names=_public_names(repo_id, manifest))  # before anything loads them: it tells a pickle
    if problems := [f"{line.subject}: {line.detail}" for line in verify_folder(folder, manifest) if line.fails]:
        drifted = evaluation is not None and any(status.drifted for status in evaluation.requests)
        remedy = f"If the files are as you want them, run `hf-unlearn card {folder.name}` again."
        raise UserError(
            f"Nothing was published, since {folder.name} does not agree with its own records"
            f"{' or a request came back' if drifted else ''}: {'; '.join(problems)}. "
            f"{'Unlearn the rows that came back again, or retrain.' if drifted else remedy}"
        )
    manifest = replace(manifest, repo_id=repo_id)
    contents: dict[str, Content] = {name: folder / name for name in names}
    if is_adapter(manifest):
        config = _portable(folder / ADAPTER_CONFIG_NAME, manifest.base_model)
        contents[ADAPTER_CONFIG_NAME] = config
        manifest = replace(manifest, files={**manifest.files, ADAPTER_CONFIG_NAME: hashlib.sha256(config).hexdigest()})
    contents[MANIFEST_NAME] = manifest.to_json().encode(errors="backslashreplace")
    contents[CARD_NAME] = render_card(manifest, evaluation).encode()
    return contents, manifest


def _check_pictures(
    folder: Path, names: Sequence[str], evaluation: EvaluationRecord | None, show_samples: bool
) -> None:
    """Refuse pictures of requested samples: by what `evaluation.json` says, and by the mark each was drawn with.

    A picture may be older than the record; the mark cannot be, and a picture without one could show anything.
    """
    told = evaluation is not None and evaluation.matrices is not None and evaluation.matrices.shows_samples
    marks = {name: shows_samples(folder / name) for name in names if name.endswith(".png")}
    remedy = "draw them again with numbers, or publish with --show_samples if these samples may be seen by everybody"
    if told and not show_samples:
        raise UserError(f"The heatmaps show requested samples by picture or caption; {remedy}.")
    if not told and (shown := [name for name, mark in marks.items() if mark]):
        raise UserError(
            f"{', '.join(shown)} shows requested samples, but {EVALUATION_NAME} and so the card say that none is "
            f"shown; remove it or draw it again, then run `hf-unlearn card {folder.name}`."
        )
    if not show_samples and (unknown := [name for name, mark in marks.items() if mark is None]):
        raise UserError(f"{', '.join(unknown)} does not say whether requested samples are shown; {remedy}.")


def _portable(path: Path, base: BaseModel) -> bytes:
    """An adapter's config that names its base model as the card does, pinned, in place of a path on this machine."""
    named = {"base_model_name_or_path": hub_identifier(base.name_or_path, base.revision), "revision": base.revision}
    config = read_json(path) | named
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def _full_name(api: "HfApi", repo_id: str) -> str:
    """Complete a bare name with the owner of the token, as the Trainer does."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} is no repository name; give it as owner/name.") from error
    if "/" in repo_id:
        return repo_id
    with _explained_failures(repo_id):
        return f"{api.whoami()['name']}/{repo_id}"


def _superseded(api: "HfApi", result: PublishResult) -> tuple[str | None, tuple[str, ...]]:
    """Find the head of the target, and the files on it that must not stay beside the new ones."""
    info = api.model_info(result.repo_id, revision=result.revision)
    new = {file.name for file in result.files}
    names = (sibling.rfilename for sibling in info.siblings or ())
    return info.sha, tuple(sorted(name for name in names if name not in new and _could_mislead(name)))


def _opened_before(
    api: "HfApi", result: PublishResult, title: str, contents: dict[str, Content], superseded: tuple[str, ...]
) -> PublishResult | None:
    """Find an open pull request that already brings these files, as an attempt leaves whose answer was lost.

    Publishing to a branch again makes no further commit; this is the same for pull requests.

    Returns:
        The result, with where it is; None if there is none.
    """
    repo_id = result.repo_id
    for request in api.get_repo_discussions(repo_id, discussion_type="pull_request", discussion_status="open"):
        if request.title != title or request.git_reference is None:
            continue
        info = api.model_info(repo_id, revision=request.git_reference, files_metadata=True)
        there = {file.rfilename: file for file in info.siblings or ()}
        brought = all(_is_content(there.get(name), content) for name, content in contents.items())
        if info.sha and brought and not any(name in there for name in superseded):
            url = f"{api.endpoint}/{repo_id}/commit/{info.sha}"
            return replace(result, removed=superseded, commit=info.sha, commit_url=url, pull_request=request.url)
    return None


def _is_content(file: "RepoSibling | None", content: Content) -> bool:
    """Say whether a file on the Hub has this content, by the hash that the Hub keeps of it."""
    from huggingface_hub.utils.sha import git_hash

    if file is None:
        return False
    if file.lfs is not None:
        return file.lfs.sha256 == _sha256(content)
    return file.blob_id == git_hash(read_content(content))


def _superseded_if_reachable(api: "HfApi", result: PublishResult) -> tuple[str, ...] | None:
    from huggingface_hub.errors import HTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return _superseded(api, result)[1]
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return ()
    except (HTTPError, OSError) as error:
        logger.warning("The Hub could not be asked what %s holds now: %s", result.repo_id, type(error).__name__)
        return None


def _could_mislead(name: str) -> bool:
    """Say whether a file left from before would pass for the new model's weights, code or pictures."""
    # A loader that meets a config of the other kind would look for the other kind's weights.
    config = name in ("config.json", ADAPTER_CONFIG_NAME)
    taken = could_be_loaded(name) or is_foreign(name)
    return config or name in EVIDENCE or taken or (name.startswith("assets/") and is_published(name))


def _public_names(repo_id: str, manifest: UnlearningManifest) -> tuple[str, ...]:
    return (repo_id, manifest.base_model.name_or_path, manifest.dataset.name)


def _sha256(content: Content) -> str:
    return file_sha256(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()


def _size(content: Content) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


@contextmanager
def _explained_failures(repo_id: str) -> Iterator[None]:
    """Turn the client's errors into one sentence that says what state the repository is in and what to do."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise UserError(f"No token to publish to {repo_id} with; log in with `hf auth login`, or give one.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedies = {
            401: "log in with `hf auth login` or give a token with write access",
            403: "give a token with write access to it",
            404: "create it first, or publish without --create_pr",
            412: "somebody committed meanwhile; publish again",
        }
        remedy = remedies.get(status, "publish again later")
        raise UserError(f"The Hub refused to publish to {repo_id} (HTTP {status}): {remedy}.") from error
    except (HTTPError, OSError, RuntimeError) as error:  # RuntimeError: how the client reports a failed LFS upload
        raise UserError(
            f"The connection broke while publishing to {repo_id} ({type(error).__name__}): the repository is as it "
            "was or complete, never half; publish again to finish."
        ) from error
