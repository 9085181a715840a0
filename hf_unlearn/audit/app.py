"""The audit as a web page: plan a request, record a model, and audit; every report as a page and as a record.

Needs the extra `app` (`pip install -e ".[app]"` in a clone). Locally: `hf-unlearn audit app`. As a Space, this is the
whole `app.py`, next to a `requirements.txt` that names this library from where it is kept, with the extra `app`:

    from hf_unlearn.audit.app import serve

    serve(hub_only=True)
"""

import html
import logging
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hf_unlearn.audit.app_limits import (
    Limits,
    copy_uploads,
    launch_options,
    one_file,
    upload,
    usable_model,
    whole_number,
)
from hf_unlearn.audit.finished_audit import Audit
from hf_unlearn.audit.plan import PLAN_FILE, SECRET_FILE
from hf_unlearn.audit.power import plan_words
from hf_unlearn.audit.recording import plan_audit, record_embeddings
from hf_unlearn.audit.report import LETTER_FILE, PAGE_FILE, REPORT_FILE
from hf_unlearn.audit.report_page import TONES
from hf_unlearn.audit.run import run_audit
from hf_unlearn.audit.settings import VIEW_COUNT, AuditSettings
from hf_unlearn.audit.transforms import training_views
from hf_unlearn.errors import UserError, missing_extra

if TYPE_CHECKING:
    import gradio as gr

logger = logging.getLogger(__name__)

AUTOMATIC = "automatic"
MOST_AUDITS = 12
EDGES = {"open": "#6e7781", "against": "#b2182b", "mixed": "#9a6700", "good": "#2f6b3f"}
INTRODUCTION = """# Unlearning audit
Did a model really change where your pictures are concerned? Three steps: **plan** which half of them to request,
**record** the model before it changes, **audit** once it has. Pictures that stay in training, and pictures of the same
kind that never were in it, make the answer much stronger."""
REQUESTED = "the pictures whose removal you requested"


def build_app(*, hub_only: bool = False, limits: Limits | None = None) -> "gr.Blocks":
    """Build the page.

    Args:
        hub_only: Whether models must be public Hub ids: on a public Space nobody should reach its files, its network,
            or the private models that its token could read.
        limits: What one visitor may upload and ask for; by default generous locally, narrow with `hub_only`.

    Returns:
        A Gradio app to `launch()`.

    Raises:
        UserError: When Gradio is not installed.
    """
    try:
        import gradio as gr
    except ModuleNotFoundError as error:
        raise missing_extra("The app", "gradio", "app") from error

    limits = limits or (Limits.public() if hub_only else Limits())

    def settings(folder: Path, **chosen: Any) -> AuditSettings:
        # Models that anybody may name would fill the disk; those of a list stay for the next visitor.
        fetched_for_once = hub_only and limits.models is None
        return AuditSettings(
            most_views=limits.views,
            anonymous=hub_only,
            model_cache=folder / "models" if fetched_for_once else None,
            deadline=limits.deadline(),
            **chosen,
        )

    def in_a_folder(work: Callable[..., tuple[object, ...]]) -> Callable[..., Iterator[tuple[object, ...]]]:
        # A generator: what it yields is served from the page's own cache, then the folder with the pictures is gone.
        def job(*given: Any) -> Iterator[tuple[object, ...]]:
            with TemporaryDirectory(prefix="hf-unlearn-audit-") as folder:
                try:
                    answer = work(Path(folder), *given)
                except UserError as error:
                    raise gr.Error(html.escape(str(error)), print_exception=False) from error
                yield answer

        job.__name__ = work.__name__
        return job

    @in_a_folder
    def audit(
        folder: Path,
        requested: list[str] | None,
        still_trained: list[str] | None,
        never_trained: list[str] | None,
        captions: str | None,
        before: str,
        after: str,
        views: str,
        view_count: float,
        plan_files: list[str] | None = None,
        recording: str | None = None,
    ) -> tuple[object, ...]:
        found = run_audit(
            one_file(recording, limits) or usable_model(before, "before", hub_only, limits),
            usable_model(after, "after", hub_only, limits),
            copy_uploads(requested, folder / "requested", limits, REQUESTED),
            folder / "report",
            still_trained=_arm(still_trained, folder / "still_trained", limits),
            never_trained=_arm(never_trained, folder / "never_trained", limits),
            captions=one_file(captions, limits),
            plan=_plan_of(plan_files, folder / "plan", limits),
            settings=settings(
                folder,
                views=None if views == AUTOMATIC else views,
                view_count=None if recording else whole_number(view_count, 2, limits.views, "Views a picture"),
            ),
        )
        written = found.folder / PAGE_FILE
        style = "width: 100%; height: 80vh; border: 0"
        source = html.escape(written.read_text(encoding="utf-8"))
        return (
            _verdict(found),
            gr.update(visible=True),
            str(min(found.folder.glob("*alignment_matrices.png"))),
            f'<iframe title="Full report" sandbox style="{style}" srcdoc="{source}"></iframe>',
            [str(written), str(found.folder / REPORT_FILE), str(found.folder / LETTER_FILE), _zipped(found.folder)],
        )

    @in_a_folder
    def plan(folder: Path, images: list[str] | None, groups: str | None, audits: float) -> tuple[object, ...]:
        pictures = copy_uploads(images, folder / "pictures", limits, "the pictures that are in training")
        planned = whole_number(audits, 1, MOST_AUDITS, "The number of audits")
        drawn = plan_audit(pictures, folder / "plan", captions=one_file(groups, limits), audits=planned)
        sentences = [
            f"{len(drawn.requested)} pictures to request, {len(drawn.still_trained)} to leave in training.",
            *plan_words(*drawn.clusters, audits=drawn.audits),
            f"Publish or deposit this hash when you send the request: {drawn.sha256}",
            "Keep view_secret.json to yourself until the last audit is done.",
        ]
        text = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences)
        return text, [str(path) for path in sorted((folder / "plan").iterdir())]

    @in_a_folder
    def record(
        folder: Path,
        images: list[str] | None,
        still_trained: list[str] | None,
        never_trained: list[str] | None,
        captions: str | None,
        model: str,
    ) -> tuple[object, ...]:
        written = record_embeddings(
            usable_model(model, "before", hub_only, limits),
            copy_uploads(images, folder / "requested", limits, REQUESTED),
            folder / "before.safetensors",
            still_trained=_arm(still_trained, folder / "still_trained", limits),
            never_trained=_arm(never_trained, folder / "never_trained", limits),
            captions=one_file(captions, limits),
            settings=settings(folder),
        )
        return "<p>Recorded. Keep the file to yourself: it holds the secret seed of the views.</p>", str(written)

    pictures: dict[str, Any] = {"file_count": "multiple", "file_types": ["image"], "height": 170}
    table: dict[str, Any] = {"file_types": [".csv"], "height": 120}

    def arms(prefix: str) -> list[Any]:
        with gr.Row():
            return [
                upload(label="Requested: to be unlearned", elem_id=f"{prefix}requested", **pictures),
                upload(label="Optional: still in training", elem_id=f"{prefix}still_trained", **pictures),
                upload(label="Optional: never in training", elem_id=f"{prefix}never_trained", **pictures),
            ]

    # One job at a time for all visitors: they share one machine, and a waiting one is told its place.
    queue: dict[str, Any] = {"concurrency_limit": limits.at_once, "concurrency_id": "work"}
    with gr.Blocks(title="Unlearning audit", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Tabs():
            with gr.Tab("Audit", id="audit"):
                with gr.Row():
                    before = gr.Textbox(label="Model before", placeholder="org/clip", elem_id="before")
                    after = gr.Textbox(label="Model after", placeholder="org/clip-unlearned", elem_id="after")
                requested, still_trained, never_trained = arms("")
                with gr.Accordion("Plan, recording, captions and views", open=False):
                    plan_files = upload(
                        label="plan.json and view_secret.json; the pictures above are then both halves",
                        file_count="multiple",
                        file_types=[".json"],
                        elem_id="plan",
                    )
                    recording = upload(
                        label="A recording of the model before, instead of its name",
                        file_types=[".safetensors"],
                        elem_id="recording",
                    )
                    captions = upload(label="CSV: image, and caption, owner or group", elem_id="captions", **table)
                    views = gr.Dropdown(
                        [AUTOMATIC, *training_views()], value=AUTOMATIC, label="Views, as in the models' training"
                    )
                    view_count = gr.Slider(2, limits.views, value=VIEW_COUNT, step=1, label="Views a picture")
                start = gr.Button("Audit", variant="primary", elem_id="start")
                verdict = gr.HTML(elem_id="verdict")
                with gr.Column(visible=False) as details:
                    heatmaps = gr.Image(
                        label="Alignment before, after and their gap", type="filepath", elem_id="heatmaps"
                    )
                    with gr.Accordion("The full report", open=False, elem_id="full"):
                        framed = gr.HTML(elem_id="framed")
                    report = gr.File(
                        label="Report, record (audit.json), letter, and everything in one archive",
                        file_count="multiple",
                        elem_id="report",
                    )
                start.click(
                    audit,
                    [
                        *(requested, still_trained, never_trained, captions, before, after, views, view_count),
                        *(plan_files, recording),
                    ],
                    [verdict, details, heatmaps, framed, report],
                    **queue,
                )
            with gr.Tab("Plan a request", id="plan-request"):
                mine = upload(label="Your pictures, all of them in training", elem_id="plan-pictures", **pictures)
                groups = upload(label="Optional CSV: image and group (what belongs together)", **table)
                audits = gr.Slider(
                    1, MOST_AUDITS, value=1, step=1, label="How many audits over time (they share the error)"
                )
                draw = gr.Button("Draw which half to request", variant="primary", elem_id="draw")
                planned = gr.HTML(elem_id="planned")
                plan_out = gr.File(label="Plan, request and secret", file_count="multiple", elem_id="plan-files")
                draw.click(plan, [mine, groups, audits], [planned, plan_out], **queue)
            with gr.Tab("Record the model before", id="record"):
                model = gr.Textbox(label="Model", placeholder="org/clip", elem_id="record-model")
                recorded_arms = arms("record-")
                recorded_captions = upload(label="CSV: image, and caption or owner", **table)
                go = gr.Button("Record", variant="primary", elem_id="go")
                done = gr.HTML(elem_id="recorded")
                out = gr.File(label="Recording", elem_id="record-file")
                go.click(record, [*recorded_arms, recorded_captions, model], [done, out], **queue)
    return page


def serve(*, hub_only: bool = False, limits: Limits | None = None, port: int | None = None) -> None:
    """Open the page, as `build_app` makes it, with its limits on uploads and on how many wait.

    Args:
        hub_only: As for `build_app`.
        limits: As for `build_app`.
        port: Of the page; the first free one by default.
    """
    limits = limits or (Limits.public() if hub_only else Limits())
    page = build_app(hub_only=hub_only, limits=limits)
    page.queue(max_size=limits.waiting, api_open=False).launch(**launch_options(limits, port))


def _arm(files: Sequence[str] | None, folder: Path, limits: Limits) -> Path | None:
    return copy_uploads(files, folder, limits, "pictures") if files else None


def _plan_of(files: Sequence[str] | None, folder: Path, limits: Limits) -> Path | None:
    """The uploaded plan, its secret beside it; other files are left where they are."""
    if not files:
        return None
    folder.mkdir()
    for file in files:
        if Path(file).name in (PLAN_FILE, SECRET_FILE):
            shutil.copyfile(one_file(file, limits) or file, folder / Path(file).name)
    if not (folder / PLAN_FILE).is_file():
        raise UserError("The plan is the file plan.json; upload it, with view_secret.json.")
    return folder / PLAN_FILE


def _zipped(folder: Path) -> str:
    """The whole report in one archive beside it."""
    target = folder.with_suffix(".zip")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"report/{path.name}")
    return str(target)


def _verdict(audit: Audit) -> str:
    """Headline, verdict, explanation and closing sentence of every owner, escaped, as HTML that is read out when
    it comes.
    """
    parts = []
    for owner, result in audit.results.items():
        edge = EDGES[TONES[result.verdict]]
        heading = f"{owner}: {result.headline}" if owner else result.headline
        findings = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in result.findings)
        parts.append(
            f'<section style="border-left: 8px solid {edge}; padding: .6rem 1.2rem; margin: .6rem 0">'
            f"<h2>{html.escape(result.verdict.value)}</h2><p><strong>{html.escape(heading)}</strong></p>"
            f"<p>{html.escape(result.explanation)}</p>{f'<ul>{findings}</ul>' if findings else ''}"
            f"<p><small>{html.escape(result.footer)}</small></p></section>"
        )
    return f'<div role="status" aria-live="polite">{"".join(parts)}</div>'
