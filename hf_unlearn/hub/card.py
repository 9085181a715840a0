"""The model card: a pure function of `unlearning.json` and `evaluation.json`, so that anybody can check it."""

import re
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from hf_unlearn.errors import UserError
from hf_unlearn.files import refuse_to_write_to, refuse_unwritable, write_atomically
from hf_unlearn.hub.card_tables import (
    NONE,
    circumstances,
    comparison_table,
    facts,
    history_table,
    metrics_table,
    number,
    table,
    texts,
)
from hf_unlearn.hub.guessing import found_by_trying, has_few_lists
from hf_unlearn.models.weights import (
    ADAPTER_CONFIG_NAME,
    LOCAL_PREFIX,
    OPEN_CLIP_CONFIG_NAME,
    SENTENCE_CONFIG_NAME,
    file_sha256,
    has_weights,
)
from hf_unlearn.parsing import read_text
from hf_unlearn.records.codec import from_json
from hf_unlearn.records.file_names import (
    CARD_NAME,
    EVALUATION_NAME,
    EVIDENCE,
    MANIFEST_NAME,
    RESULTS_NAME,
    published_names,
)
from hf_unlearn.records.method_description import PAPER_CITATION
from hf_unlearn.records.metric_labels import first_request_note, metric_label, short_name
from hf_unlearn.records.schemas import COMMIT, EvaluationRecord, Results, UnlearningManifest
from hf_unlearn.text import markdown_code, markdown_line, markdown_text, printable, python_string, shell_word

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData
    from jinja2 import Template

_KEPT = (CARD_NAME, MANIFEST_NAME, EVALUATION_NAME)
TEMPLATE = Path(__file__).parent / "templates" / "card.md.j2"

LIBRARY_CITATION = """\
@software{hf_unlearn,
  title   = {hf\\_unlearn: machine unlearning for contrastive encoders},
  version = {%s},
  license = {Apache-2.0}
}"""

PIPELINE_TAGS = {"image-text": "zero-shot-image-classification", "views": "image-feature-extraction"}

CAPTIONS = {
    "alignment_matrices": "Alignment matrices of unlearn samples before unlearning (AM before) and after (AM after), "
    "and the gap between the two (AGM), whose diagonal is each sample's forgetting score",
    "am_before": "Alignment matrix of unlearn samples before unlearning",
    "am_after": "Alignment matrix of the same samples after unlearning",
    "agm": "Alignment gap matrix: before minus after. Its diagonal is each sample's forgetting score",
    "negative_alignment": "Alignment gap between different unlearn samples: mean and standard deviation",
}

_TEX_LINKS = re.compile(r"\\(href|url|includegraphics|html\w*)")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def write_card(run_dir: str | Path) -> Path:
    """Write `README.md` into the folder of a finished run, from the JSON files there.

    The comparison across methods in `../results.json`, where there is one, is copied into `evaluation.json` first, and
    the hashes of the files beside the weights into `unlearning.json`: the card then depends on these two alone. A
    folder without weights, such as one in `model_cards/`, keeps the hashes from when it had them.

    Args:
        run_dir: A run's folder, holding `unlearning.json`, and `evaluation.json` unless it was never evaluated.

    Returns:
        The path of the card.

    Raises:
        UserError: A JSON file is missing or not valid.
    """
    folder = Path(run_dir)
    manifest = UnlearningManifest.load(folder)
    evaluation = EvaluationRecord.load_if_evaluated(folder)
    results = folder.resolve().parent / RESULTS_NAME
    if evaluation is not None and results.is_file():
        rows = from_json(Results, read_text(results), RESULTS_NAME).rows
        evaluation = replace(evaluation, comparison=rows)
        evaluation.save(folder)
    if has_weights(folder):
        manifest = replace(manifest, files=hash_files(folder))
        manifest.save(folder)
    return write_atomically(folder / CARD_NAME, render_card(manifest, evaluation))


def refuse_copy(run_dir: str | Path, destination: str | Path) -> None:
    """Refuse a place where no copy of a run's card can go, before the card is written.

    Raises:
        UserError: It holds a model, is the run or is around it, or cannot be written to.
    """
    refuse_to_write_to(run_dir, "the run", destination, "--copy_to")
    if has_weights(destination):
        raise UserError(f"{destination} holds a model; copy the card to another folder.")
    refuse_unwritable(destination, "--copy_to")


def keep_card(run_dir: str | Path, destination: str | Path) -> Path:
    """Copy a run's card, its records and its pictures, without the weights, as `model_cards/` keeps them.

    Args:
        run_dir: The folder of a finished run, with its card.
        destination: The folder to create or to bring up to date.

    Returns:
        The destination.

    Raises:
        UserError: The run holds no card; and as `refuse_copy` does.
    """
    folder, destination = Path(run_dir), Path(destination)
    names = [name for name in published_names(folder) if name in _KEPT or name.startswith("assets/")]
    if CARD_NAME not in names:
        raise UserError(f"{folder.name} holds no model card; write it with `hf-unlearn card {folder.name}`.")
    refuse_copy(folder, destination)
    (destination / "assets").mkdir(parents=True, exist_ok=True)
    for picture in (destination / "assets").glob("*.png"):
        picture.unlink()
    for name in names:
        shutil.copyfile(folder / name, destination / name)
    return destination


def hash_files(folder: str | Path) -> dict[str, str]:
    """Hash the published files that nothing else vouches for: not the weights, the card, nor the manifest itself."""
    names = [name for name in published_names(folder) if name not in (CARD_NAME, MANIFEST_NAME, *EVIDENCE)]
    return {name: file_sha256(Path(folder) / name) for name in names if not name.endswith(".safetensors")}


def render_card(manifest: UnlearningManifest, evaluation: EvaluationRecord | None) -> str:
    """Render the model card.

    Args:
        manifest: The content of `unlearning.json`.
        evaluation: The content of `evaluation.json`; without it the card says that nothing was evaluated.

    Returns:
        Markdown with a metadata block, as the Hub reads it.
    """
    found, count = found_by_trying(manifest), len(manifest.history) + 1
    content = _template(TEMPLATE).render(
        card_data=card_metadata(manifest, evaluation).to_yaml(),
        manifest=manifest,
        evaluation=evaluation,
        number=count,
        found_by_trying=found,
        earlier_found=", ".join(str(number) for number in found if number < count),
        may_lack=manifest.retain_sha256 is not None
        and has_few_lists(manifest.request.count, sum(manifest.splits.values())),
        family=_family(manifest, evaluation),
        method=manifest.description,
        title=markdown_text(card_title(manifest)),
        base=manifest.base_model.name_or_path,
        repo=manifest.repo_id or "path/to/this/folder",
        is_adapter=is_adapter(manifest),
        library=_library(manifest),
        text=markdown_text,
        code=markdown_code,
        python=python_string,
        shell=shell_word,
        facts=table(("Item", "Value"), facts(manifest)),
        hyper_parameters=table(("Hyper-parameter", "Value"), texts(sorted(manifest.hyper_parameters.items()))),
        circumstances=table(("Circumstance", "Value"), circumstances(manifest)),
        history=history_table(manifest, evaluation),
        metrics=metrics_table(evaluation) if evaluation else "",
        first_request=first_request_note(evaluation.metrics) if evaluation and evaluation.original else "",
        comparison=comparison_table(evaluation) if evaluation else "",
        avg_gap=number(evaluation.avg_gap) if evaluation else NONE,
        gap_names="; ".join(markdown_text(short_name(key)) for key in evaluation.gap_keys) if evaluation else "",
        equations=[_equation(line) for line in manifest.description.equations],
        notes=[markdown_line(note) for note in manifest.notes],
        pictures=[(quote(printable(name)), _caption(name)) for name in _pictures(manifest)],
        library_citation=_fenced(LIBRARY_CITATION % manifest.library_version),
        citations=[_fenced(text) for text in dict.fromkeys((manifest.description.citation, PAPER_CITATION)) if text],
    )
    return re.sub(r"\n{3,}", "\n\n", content).rstrip() + "\n"


@cache
def _template(path: Path) -> "Template":
    """A template, compiled once; `ModelCard.from_template` compiles it for every card."""
    import jinja2

    return jinja2.Template(path.read_text(encoding="utf-8"))


def card_title(manifest: UnlearningManifest) -> str:
    """Name the model: its Hub id once published, else its base model and its method."""
    return manifest.repo_id or f"{manifest.base_model.name_or_path.split('/')[-1]}-{manifest.method.replace('_', '-')}"


def card_metadata(manifest: UnlearningManifest, evaluation: EvaluationRecord | None) -> "ModelCardData":
    """Build the metadata block (`huggingface_hub.ModelCardData`), every metric as an entry of its `model-index`."""
    from huggingface_hub import EvalResult, ModelCardData

    dataset = hub_identifier(manifest.dataset.name, manifest.dataset.revision)
    task = pipeline_tag(manifest, evaluation)
    figures = [
        EvalResult(
            task_type=task,
            dataset_type=dataset,
            dataset_name=printable(manifest.dataset.name),
            dataset_revision=_printable(manifest.dataset.revision),
            metric_type=printable(key),
            metric_name=printable(metric_label(key).name),
            metric_value=value,
        )
        for key, value in (evaluation.metrics if evaluation else {}).items()
        if value is not None
    ]
    return ModelCardData(
        base_model=hub_identifier(manifest.base_model.name_or_path, manifest.base_model.revision),
        base_model_relation="adapter" if is_adapter(manifest) else "finetune",
        library_name=_library(manifest),
        pipeline_tag=task,
        datasets=[dataset],
        license=_printable(manifest.base_model.license),
        license_name=_printable(manifest.base_model.license_name),
        license_link=_printable(manifest.base_model.license_link),
        tags=["unlearning", "machine-unlearning", printable(manifest.method), "hf-unlearn"],
        model_name=printable(card_title(manifest)),
        eval_results=figures or None,
    )


def pipeline_tag(manifest: UnlearningManifest, evaluation: EvaluationRecord | None) -> str:
    """What the Hub calls the task of such a model."""
    return PIPELINE_TAGS.get(_family(manifest, evaluation) or "", "feature-extraction")


def _family(manifest: UnlearningManifest, evaluation: EvaluationRecord | None) -> str | None:
    """Whether the model embeds pairs of pictures and texts, or views; None where an earlier version did not say."""
    return evaluation.family if evaluation else manifest.family


def _library(manifest: UnlearningManifest) -> str:
    """The package that reads these files."""
    others = {ADAPTER_CONFIG_NAME: "peft", OPEN_CLIP_CONFIG_NAME: "open_clip"}
    others[SENTENCE_CONFIG_NAME] = "sentence-transformers"
    return next((library for name, library in others.items() if name in manifest.files), "transformers")


def is_adapter(manifest: UnlearningManifest) -> bool:
    """Say whether the weights are those of an adapter to the base model, and no model of their own."""
    return ADAPTER_CONFIG_NAME in manifest.files


def hub_identifier(name: str, revision: str | None) -> str:
    """Turn a name into what metadata may hold: a Hub id as it is, and a local name as `local/<name>`.

    A local folder called like somebody's repository on the Hub must not be linked to it.
    """
    on_hub = _HUB_ID.fullmatch(name) and ("/" in name or COMMIT.fullmatch(revision or ""))
    return name if on_hub else LOCAL_PREFIX + re.sub(r"[^\w.-]+", "-", name).strip("-.")


def _pictures(manifest: UnlearningManifest) -> list[str]:
    """List the pictures: those with a caption of their own in that order, then the others by name."""
    names = sorted(name for name in manifest.files if name.startswith("assets/"))
    captioned = [f"assets/{stem}.png" for stem in CAPTIONS]
    return [name for name in captioned if name in names] + [name for name in names if name not in captioned]


def _caption(name: str) -> str:
    return CAPTIONS.get(Path(name).stem) or markdown_text(Path(name).stem.replace("_", " ").capitalize())


def _printable(value: str | None) -> str | None:
    return None if value is None else printable(value)


def _equation(line: str) -> str:
    """A line of TeX that cannot leave its formula, nor link or load anything, whether formulas are drawn or not."""
    line = _TEX_LINKS.sub("", printable(line).replace("$", "").replace("<", r"\lt "))
    return line.replace("](", "] (").replace("://", ":{//}").replace("www.", "www{.}")


def _fenced(text: str) -> str:
    """Text inside a block of code, which it cannot end."""
    return printable(text, keep="\n").replace("```", "'''")
