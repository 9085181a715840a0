"""Audit the demo's models as a data owner would: Retrain, both calibrations, the untouched model, and mere drift.

    accelerate launch recipes/unlearn_clip.py && accelerate launch recipes/audit_demo.py clip
    accelerate launch recipes/unlearn_moco.py && accelerate launch recipes/audit_demo.py moco

The owner's pictures are the unlearn split (requested), as many of retain (still trained) and of test (never trained).
The drift-only control is the base model trained further on everything, the requested pictures included.
"""

import argparse
import csv
import shutil
from copy import deepcopy
from pathlib import Path

from datasets import Dataset
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from hf_unlearn.audit.finished_audit import Audit
from hf_unlearn.audit.run import run_audit
from hf_unlearn.audit.settings import AuditSettings
from hf_unlearn.cli.guard import guarded
from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.data.images import to_rgb
from hf_unlearn.errors import UserError
from hf_unlearn.methods.fine_tune import FineTuneConfig, FineTuneTrainer
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.runs.builders import BUILDERS
from hf_unlearn.runs.command_line import Run, parse_run
from hf_unlearn.runs.run_data import UnlearningTask, prepare_task
from hf_unlearn.runs.unlearn import base_model
from hf_unlearn.training.rows import make_preprocessor

CONFIGS = Path(__file__).parent / "configs"
AUDITED = ("retrain", "alignment_calibration", "targeted_calibration")
FIGURES = ("paired_dots.png", "levels.png")


def main() -> None:
    """Export the owner's pictures, make the drift-only control, audit each model, put their figures side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=sorted(BUILDERS), help="of the embedded demo")
    family: str = parser.parse_args().family
    run = parse_run([], CONFIGS / f"{family}_openmoji.yaml")
    finished = Path(run.arguments.output_dir)
    unlearned = [name for name in AUDITED if (finished / name / "config.json").is_file()]
    if not unlearned:
        raise UserError(f"{finished} holds no finished run; run recipes/unlearn_{family}.py first")
    task = prepare_task(run.arguments)
    base = base_model(run, task, BUILDERS[family])
    folder = finished / "audits"
    shutil.rmtree(folder, ignore_errors=True)
    arms = export_arms(task, folder / "pictures")
    models = {
        **{name: finished / name for name in unlearned},
        "untouched": Path(base),
        "drift_only": drift(run, task, base, folder / "drift_only_model"),
    }
    settings = AuditSettings(views=None if family == "clip" else run.data.views)
    audits = {
        name: run_audit(
            base,
            model,
            arms["unlearn"],
            folder / name,
            still_trained=arms["retain"],
            never_trained=arms["test"],
            captions=folder / "pictures" / "captions.csv" if family == "clip" else None,
            settings=settings,
        )
        for name, model in models.items()
    }
    for name, audit in audits.items():
        print(f"{name:24}{audit.result.verdict.value}")
    print(f"Side by side: {side_by_side(audits, folder / 'side_by_side.png')}")


def export_arms(task: UnlearningTask, folder: Path) -> dict[str, Path]:
    """Write the owner's pictures, one folder an arm, and their captions."""
    size = len(task.splits["unlearn"])
    rows = []
    for name in ("unlearn", "retain", "test"):
        (folder / name).mkdir(parents=True)
        split: Dataset = task.splits[name].select(range(min(size, len(task.splits[name]))))
        for i, row in enumerate(split):
            picture = folder / name / f"{name}_{i:04d}.png"
            to_rgb(row["image"]).save(picture)
            rows.append({"image": picture.name, "caption": row["captions"][0]})
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["image", "caption"])
        writer.writeheader()
        writer.writerows(rows)
    return {name: folder / name for name in ("unlearn", "retain", "test")}


def drift(run: Run, task: UnlearningTask, base: str, folder: Path) -> Path:
    """The base model trained further on all of train, as long and as fast as Alignment Calibration was."""
    config = deepcopy(run.methods["fine_tune"])
    assert isinstance(config, FineTuneConfig)
    calibration = run.methods["alignment_calibration"]
    config.learning_rate, config.lr_scheduler_type = calibration.learning_rate, calibration.lr_scheduler_type
    model, processor = load_encoder(base)
    train = EncodedSplit(task.train, make_preprocessor(model, processor, run.data))
    trainer = FineTuneTrainer(model, config, {"retain": train}, processing_class=processor, data_config=run.data)
    trainer.train()
    trainer.model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def side_by_side(audits: dict[str, Audit], path: Path) -> Path:
    """The figures of all reports in one picture: a row a model, every image before and after, and the level plot."""
    rows = [[Image.open(audit.folder / name).convert("RGB") for name in FIGURES] for audit in audits.values()]
    height = 420
    resized = [[image.resize((image.width * height // image.height, height)) for image in row] for row in rows]
    width = max(sum(image.width for image in row) for row in resized)
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans:bold"), 24)  # the plotting library's own
    sheet = Image.new("RGB", (width, (height + 40) * len(resized)), "white")
    for i, (row, (name, audit)) in enumerate(zip(resized, audits.items(), strict=True)):
        x = 0
        for image in row:
            sheet.paste(image, (x, i * (height + 40) + 40))
            x += image.width
        heading = f"{name.replace('_', ' ')}: {audit.result.verdict.value}"
        ImageDraw.Draw(sheet).text((12, i * (height + 40) + 8), heading, fill="black", font=font)
    sheet.save(path)
    return path


if __name__ == "__main__":
    guarded(main)
