"""The audit's report: `audit.json` with every field, recordings, PNGs, a letter, and one page `report.html`."""

import hashlib
import json
import math
from pathlib import Path

from hf_unlearn.audit.embedding_files import save_embeddings
from hf_unlearn.audit.finished_audit import Audit
from hf_unlearn.audit.letter import letter
from hf_unlearn.audit.report_page import render
from hf_unlearn.files import disk_full_as_user_error, write_atomically
from hf_unlearn.metrics.alignment_matrices import Matrix, alignment_gap_matrix

SCHEMA = 2
REPORT_FILE = "audit.json"  # written last: where it is, the audit is finished
PAGE_FILE, LETTER_FILE, SUMS_FILE = "report.html", "letter.txt", "SHA256SUMS"


def write_report(audit: Audit) -> Path:
    """Write a finished audit into its folder: PNGs, recordings, `letter.txt`, page, hashes and, last, `audit.json`.

    Returns:
        The path of `report.html`.
    """
    folder = audit.folder
    with disk_full_as_user_error(folder, "the report"):
        folder.mkdir(parents=True, exist_ok=True)
        page = folder / PAGE_FILE
        write_atomically(page, render(audit))
        write_atomically(folder / LETTER_FILE, letter(audit.results.values(), audit.measurement))
        drawn = {"seed": audit.measurement["seed"], "count": audit.measurement["view_count"]}
        drawn |= {"views": audit.measurement["views"], "original_first": audit.measurement.get("original_first", False)}
        for side, embeddings in audit.recordings.items():
            own = {**embeddings.source.get("drawn", {}), **(drawn if "drawn" not in embeddings.source else {})}
            save_embeddings(
                embeddings, list(audit.pictures.values()), folder / f"{side}.safetensors", own, audit.captions
            )
        record = json.dumps(to_json(audit), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        write_atomically(folder / SUMS_FILE, _sums(folder, record))
        write_atomically(folder / REPORT_FILE, record)
    return page


def report_digest(folder: Path) -> str:
    """One hash of the whole report, for a time-stamp or a signature: the SHA-256 of its `SHA256SUMS`."""
    return hashlib.sha256((folder / SUMS_FILE).read_bytes()).hexdigest()


def _sums(folder: Path, record: str) -> str:
    """A line a file, as `sha256sum -c` reads it; the record's own is that of the text to be written."""
    others = [path for kind in ("*.png", "*.safetensors") for path in sorted(folder.glob(kind)) if path.is_file()]
    names = [REPORT_FILE, PAGE_FILE, LETTER_FILE, *(path.name for path in others)]
    known = {REPORT_FILE: record.encode(errors="backslashreplace")}
    contents = {name: known[name] if name in known else (folder / name).read_bytes() for name in names}
    return "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items())


def to_json(audit: Audit) -> dict[str, object]:
    """Everything that a finished audit found, as strict JSON values.

    Returns:
        A dict with `schema`, `kind`, `command`, `measurement`, `notes`, captions, one result an owner, and the matrices
        (null where a cell has no value).
    """
    return {
        "schema": SCHEMA,
        "kind": "black-box",
        "family": audit.measurement["family"],
        "command": dict(audit.command),
        "measurement": dict(audit.measurement),
        "captions": {
            picture: list(texts) for picture, texts in zip(audit.pictures, audit.captions, strict=False) if texts
        },
        "notes": list(audit.notes),
        "results": [result.to_dict() for result in audit.results.values()],
        "matrices": [
            {
                "owner": owner,
                "labels": [picture.name for picture in matrices.pictures],
                "captions": list(matrices.captions) if matrices.captions else None,
                "omitted": matrices.omitted,
                "am_before": _cells(matrices.am_before),
                "am_after": _cells(matrices.am_after),
                "agm": _cells(alignment_gap_matrix(matrices.am_before, matrices.am_after)),
            }
            for owner, matrices in audit.matrices.items()
        ],
    }


def _cells(matrix: Matrix) -> list[list[float | None]]:
    """Six decimals: more than any encoder's noise, a third of the size."""
    return [[round(value, 6) if math.isfinite(value) else None for value in row] for row in matrix.tolist()]
