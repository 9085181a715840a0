"""The audit as a web page: upload pictures, name two models, see the heatmaps and the verdict.

Needs the extra `app` (`pip install "hf-unlearn[app]"`). Locally: `hf-unlearn audit app`. As a Space, this is the whole
`app.py`, next to a `requirements.txt` with the line `hf-unlearn[app]`:

    from hf_unlearn.audit.app import build_app

    build_app(hub_only=True).launch()
"""

import html
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hf_unlearn.audit.embeddings import is_precomputed
from hf_unlearn.audit.endpoint import is_endpoint
from hf_unlearn.audit.report import TONES, Audit
from hf_unlearn.audit.run import AuditSettings, run_audit
from hf_unlearn.audit.transforms import training_views
from hf_unlearn.errors import UserError

if TYPE_CHECKING:
    import gradio as gr

logger = logging.getLogger(__name__)

AUTOMATIC = "automatic"
EDGES = {"open": "#6e7781", "against": "#b2182b", "mixed": "#9a6700", "good": "#2f6b3f"}
INTRODUCTION = """# Unlearning audit
Did a model really change where your pictures are concerned? Upload them, name the model before and after, and compare.
Pictures that stay in training, and pictures of the same kind that never were in it, make the answer much stronger."""


def build_app(*, hub_only: bool = False) -> "gr.Blocks":
    """Build the page.

    Args:
        hub_only: Whether models must be public Hub ids: on a public Space nobody should reach its files, its network,
            or the private models that its token could read.

    Returns:
        A Gradio app to `launch()`.

    Raises:
        UserError: When Gradio is not installed.
    """
    try:
        import gradio as gr
    except ModuleNotFoundError as error:
        raise UserError('The app needs Gradio; install it with: pip install "hf-unlearn[app]".') from error

    def audit(
        requested: list[str] | None,
        still_trained: list[str] | None,
        never_trained: list[str] | None,
        captions: str | None,
        before: str,
        after: str,
        views: str,
        view_count: float,
    ) -> Iterator[tuple[Any, ...]]:
        # A generator: what it yields is served from the page's own cache, then the folder with the pictures is gone.
        with TemporaryDirectory(prefix="hf-unlearn-audit-") as work:
            try:
                found = run_audit(
                    _model(before, "before", hub_only),
                    _model(after, "after", hub_only),
                    _folder(requested, Path(work, "requested"), "the pictures whose removal you requested"),
                    Path(work, "report"),
                    still_trained=_folder(still_trained, Path(work, "still_trained")) if still_trained else None,
                    never_trained=_folder(never_trained, Path(work, "never_trained")) if never_trained else None,
                    captions=captions or None,
                    settings=AuditSettings(
                        views=None if views == AUTOMATIC else views, view_count=int(view_count), anonymous=hub_only
                    ),
                )
            except UserError as error:
                raise gr.Error(html.escape(str(error)), print_exception=False) from error
            written = found.folder / "report.html"
            style = "width: 100%; height: 80vh; border: 0"
            source = html.escape(written.read_text(encoding="utf-8"))
            yield (
                _verdict(found),
                gr.update(visible=True),
                str(min(found.folder.glob("*alignment_matrices.png"))),
                f'<iframe title="Full report" sandbox style="{style}" srcdoc="{source}"></iframe>',
                str(written),
            )

    with gr.Blocks(title="Unlearning audit", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            before = gr.Textbox(label="Model before", placeholder="org/clip", elem_id="before")
            after = gr.Textbox(label="Model after", placeholder="org/clip-unlearned", elem_id="after")
        with gr.Row():
            pictures: dict[str, Any] = {"file_count": "multiple", "file_types": ["image"], "height": 170}
            requested = gr.File(label="Requested: to be unlearned", elem_id="requested", **pictures)
            still_trained = gr.File(label="Optional: still in training", elem_id="still_trained", **pictures)
            never_trained = gr.File(label="Optional: never in training", elem_id="never_trained", **pictures)
        with gr.Accordion("Captions and views", open=False):
            captions = gr.File(label="Captions: a CSV with the columns image and caption", file_types=[".csv"])
            views = gr.Dropdown(
                [AUTOMATIC, *training_views()], value=AUTOMATIC, label="Views, as in the models' training"
            )
            view_count = gr.Slider(2, 20, value=10, step=1, label="Views a picture")
        start = gr.Button("Audit", variant="primary", elem_id="start")
        verdict = gr.HTML(elem_id="verdict")
        with gr.Column(visible=False) as details:
            heatmaps = gr.Image(show_label=False, type="filepath", elem_id="heatmaps")
            with gr.Accordion("The full report", open=False, elem_id="full"):
                framed = gr.HTML(elem_id="framed")
            report = gr.File(label="Download the report", elem_id="report")
        start.click(
            audit,
            [requested, still_trained, never_trained, captions, before, after, views, view_count],
            [verdict, details, heatmaps, framed, report],
        )
    return page


def _model(name: str, side: str, hub_only: bool) -> str:
    name = name.strip()
    if not name:
        raise UserError(f"The model {side} has no name; give a Hub id such as org/clip.")
    if hub_only and (is_endpoint(name) or is_precomputed(name) or Path(name).exists()):
        raise UserError(f"The model {side} must be a Hub id such as org/clip; run the audit locally for anything else.")
    return name


def _folder(files: Sequence[str] | None, folder: Path, what: str = "pictures") -> Path:
    """Copy uploaded files into one folder, under their own names."""
    if not files:
        raise UserError(f"Nothing to audit yet; upload {what}.")
    folder.mkdir()
    for number, file in enumerate(files, start=1):
        name = Path(file).name
        shutil.copyfile(file, folder / (name if not (folder / name).exists() else f"{number}-{name}"))
    return folder


def _verdict(audit: Audit) -> str:
    """Headline, explanation and footer of every owner, escaped, as HTML."""
    parts = []
    for owner, result in audit.results.items():
        edge = EDGES[TONES[result.verdict]]
        heading = f"{owner}: {result.verdict.value}" if owner else result.verdict.value
        parts.append(
            f'<section style="border-left: 8px solid {edge}; padding: .6rem 1.2rem; margin: .6rem 0">'
            f"<h2>{html.escape(heading)}</h2><p>{html.escape(result.explanation)}</p>"
            f"<p><small>{html.escape(result.footer)}</small></p></section>"
        )
    return "".join(parts)
