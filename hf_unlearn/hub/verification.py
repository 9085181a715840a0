"""Check a published model against its own records: what holds, what does not, and what cannot be checked from here.

Nothing that the publisher wrote is believed: a statement holds where it was recomputed here, and what only the
publisher can have seen is said to be so.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hf_unlearn.errors import UserError
from hf_unlearn.files import refuse_revision
from hf_unlearn.hub.base_check import verify_base
from hf_unlearn.hub.card import render_card
from hf_unlearn.hub.card_check import verify_card
from hf_unlearn.hub.download import fetch
from hf_unlearn.hub.evidence import verify_evidence
from hf_unlearn.hub.figures_check import (
    Measurements,
    load_evaluation,
    verify_data,
    verify_figures,
    verify_heatmaps,
    verify_measurements,
    verify_requests,
)
from hf_unlearn.hub.manifest_check import OwnedSample, verify_manifest, verify_request_file, verify_samples
from hf_unlearn.hub.signing import verify_signature, verify_token
from hf_unlearn.hub.verification_report import Outcome, Statement, VerificationReport, failed, unchecked
from hf_unlearn.hub.weights_check import recorded_files, verify_files, verify_local, verify_repository
from hf_unlearn.models.weights import has_weights
from hf_unlearn.parsing import read_text
from hf_unlearn.records.file_names import AUDIT_NAME, CARD_NAME, EVALUATION_NAME, PUBLISHED
from hf_unlearn.records.schemas import EvaluationRecord, UnlearningManifest, refuse_earlier_name


def verify_repo(
    repo_or_dir: str | Path,
    *,
    revision: str | None = None,
    base: str | Path | None = None,
    request: str | Path | None = None,
    salt: str | None = None,
    samples: Sequence[OwnedSample] = (),
    token: str | None = None,
    public_key: Path | None = None,
    tsa_certificate: Path | None = None,
    measure: Callable[[Path], Measurements] | None = None,
) -> VerificationReport:
    """Check a model on the Hub, or in a folder, against its `unlearning.json`, `evaluation.json` and card.

    Args:
        repo_or_dir: A Hub id, or a folder.
        revision: A branch, tag or commit on the Hub.
        base: The base model's folder, to check its hash and what was changed.
        request: The file with the requested ids, to check the hash of an unsalted request.
        salt: The salt of the request, from the model's owner.
        samples: The data owner's own samples, to be looked for in the requests; needs `salt`.
        token: A token that can read a private repository.
        public_key: The publisher's public key, to check the signature.
        tsa_certificate: The certificate of the authority that stamped the digests.
        measure: Measures the model in a folder, and its base, on the data at hand.

    Returns:
        One line a statement.

    Raises:
        UserError: There is no such model, or a revision is given of a folder, or it has no `unlearning.json` to check
            against, or samples were given without a salt, or there is no such file.
    """
    if salt is not None and not salt.strip():
        raise UserError("--salt is empty; give the request's, from the model's owner, or leave it out")
    if samples and salt is None:
        raise UserError("Looking for your samples in the request needs its salt: give --salt, from the model's owner.")
    for path in (*((Path(request),) if request is not None else ()), *(sample.image for sample in samples)):
        if not path.exists():
            raise UserError(f"there is no file {path}; name the file of the request, or your picture")
    refuse_revision(repo_or_dir, revision, "--revision")
    local = Path(repo_or_dir).is_dir()
    folder = Path(repo_or_dir) if local else fetch(str(repo_or_dir), (*PUBLISHED, AUDIT_NAME), revision, token)
    refuse_earlier_name(folder)
    manifest = UnlearningManifest.load(folder)
    statements = list(verify_folder(folder, manifest))
    if local:
        statements += verify_local(folder, manifest)
    else:
        statements += verify_repository(str(repo_or_dir), manifest, folder.name, token)
    statements += verify_base(folder, manifest, base)
    if request is not None:
        statements.append(verify_request_file(manifest, request))
    statements += verify_samples(manifest, salt, samples)
    sound = not any(statement.fails for statement in statements)
    evaluation, measured = load_evaluation(folder), None
    if isinstance(evaluation, EvaluationRecord):
        measured = measure(folder) if measure is not None and sound else None
        if measured is not None and measured.request is not None:  # it says more of the request than its record alone
            statements = [
                line for line in statements if line.subject != "request" or line.outcome is not Outcome.UNCHECKED
            ]
        statements += verify_measurements(evaluation, manifest.dataset, measured)
        if measured is None and manifest.initial_model is not None:
            unseen = "its weights are compared where figures are measured again; give --initial_model with --dataset"
            statements.append(unchecked("initial model", unseen))
    if has_weights(folder) and sound:
        known = evaluation if isinstance(evaluation, EvaluationRecord) else None
        statements += verify_evidence(folder, manifest, known)
    statements.append(verify_signature(folder, public_key))
    if (stamped := verify_token(folder, tsa_certificate)) is not None:
        statements.append(stamped)
    statements.append(verify_data(manifest.dataset, measured))
    statements.append(unchecked("training", "weights do not show which data they were trained on"))
    return VerificationReport(str(repo_or_dir), tuple(statements))


def check_card(folder: str | Path) -> tuple[Statement, ...]:
    """Check that a card, regenerated from its records, is the same, and that the files beside it are the recorded ones.

    Args:
        folder: A finished run's, or one that keeps `README.md`, `unlearning.json`, `evaluation.json` and `assets/*.png`
            without the weights, as in `model_cards/`.

    Returns:
        What does not hold; empty for a card that nobody edited by hand.

    Raises:
        UserError: A record is missing or not valid.
    """
    folder = Path(folder)
    manifest, evaluation = UnlearningManifest.load(folder), EvaluationRecord.load(folder)
    kept = {name: sha for name, sha in manifest.files.items() if name == EVALUATION_NAME or name.startswith("assets/")}
    statements = [
        *(verify_files(folder, manifest) if has_weights(folder) else recorded_files(folder, kept)),
        *verify_figures(evaluation, manifest),
        *verify_heatmaps(folder, manifest, evaluation),
        *verify_card(folder, manifest, evaluation),
    ]
    failures = [statement for statement in statements if statement.fails]
    if not failures and read_text(folder / CARD_NAME) != render_card(manifest, evaluation):
        failures.append(failed("card", "this version would write it otherwise; write it again"))
    return tuple(failures)


def verify_folder(folder: Path, manifest: UnlearningManifest) -> Iterator[Statement]:
    """Check the files of one folder against each other."""
    yield from verify_files(folder, manifest)
    yield from verify_manifest(manifest)
    evaluation = load_evaluation(folder)
    if isinstance(evaluation, Statement):
        yield evaluation
        return
    if evaluation is None:
        yield unchecked(EVALUATION_NAME, "there is none: the model was not evaluated, or it was removed")
    else:
        yield from verify_figures(evaluation, manifest)
        yield from verify_requests(evaluation, manifest)
    yield from verify_heatmaps(folder, manifest, evaluation)
    yield from verify_card(folder, manifest, evaluation)
