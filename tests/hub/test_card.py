"""The card against the JSON it is made from, read back with the Hub's own tools."""

import ast
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from folders import folder_hash
from huggingface_hub import ModelCard, metadata_eval_result
from huggingface_hub.repocard import metadata_load
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from mdit_py_plugins.front_matter import front_matter_plugin
from PIL import Image as Picture

from hf_unlearn.errors import UserError
from hf_unlearn.hub.card import hub_identifier, keep_card, render_card, write_card
from hf_unlearn.hub.card_check import table_cells
from hf_unlearn.hub.verification import check_card
from hf_unlearn.methods import description_of
from hf_unlearn.records.method_description import MethodDescription
from hf_unlearn.records.schemas import (
    BaseModel,
    ComparisonRow,
    DatasetRecord,
    EvaluationRecord,
    HistoryEntry,
    RequestRecord,
    UnlearningManifest,
)
from hf_unlearn.text import printable

MINIMAL = UnlearningManifest(
    method="neg_grad",
    base_model=BaseModel("org/clip", "0" * 40, "a" * 64, license="mit"),
    weights_sha256="b" * 64,
    dataset=DatasetRecord("org/pictures"),
    request=RequestRecord("fraction", 4, "c" * 64),
    splits={"retain": 30, "unlearn": 4, "validation": 3, "test": 3},
    created="2026-05-01T10:00:00+00:00",
    library_version="0.1.0",
)


def plus_minus(mean: str, deviation: str) -> str:
    return f"{mean}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{deviation}"


def load(folder: Path) -> tuple[UnlearningManifest, EvaluationRecord, str]:
    return UnlearningManifest.load(folder), EvaluationRecord.load(folder), (folder / "README.md").read_text()


def test_metadata_says_where_the_model_comes_from(finished_run: Path) -> None:
    data = ModelCard.load(finished_run / "README.md").data
    assert data.base_model == "local/small-clip"  # a folder, so nothing on the Hub is claimed to be its base
    assert data.to_dict()["base_model_relation"] == "finetune"
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "zero-shot-image-classification"
    assert data.datasets == ["org/pictures"]
    assert data.license == "cc-by-sa-4.0"  # inherited from the base model's card
    assert {"unlearning", "machine-unlearning", "alignment_calibration"} <= set(data.tags)


def test_model_index_holds_every_metric_with_its_exact_value(finished_run: Path) -> None:
    results = {r.metric_type: r.metric_value for r in ModelCard.load(finished_run / "README.md").data.eval_results}
    assert results == json.loads((finished_run / "evaluation.json").read_text())["metrics"]


def test_model_index_has_the_form_that_the_hub_builds_itself(finished_run: Path) -> None:
    index = metadata_load(finished_run / "README.md")["model-index"]
    [result] = index[0]["results"]
    metric = result["metrics"][0]
    expected = metadata_eval_result(
        model_pretty_name=index[0]["name"],
        task_pretty_name="",
        task_id=result["task"]["type"],
        metrics_pretty_name=metric["name"],
        metrics_id=metric["type"],
        metrics_value=metric["value"],
        dataset_pretty_name=result["dataset"]["name"],
        dataset_id=result["dataset"]["type"],
        dataset_revision=result["dataset"]["revision"],
    )["model-index"][0]["results"][0]
    expected["task"].pop("name")
    expected["metrics"][0].pop("verified")
    assert {**result, "metrics": [metric]} == expected


def test_card_says_what_was_unlearned_from_what_and_how(finished_run: Path) -> None:
    manifest, _, card = load(finished_run)
    assert "This is `small-clip` after a request to remove 6 of its training samples" in card
    for fact in (manifest.request.sha256, manifest.base_model.sha256, manifest.weights_sha256, manifest.dataset.sha256):
        assert fact is not None
        assert f"`{fact}`" in card
    cells = {(cell.row, cell.column): text for cell, text in table_cells(card).items()}
    assert cells["Rows", "Value"] == "retain 60, unlearn 6, validation 8, test 9"
    assert cells["beta", "Value"] == "1.0"
    assert cells["learning_rate", "Value"] == "0.0002"
    assert (cells["Seed", "Value"], cells["Preset", "Value"], cells["Time", "Value"]) == ("3", "paper", "12.5 s")
    assert cells["Hardware", "Value"] == manifest.hardware
    assert all(f"$$\n{equation}\n$$" in card for equation in description_of("alignment_calibration").equations)
    assert card.count("@article{wang2024alignment") == 1
    assert card.count("@software{hf_unlearn") == 1
    assert "hf-unlearn audit --before small-clip" in card
    assert "no certificate" in card


def test_gap_table_is_the_difference_to_retrain(finished_run: Path) -> None:
    cells = {(cell.row.strip("*"), cell.column): text for cell, text in table_cells(load(finished_run)[2]).items()}
    row = "Matched cosine, unlearn (×100)"
    assert cells[row, "Before"] == plus_minus("88.75", "3.25")
    assert cells[row, "This model"] == plus_minus("41.00", "9.50")
    assert cells[row, "Retrain"] == plus_minus("34.00", "12.00")
    assert cells[row, "Gap to Retrain"] == "7.00"
    assert cells["Alignment Calibration", "Cosine, unlearn"] == "41.00 (7.00)"
    assert cells["Before", "Avg. gap"] == "27.75"


def test_every_picture_shown_lies_beside_the_card(finished_run: Path) -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", load(finished_run)[2])
    assert pictures == ["assets/alignment_matrices.png"]
    assert all((finished_run / picture).is_file() for picture in pictures)


def test_card_never_tells_who_was_removed(finished_run: Path, requested) -> None:
    published = [finished_run / name for name in ("README.md", "unlearning.json", "evaluation.json")]
    text = "".join(path.read_text() for path in published)
    assert not [caption for row in requested["captions"] for caption in row if caption in text]


def test_five_lines_of_the_card_load_the_model(finished_run: Path, pictures: list[Path]) -> None:
    code = re.search(r"```python\n(.*?)```", load(finished_run)[2], re.DOTALL)[1]
    assert len(code.split("\n\n")[0].splitlines()) + len(code.split("\n\n")[1].splitlines()) == 5
    namespace = {"picture": Picture.open(pictures[0])}
    exec(code.replace("path/to/this/folder", str(finished_run)), namespace)
    assert namespace["similarity"].shape == (1, 1)


def test_writing_the_card_again_changes_nothing(run: Path) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    write_card(run)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_history_lists_every_request_in_order() -> None:
    earlier = HistoryEntry("fine_tune", "2026-01-01T00:00:00+00:00", RequestRecord("file", 2, "d" * 64), "a" * 64)
    card = render_card(replace(MINIMAL, history=(earlier,)), None)
    cells = {(cell.row, cell.column): text for cell, text in table_cells(card).items()}
    assert (cells["1", "Method"], cells["1", "Samples"], cells["1", "Request, SHA-256"]) == (
        "fine_tune",
        "2",
        f"`{'d' * 64}`",
    )
    assert (cells["2", "Method"], cells["2", "Samples"]) == ("neg_grad", "4")
    assert "All requests on this model" not in render_card(MINIMAL, None)


def test_without_an_evaluation_the_card_says_so() -> None:
    card = render_card(MINIMAL, None)
    assert "This model was not evaluated." in card
    assert ModelCard(card).data.eval_results is None


def test_metrics_that_are_not_finite_are_shown_as_missing() -> None:
    evaluation = EvaluationRecord("views", metrics={"emia": None, "retain_accuracy": 80.0})
    card = render_card(MINIMAL, evaluation)
    assert [r.metric_type for r in ModelCard(card).data.eval_results] == ["retain_accuracy"]
    assert "trust_remote_code=True" in card


@pytest.mark.parametrize(
    ("name", "revision", "expected"),
    [
        ("openai/clip-vit-base-patch32", None, "openai/clip-vit-base-patch32"),
        ("gpt2", "0" * 40, "gpt2"),
        ("gpt2", None, "local/gpt2"),
        ("my run (2)", None, "local/my-run-2"),
    ],
)
def test_local_names_are_not_taken_for_repositories(name: str, revision: str | None, expected: str) -> None:
    assert hub_identifier(name, revision) == expected


@settings(max_examples=25, deadline=None)
@given(
    name=st.text(min_size=1, max_size=20),
    note=st.text(max_size=40),
    value=st.one_of(st.text(max_size=20), st.floats(), st.integers()),
    metrics=st.dictionaries(st.sampled_from([*"abc", "emia"]), st.floats(allow_nan=False, allow_infinity=False)),
)
def test_whatever_a_run_is_called_its_card_reads_back(name: str, note: str, value: object, metrics: dict) -> None:
    manifest = replace(
        MINIMAL, dataset=DatasetRecord(name), notes=(note,), hyper_parameters={"odd": value}, base_model=BaseModel(name)
    )
    card = ModelCard(render_card(manifest, EvaluationRecord("views", metrics=dict(metrics))))
    assert {r.metric_type: r.metric_value for r in card.data.eval_results or ()} == metrics
    assert UnlearningManifest.from_json(manifest.to_json()).dataset.name == name


def test_a_kept_card_regenerates_from_its_records(finished_run: Path, tmp_path: Path) -> None:
    folder = keep_card(finished_run, tmp_path / "clip")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "assets",
        "evaluation.json",
        "unlearning.json",
    ]
    assert check_card(folder) == ()
    write_card(folder)  # as after a change of the template: the recorded hashes stay
    assert UnlearningManifest.load(folder) == UnlearningManifest.load(finished_run)
    assert check_card(folder) == ()


@pytest.mark.parametrize("where", ["", "assets", "..", "../base"])
def test_no_card_is_kept_in_a_run_around_it_or_in_a_model(where: str, run: Path, base: Path) -> None:
    shutil.copytree(base, run.parent / "base")
    shutil.copytree(run / "assets", run.parent / "assets")  # the comparison's plots
    before = folder_hash(run.parent)
    with pytest.raises(UserError, match=r"choose another --copy_to|holds a model; copy the card to another folder"):
        keep_card(run, run / where)
    assert folder_hash(run.parent) == before


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("| 7.00 |", "| 1.00 |", "Matched cosine, unlearn (×100), Gap to Retrain"),
        ("no certificate", "a certificate", "card text"),
        ("license: cc-by-sa-4.0", "license: mit", "card metadata"),
        ("(assets/alignment_matrices.png)", "(assets/other.png)", "card pictures"),
    ],
)
def test_a_card_edited_by_hand_is_found(finished_run: Path, tmp_path: Path, old: str, new: str, named: str) -> None:
    folder = keep_card(finished_run, tmp_path / "clip")
    card = (folder / "README.md").read_text()
    assert card.count(old) == 1
    (folder / "README.md").write_text(card.replace(old, new))
    assert any(named in line.subject for line in check_card(folder))


def test_a_replaced_picture_is_found(finished_run: Path, tmp_path: Path) -> None:
    folder = keep_card(finished_run, tmp_path / "clip")
    picture = folder / "assets" / "alignment_matrices.png"
    picture.write_bytes(picture.read_bytes() + b"\0")
    assert [line.subject for line in check_card(folder)] == ["assets/alignment_matrices.png", "heatmaps"]


HOSTILE = (
    "<b>x</b> [seal](https://evil.example) ```\n---\n# Certified\n\x1b[2J \udce9 $$ | ` \\href{https://evil.example}{y}"
)


def test_text_of_the_records_is_acted_on_by_nothing_in_the_card(finished_run: Path) -> None:
    """Every text field of both records at once; the card still parses, and holds no tag, link or heading of theirs."""
    text = HOSTILE
    manifest = replace(
        UnlearningManifest.load(finished_run),
        method=text,
        base_model=BaseModel(text, text, license=text, license_name=text, license_link=text),
        dataset=DatasetRecord(text, text, text),
        request=RequestRecord(text, 1, text),
        splits={text: 1},
        created=text,
        library_version=text,
        description=MethodDescription(text, text, (text,), text, text),
        preset=text,
        hyper_parameters={text: text},
        versions={text: text},
        hardware=text,
        notes=(text,),
        files={f"assets/{text}.png": "0"},
        repo_id=text,
    )
    row = ComparisonRow(text, {text: 1.0}, {text: 1.0}, title=text)
    evaluation = EvaluationRecord(text, {text: 1.0}, gap_keys=(text,), comparison=(row,))
    ours = render_card(UnlearningManifest.load(finished_run), EvaluationRecord.load(finished_run))
    card = render_card(manifest, evaluation)
    assert card.isprintable() or set(card) - {"\n"} == {c for c in card if c.isprintable() or c == "\N{NO-BREAK SPACE}"}
    card.encode()
    data = ModelCard(card).data
    assert data.license == data.model_name == printable(text)
    html = MarkdownIt("commonmark", {"html": True}).enable("table").use(front_matter_plugin).render(card)
    headings = [line for line in html.splitlines() if line.startswith("<h")][1:]
    assert set(headings) <= {*MarkdownIt().use(front_matter_plugin).render(ours).splitlines()}
    links = re.findall(r'(?:href|src)="([^"]*)"', html)
    assert "<b>" not in html and all(link.startswith(("assets/", "https://arxiv.org/abs/")) for link in links)
    program = re.search(r"```python\n(.*?)\n```\n", card, re.DOTALL)
    assert program is not None
    strings = [node.value for node in ast.walk(ast.parse(program[1])) if isinstance(node, ast.Constant)]
    assert printable(text) in strings
