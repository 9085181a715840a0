"""The app in a real browser: Chromium without a screen, driven by Selenium."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from audit.conftest import folder_of
from audit.test_report import make

from hf_unlearn.audit.app import build_app, serve
from hf_unlearn.audit.app_limits import Limits
from hf_unlearn.audit.report import write_report
from hf_unlearn.errors import UserError

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
WAIT = 60

pytestmark = pytest.mark.usefixtures("small_plots")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not (BROWSER and DRIVER):
        reason = "chromium and chromedriver are not installed (Debian: apt-get install chromium chromium-driver)"
        if os.environ.get("CI"):
            pytest.fail(f"{reason}; in CI this test must run")
        pytest.skip(reason)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_window_size(1200, 1000)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser):
    """Opens the app in the browser; the server runs in this process."""
    opened = []

    def visit(**kwargs):
        app = build_app(**kwargs)
        opened.append(app)
        _, url, _ = app.launch(prevent_thread_lock=True, quiet=True, inbrowser=False, server_name="127.0.0.1")
        browser.get(url)
        until(browser, "#start")
        return browser

    yield visit
    for app in opened:
        app.close()


def until(browser, selector):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def visible(_):
        return next((found for found in browser.find_elements(By.CSS_SELECTOR, selector) if found.is_displayed()), None)

    return WebDriverWait(browser, WAIT).until(visible, f"{selector} never appeared")


def name_models(browser, before, after):
    for key, value in (("before", before), ("after", after)):
        until(browser, f"#{key} textarea, #{key} input").send_keys(str(value))


def upload(browser, arm, folder):
    from selenium.webdriver.common.by import By

    files = "\n".join(str(file) for file in sorted(Path(folder).iterdir()))
    browser.find_element(By.CSS_SELECTOR, f"#{arm} input[type=file]").send_keys(files)
    until(browser, f"#{arm} .file-preview")


def test_uploaded_pictures_get_heatmaps_and_a_verdict(page, arms, checkpoints):
    browser = page()
    name_models(browser, checkpoints["simclr_a"], checkpoints["simclr_a"])
    for arm in arms:
        upload(browser, "requested" if arm == "images" else arm, arms[arm])
    until(browser, "#start").click()
    assert until(browser, "#verdict h2").text == "NO MODEL CHANGE"
    heatmap = until(browser, "#heatmaps img")
    loaded = "return arguments[0].complete && arguments[0].naturalWidth"
    from selenium.webdriver.support.ui import WebDriverWait

    assert WebDriverWait(browser, WAIT).until(lambda _: browser.execute_script(loaded, heatmap)) > 300
    assert until(browser, "#report a[href]").get_attribute("href").endswith("report.html")
    until(browser, "#full button").click()
    browser.switch_to.frame(until(browser, "#framed iframe"))
    assert until(browser, ".verdict h2").text == "NO MODEL CHANGE"
    browser.switch_to.default_content()


def test_a_fault_is_shown_as_its_sentence(page, tmp_path, checkpoints):
    browser = page()
    until(browser, "#start").click()
    assert "The model before has no name" in until(browser, ".toast-body").text
    browser = page(hub_only=True)
    name_models(browser, checkpoints["simclr_a"], "org/<b>model</b>")
    upload(browser, "requested", folder_of(tmp_path / "mine", 1))
    until(browser, "#start").click()
    assert "must be a Hub id" in until(browser, ".toast-body").text


def test_the_page_plans_and_records(tmp_path, checkpoints):
    page = build_app()
    plan, record = (
        next(f.fn for f in page.fns.values() if f.fn and f.fn.__name__ == name) for name in ("plan", "record")
    )
    files = [str(file) for file in sorted(folder_of(tmp_path / "mine", 6).iterdir())]
    words, written = next(plan(files, None, 2))
    assert "3 pictures to request, 3 to leave" in words and "view_secret.json to yourself" in words
    assert {Path(path).name for path in written} >= {"plan.json", "view_secret.json", "request.csv"}
    _, recording = next(record(files, None, None, None, str(checkpoints["simclr_a"])))
    assert recording.endswith("before.safetensors")


def test_a_public_space_asks_the_hub_as_anybody_could(monkeypatch, tmp_path, checkpoints):
    """With a token in the Space's secrets, its owner's private models must stay out of reach."""
    from hf_unlearn.audit.encoders import LocalEncoder, resolve_folder

    asked = []

    def answer(*_, token=None, **__):
        asked.append(token)
        return SimpleNamespace(sha="0" * 40)

    monkeypatch.setattr("huggingface_hub.model_info", answer)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **how: (answer(**how), tmp_path)[1])
    resolve_folder("org/private", anonymous=True)
    assert asked == [False, False]
    resolve_folder("org/private")
    assert asked[2:] == [None]
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/private"}')
    with pytest.raises(UserError, match="is an adapter"):
        LocalEncoder("org/adapter", anonymous=True)


@pytest.mark.parametrize("hub_only", [True, False])
def test_the_page_passes_on_that_it_is_public(monkeypatch, arms, hub_only):
    settings = []
    stop = UserError("enough")

    def run_audit(*_, **how):
        settings.append(how["settings"])
        raise stop

    monkeypatch.setattr("hf_unlearn.audit.app.run_audit", run_audit)
    monkeypatch.setattr("hf_unlearn.audit.app_limits._hub_size", lambda name: (0, None))
    page = build_app(hub_only=hub_only)
    (audit,) = [f.fn for f in page.fns.values() if f.fn and f.fn.__name__ == "audit"]
    files = [str(file) for file in arms["images"].iterdir()]
    with pytest.raises(Exception, match="enough"):
        next(audit(files, None, None, None, "org/a", "org/b", "automatic", 10))
    assert [s.anonymous for s in settings] == [hub_only]
    assert (settings[0].model_cache is not None) == hub_only  # what anybody may name does not stay on the disk
    assert (settings[0].deadline is not None) == hub_only
    with pytest.raises(Exception, match="Views a picture must be a whole number"):
        next(audit(files, None, None, None, "org/a", "org/b", "automatic", 10**6))


def test_an_encoder_stops_at_its_deadline(checkpoints):
    from hf_unlearn.audit.encoders import LocalEncoder

    encoder = LocalEncoder(str(checkpoints["simclr_a"]), device="cpu", deadline=0.0)
    with pytest.raises(UserError, match="takes longer than is allowed here"):
        encoder.embed_images(np.zeros((1, 16, 16, 3), dtype=np.uint8))


def test_a_public_page_limits_uploads_as_they_come_in_and_who_waits(monkeypatch):
    import gradio as gr

    told = {}
    monkeypatch.setattr(
        gr.Blocks, "launch", lambda self, **how: told.update(how, queue=self._queue.max_size, past=self.api_open)
    )
    serve(hub_only=True)
    assert told["max_file_size"] == Limits.public().file_bytes and told["queue"] == Limits.public().waiting
    assert told["past"] is False, "nobody goes past those who wait"


@pytest.fixture
def served(monkeypatch, tmp_path):
    """A public page that is not opened: requests reach it, and the folder of uploads is its own."""
    from fastapi.testclient import TestClient
    from gradio.routes import App

    from hf_unlearn.audit.app_limits import launch_options

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    limits = replace(Limits.public(), upload_bytes=10_000, stored_bytes=30_000)
    page = build_app(hub_only=True, limits=limits).queue(api_open=False)
    page.max_file_size = limits.file_bytes  # as launching it does
    app = App.create_app(page, app_kwargs=launch_options(limits, None)["app_kwargs"])
    return TestClient(app, raise_server_exceptions=False)


def test_no_visitor_fills_the_disk(served, monkeypatch):
    from hf_unlearn.audit import app_limits

    monkeypatch.setattr(app_limits, "MOST_WORDS", 1_000)

    def send(number, size):
        return served.post("/gradio_api/upload", files={"files": (f"{number}.png", bytes([number]) * size)})

    assert send(0, 12_000).status_code == 413, "more than an arm may have"
    assert [send(number, 9_000).status_code for number in range(5)] == [200, 200, 200, 413, 413]

    def unannounced():
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        yield from [b"a" * 5_000] * 20

    how = {"content-type": "multipart/form-data; boundary=x"}
    assert served.post("/gradio_api/upload", content=unannounced(), headers=how).status_code != 200
    assert served.post("/gradio_api/queue/join", content=b"[" * 2_000).status_code == 413


@pytest.mark.parametrize("address", ["http://example.org/a.png", "HTTPS://169.254.169.254/"])
def test_nothing_is_fetched_from_an_address_that_a_visitor_names(address):
    import asyncio

    import gradio as gr

    page = build_app(hub_only=True)
    places = {part for job in page.fns.values() for part in job.inputs if isinstance(part, gr.File)}
    assert len(places) == 12
    for place in places:
        with pytest.raises(gr.Error, match="An address is no upload"):
            asyncio.run(place.async_move_resource_to_block_cache(address))


def test_without_gradio_the_remedy_is_said(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"pip install -e \"\.\[app\]\" in a clone"):
        build_app()


def test_the_report_reads_well_in_a_browser(browser, tmp_path, arms, checkpoints):
    """No request leaves the page, nothing is wider than the window or a table's box, and the headings are there."""
    from hf_unlearn.audit.run import AuditSettings, run_audit

    settings = AuditSettings(view_count=3, view_side=16, device="cpu")
    owners = tmp_path / "owners.csv"  # with several owners the tests have a column more
    names = [file.name for folder in (arms["images"], arms["still_trained"]) for file in sorted(folder.iterdir())]
    owners.write_text(
        "image,owner\n" + "".join(f"{name},{'ann' if i % 2 else 'bob'}\n" for i, name in enumerate(names))
    )
    audit = run_audit(
        *(checkpoints["simclr_a"], checkpoints["simclr_b"]),
        output_dir=tmp_path / "r",
        captions=owners,
        settings=settings,
        **arms,
    )
    for width in (1280, 1920, 500):
        browser.set_window_size(width, 900)
        browser.get((tmp_path / "r" / "report.html").as_uri())
        until(browser, ".verdict h2")
        assert (
            browser.execute_script(
                "return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length"
            )
            == 0
        )
        assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        boxes = "[...document.querySelectorAll('.scroll')]"
        if width > 500:  # a small screen scrolls within the boxes
            cut = browser.execute_script(
                f"return {boxes}.filter(e => e.scrollWidth > e.clientWidth).map(e => e.ariaLabel)"
            )
            assert cut == []
        assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert all(result.verdict.value in browser.page_source for result in audit.results.values())


def test_the_report_is_legible_on_a_phone(browser, tmp_path, monkeypatch):
    """At 390 pixels nothing is cut: thumbnails keep their size, texts and names their width, the page its own."""
    monkeypatch.setattr("hf_unlearn.audit.report_page.MAX_LABELS", 4)  # pictures by number, beside the heatmaps
    path = write_report(make(tmp_path, sizes=(10, 10, 10)))
    metrics = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        browser.get(path.resolve().as_uri())

        def widths(selector):
            script = "return [...document.querySelectorAll(arguments[0])].map(e => e.getBoundingClientRect().width)"
            return browser.execute_script(script, selector)

        assert browser.execute_script("return document.documentElement.scrollWidth") == 390
        assert len(widths(".strip img")) == 10 and max(widths(".strip img, .images img")) <= 80
        assert min(widths("caption span")) > 250 and max(widths("caption span")) <= 390
        assert min(widths(".effects tbody th")) > 200 and min(widths(".facts td")) > 300
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_first_sheet_is_one_page_of_paper(browser, tmp_path):
    """On letter paper, the lower of the two, also with three findings, every one of two lines."""
    audit = make(tmp_path, sizes=(10, 10, 10))
    finding = "Left out, since a near-duplicate stands in another group: " + "picture-0000.png, " * 6
    texts = {"headline": "Yes, if it is so: " + "the model changed. " * 6, "explanation": "They lost more. " * 20}
    first = replace(audit.results[""], findings=(finding,) * 3, **texts)
    path = write_report(replace(audit, results={"": first}))
    try:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        metrics = {"width": 739, "height": 979, "deviceScaleFactor": 1, "mobile": False}  # 8.5 x 11 inches less margins
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get(path.resolve().as_uri())
        bottom = browser.execute_script("return document.querySelector('.summary').getBoundingClientRect().bottom")
        assert 500 < bottom < 979
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
