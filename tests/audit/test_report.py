import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from audit.conftest import folder_of
from PIL import Image

from hf_unlearn.audit.finished_audit import AlignmentMatrices, Audit
from hf_unlearn.audit.pictures import list_pictures
from hf_unlearn.audit.report import to_json, write_report
from hf_unlearn.audit.report_page import TONES
from hf_unlearn.audit.verdict import run_tests
from hf_unlearn.records.audit_result import Arm, ImageRow, Verdict

MEASUREMENT = {
    "started": "2030-01-01T00:00:00+00:00",
    "finished": "2030-01-01T00:01:00+00:00",
    "family": "views",
    "view_count": 10,
    "views": {"family": "cifar", "crop_scale": [0.2, 1.0]},
    "held_back_views": {"family": "held-back"},
    "seed": 0,
    "processor_backend": "torchvision",
    "device": "cpu",
    "encoders": {
        "before": {"kind": "checkpoint", "name": "org/<clip>", "weights_sha256": "a" * 64},
        "after": {"kind": "endpoint", "name": "https://host/embed", "first_asked": "2030-01-01T00:00:00+00:00"},
    },
    "versions": {"hf-unlearn": "0.1.0", "torch": "9"},
}
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects tags and complains about unbalanced ones."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids = [], [], []
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"unbalanced: {tag}"

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def make(tmp_path, sizes=(4, 4, 4), notes=(), broken=False):
    rng = np.random.default_rng(0)
    pictures, rows = {}, []
    for number, (arm, size) in enumerate(zip(Arm, sizes, strict=True)):
        if not size:
            continue
        for picture in list_pictures(folder_of(tmp_path / arm, size, 10 * number)):
            before = 0.9 - 0.2 * (arm is Arm.NEVER_TRAINED) + 0.02 * rng.normal()
            after = float("nan") if broken and not rows else before - 0.1 + 0.01 * rng.normal()
            pictures[picture.name] = picture
            rows.append(ImageRow(picture.name, picture.sha256, arm, before, after, before, after, 0.1, 0.0))
    requested = tuple(list_pictures(tmp_path / Arm.REQUESTED))
    am = rng.uniform(-1, 1, (2, len(requested), len(requested)))
    if broken:
        am[1, 0] = np.nan
    return Audit(
        results={"": run_tests(rows, permutations=199)},
        matrices={"": AlignmentMatrices(requested, None, am[0], am[1])},
        pictures=pictures,
        measurement=MEASUREMENT,
        notes=notes,
        folder=tmp_path / "report",
    )


def test_the_page_is_self_contained_accessible_and_escaped(tmp_path):
    page_path = write_report(make(tmp_path, notes=("a <script> & a note",)))
    text = page_path.read_text()
    page = Page(text)
    assert page.all("html")[0]["lang"] == "en" and not page.all("script") and not page.all("link")
    assert all(image["src"].startswith("data:image/") for image in page.all("img"))
    assert not re.search(r"url\(|@import|src=\"http|href=\"http", text)
    figures = [image for image in page.all("img") if image["alt"]]
    assert len(figures) == 5 and all(len(image["alt"]) > 30 for image in figures)
    assert len(page.ids) == len(set(page.ids))
    labelled = {attributes["aria-labelledby"] for _, attributes in page.tags if "aria-labelledby" in attributes}
    assert labelled <= set(page.ids)
    assert len(page.all("caption")) == len(page.all("table"))
    assert all("scope" in cell for cell in page.all("th"))
    assert [tag for tag, _ in page.tags].count("h1") == 1
    assert "org/&lt;clip&gt;" in text and "a &lt;script&gt; &amp; a note" in text


def test_the_page_tells_verdict_limits_and_every_image(tmp_path):
    audit = make(tmp_path)
    text = write_report(audit).read_text()
    unescaped = text.replace("&#39;", "'").replace("&amp;", "&")
    for sentence in (
        audit.result.verdict.value,
        audit.result.explanation,
        audit.result.footer,
        *audit.result.limits,
        *audit.result.assumptions,
        *(test.question for test in audit.result.tests.values()),
    ):
        assert sentence in unescaped
    for row in audit.result.images:
        assert row.image in text and row.sha256 in text


def test_embedded_pictures_are_the_pngs_beside_the_page(tmp_path):
    audit = make(tmp_path)
    page = Page(write_report(audit).read_text())
    embedded = [base64.b64decode(i["src"].partition(",")[2]) for i in page.all("img") if "png" in i["src"][:20]]
    written = {path.read_bytes() for path in audit.folder.glob("*.png")}
    assert set(embedded) == written and len(written) == 5
    thumbnails = [i for i in page.all("img") if "jpeg" in i["src"][:20]]
    assert len(thumbnails) == 12
    with Image.open(io.BytesIO(base64.b64decode(thumbnails[0]["src"].partition(",")[2]))) as image:
        assert image.size == (80, 80)


def test_a_lone_arm_and_a_broken_image_still_make_a_report(tmp_path):
    audit = make(tmp_path, sizes=(1, 0, 0), broken=True)
    text = write_report(audit).read_text()
    Page(text)
    assert audit.result.verdict is Verdict.INCONCLUSIVE and "n/a" in text and "No test was run" in text
    told = json.loads((audit.folder / "audit.json").read_text(), parse_constant=pytest.fail)
    assert told["matrices"][0]["am_after"][0] == [None]
    assert told["results"][0]["images"][0]["after"] == "nan"


def test_matrices_in_json_are_before_minus_after(tmp_path):
    told = to_json(make(tmp_path))["matrices"][0]
    gap = np.array(told["am_before"]) - np.array(told["am_after"])
    np.testing.assert_allclose(told["agm"], gap, atol=2e-6)
    assert told["labels"] == [f"picture-{i:02}.png" for i in range(4)]


def test_the_record_is_written_last(tmp_path, monkeypatch):
    """Where audit.json is, the report is complete."""
    audit = make(tmp_path)
    monkeypatch.setattr("hf_unlearn.audit.report.to_json", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(audit)
    assert not (audit.folder / "audit.json").exists() and (audit.folder / "report.html").exists()
    assert not list(audit.folder.glob("*.partial"))


def test_every_verdict_has_a_tone():
    assert set(TONES) == set(Verdict)


def test_many_images_come_without_thumbnails(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_unlearn.audit.report_page.MOST_THUMBNAILS", 5)
    page = Page(write_report(make(tmp_path)).read_text())
    assert all(image["alt"] for image in page.all("img"))


def test_the_page_claims_no_more_than_a_black_box_can(tmp_path):
    text = write_report(make(tmp_path)).read_text().lower()
    assert not re.search(r"\b(deleted|verified|proved)\b", text)
