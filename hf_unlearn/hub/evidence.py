"""Evidence that public tools can read: a removal statement (in-toto), a bill of materials (CycloneDX), digests.

All of it is a pure function of the records and of the files beside them, so that anybody can check it against them.
"""

import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from hf_unlearn.files import write_atomically
from hf_unlearn.hub.card import card_title, pipeline_tag
from hf_unlearn.hub.verification_report import Statement, judged, unchecked
from hf_unlearn.models.weights import file_sha256, weight_files
from hf_unlearn.records.file_names import (
    BOM_NAME,
    DIGESTS_NAME,
    ERASURE_NAME,
    EVALUATION_NAME,
    REMOVAL_NAME,
    SIGNATURE_NAME,
    TOKEN_NAME,
    published_names,
)
from hf_unlearn.records.metric_labels import metric_label
from hf_unlearn.records.schemas import EvaluationRecord, UnlearningManifest
from hf_unlearn.text import markdown_code, markdown_text, printable

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:hf-unlearn:removal:v1"
LIMITS = (
    "The figures were measured by the model's owner.",
    "No test of a model's outputs can establish that data left no trace.",
    "Near-copies of a removed sample that stay in the training data keep its trace alive.",
    "The hashes tie this statement to these weights; what they were trained on cannot be seen from them.",
)
# Not covered by the digests: themselves, and what is made of them afterwards.
_AFTERWARDS = (DIGESTS_NAME, SIGNATURE_NAME, TOKEN_NAME)


def removal_statement(manifest: UnlearningManifest, weights: Mapping[str, str]) -> dict[str, object]:
    """The removal as an in-toto Statement v1; `weights` are the SHA-256 of each weight file, by its path."""
    base, request = manifest.base_model, manifest.request
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": sha256}} for name, sha256 in sorted(weights.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "base": {"name": base.name_or_path, "revision": base.revision, "digest": {"sha256": base.sha256}},
            "request": {
                "kind": request.kind,
                "count": request.count,
                "digest": {"sha256": request.sha256},
                "salted": request.salted,
            },
            "earlierRequests": [{"digest": {"sha256": run.request.sha256}} for run in manifest.history],
            "method": {"id": manifest.method, "title": manifest.method_title},
            "library": {"name": "hf-unlearn", "version": manifest.library_version},
            "created": manifest.created,
            "evaluation": {"name": EVALUATION_NAME, "digest": {"sha256": manifest.files.get(EVALUATION_NAME)}},
            "recomputed": "nothing; hf-unlearn verify recomputes what can be",
            "limits": list(LIMITS),
        },
    }


def bill_of_materials(
    manifest: UnlearningManifest, evaluation: EvaluationRecord | None, weights: Mapping[str, str]
) -> dict[str, object]:
    """The model as a CycloneDX 1.7 ML-BOM: its hashes, the model it descends from, and its figures.

    `weights` are the SHA-256 of each weight file, by its path.
    """
    base = manifest.base_model
    ancestor: dict[str, object] = {"type": "machine-learning-model", "name": base.name_or_path}
    if base.revision:
        ancestor["version"] = base.revision
    if base.sha256:
        ancestor["hashes"] = [_hash(base.sha256)]
    metrics = evaluation.metrics if evaluation is not None else {}
    task = pipeline_tag(manifest, evaluation)
    component: dict[str, object] = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": card_title(manifest),
        "version": manifest.weights_sha256,
        "components": [
            {"type": "file", "name": name, "hashes": [_hash(sha256)]} for name, sha256 in sorted(weights.items())
        ],
        "pedigree": {
            "ancestors": [ancestor],
            "notes": f"{manifest.request.count} training samples unlearned with {manifest.method_title}",
        },
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "self-supervised"},
                "task": task,
                "datasets": [{"type": "dataset", "name": manifest.dataset.name}],
            },
            "quantitativeAnalysis": {
                "performanceMetrics": [
                    {"type": metric_label(key).name, "value": f"{value:.6g}"}
                    for key, value in metrics.items()
                    if value is not None
                ]
            },
            "considerations": {"technicalLimitations": list(LIMITS)},
        },
    }
    if base.license:
        component["licenses"] = [{"license": {"name": base.license}}]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, manifest.weights_sha256)}",
        "version": 1,
        "metadata": {
            "timestamp": manifest.created,
            "tools": {
                "components": [{"type": "application", "name": "hf-unlearn", "version": manifest.library_version}]
            },
            "component": component,
        },
    }


def erasure_record(manifest: UnlearningManifest, evaluation: EvaluationRecord | None) -> str:
    """The record of an erasure, for whoever has to answer the request; what no run can know is left to fill in.

    It stays with its writer: filled in, it names people, so it is never published.
    """
    request, blank = manifest.request, "________"
    gap = "not measured" if evaluation is None or evaluation.avg_gap is None else f"{evaluation.avg_gap:.2f}"
    salted = "; the salt is needed to look a sample up" if request.salted else ""
    rows = [
        ("Received", f"on {blank}, from {blank}, by way of {blank}"),
        ("Decided", f"on {blank}, by {blank}, because {blank}"),
        ("What", f"{request.count:,} samples ({markdown_text(request.kind)}), {markdown_code(request.sha256)}{salted}"),
        ("Done", f"{markdown_text(manifest.created)}, with {markdown_text(manifest.method_title)}"),
        (
            "Old model",
            f"{markdown_code(manifest.base_model.name_or_path)}, {markdown_code(manifest.base_model.sha256)}",
        ),
        ("New model", f"{markdown_code(card_title(manifest))}, weights {markdown_code(manifest.weights_sha256)}"),
        ("Earlier requests on this model", f"{len(manifest.history)}"),
        ("Measured how", f"by its owner, in `{EVALUATION_NAME}`; average gap to Retrain: {gap}"),
        ("Removed from the stored data", f"on {blank}, from {blank}"),
        ("Recipients told", f"{blank} (models that descend from the old one: `hf-unlearn descendants`)"),
        ("Requester answered", f"on {blank}"),
        ("Next check", f"on {blank}"),
    ]
    remains = "\n".join(f"- {limit}" for limit in LIMITS)
    notes = "\n".join(f"- {markdown_text(note)}" for note in manifest.notes)
    table = "\n".join(f"| {name} | {words} |" for name, words in rows)
    return (
        f"# Record of an erasure\n\n| Step | |\n|---|---|\n{table}\n\n## What remains\n\n{remains}\n{notes}".rstrip()
        + "\n"
    )


def evidence(folder: Path, manifest: UnlearningManifest, evaluation: EvaluationRecord | None) -> dict[str, str]:
    """The statement and the bill of materials of a folder, by name.

    Raises:
        UserError: The folder holds no weights.
    """
    weights = {file.relative_to(folder).as_posix(): file_sha256(file) for file in weight_files(folder)}
    return {
        REMOVAL_NAME: _json(removal_statement(manifest, weights)),
        BOM_NAME: _json(bill_of_materials(manifest, evaluation, weights)),
    }


def digests(sha256: Mapping[str, str]) -> str:
    """A file that `sha256sum --check` reads: one line `<hash>  <name>` a file, and none for what comes afterwards."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sha256.items()) if name not in _AFTERWARDS)


def write_evidence(folder: str | Path) -> list[Path]:
    """Write the statement, the bill of materials, the digests and the erasure record into a finished run's folder.

    Args:
        folder: A run's folder, with its card.

    Returns:
        The paths written.

    Raises:
        UserError: A record or the weights are missing.
    """
    folder = Path(folder)
    manifest, evaluation = UnlearningManifest.load(folder), EvaluationRecord.load_if_evaluated(folder)
    texts = {**evidence(folder, manifest, evaluation), ERASURE_NAME: erasure_record(manifest, evaluation)}
    written = [write_atomically(folder / name, text) for name, text in texts.items()]
    text = digests({name: file_sha256(folder / name) for name in published_names(folder)})
    return [*written, write_atomically(folder / DIGESTS_NAME, text)]


def verify_evidence(
    folder: Path, manifest: UnlearningManifest, evaluation: EvaluationRecord | None
) -> Iterator[Statement]:
    """Check the evidence that lies in a folder against its records and files."""
    names = [name for name in (REMOVAL_NAME, BOM_NAME) if (folder / name).is_file()]
    due = evidence(folder, manifest, evaluation) if names else {}
    for name in names:
        same = (folder / name).read_bytes() == due[name].encode(errors="backslashreplace")
        yield judged(name, same, "as the records give it", "is not what the records give")
    if (folder / DIGESTS_NAME).is_file():
        expected = digests({name: file_sha256(folder / name) for name in published_names(folder)})
        same = (folder / DIGESTS_NAME).read_bytes() == expected.encode()
        yield judged(DIGESTS_NAME, same, "of every file beside it", "is not of the files beside it")
    if not names:
        yield unchecked("evidence", "no removal statement or bill of materials comes with the model")


def _hash(sha256: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": sha256}


def _json(content: object) -> str:
    return json.dumps(_printable(content), indent=2, ensure_ascii=False) + "\n"


def _printable(value: object) -> object:
    if isinstance(value, dict):
        return {key: _printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    return printable(value) if isinstance(value, str) else value
