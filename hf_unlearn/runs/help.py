"""The options of a run in groups, as the helps of the commands list them."""

from collections.abc import Container, Mapping
from dataclasses import MISSING, Field, fields

from hf_unlearn.data.config import DataConfig
from hf_unlearn.runs.run_arguments import RunArguments
from hf_unlearn.training.config import UnlearningConfig

# Group -> the options in it; of a training's, those that people set.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "What is unlearned": (
        "unlearn_request", "unlearn_where", "unlearn_fraction", "earlier_requests", "allow_unfound_rows", "duplicates",
        "request_salt",
    ),
    "Data": (
        "dataset_name", "dataset_config", "dataset_revision", "image_column", "caption_column", "label_column",
        "id_column", "validation_fraction", "test_fraction", "split_seed", "num_samples", "skip_bad_images",
        "streaming", "max_eval_samples", "shuffle_buffer",
    ),
    "Captions and views": ("max_length", "views", "flip_probability"),
    "Model": (
        "model_name_or_path", "model_revision", "trust_remote_code", "use_peft", "lora_r", "lora_alpha",
        "lora_dropout", "lora_target_modules",
    ),
    "Methods and results": (
        "methods", "retrain_model", "output_dir", "save_format", "resume", "overwrite", "audit_samples", "show_samples",
    ),
    "Training, of every method": (
        "per_device_train_batch_size", "num_train_epochs", "learning_rate", "lr_scheduler_type", "warmup_steps",
        "optim", "weight_decay", "max_grad_norm", "gradient_accumulation_steps", "forward_chunk_size",
        "freeze", "saliency_share", "shrink_perturb", "guard_steps", "retain_loss_budget", "collapse_floor",
        "seed", "report_to", "disable_tqdm", "checkpoint_minutes",
    ),
    "Machine": (
        "use_cpu", "bf16", "torch_compile", "channels_last", "dataloader_num_workers", "resident_bytes",
    ),
}  # fmt: skip
# Where the Trainer's own words are paragraphs.
_HELP = {
    "num_train_epochs": "Epochs; each method has a default of its own.",
    "learning_rate": "Learning rate; each method has a default of its own.",
    "warmup_steps": "Steps of warm-up, or below 1 their share of all.",
    "optim": "Optimiser, such as adamw_torch_fused or sgd.",
    "weight_decay": "Weight decay.",
    "max_grad_norm": "Longest gradient; 0: any.",
    "gradient_accumulation_steps": "Batches an update.",
    "bf16": "Compute in bfloat16, weights stay in float32.",
    "torch_compile": "Compile views, model and loss.",
    "use_cpu": "Compute on the CPU although there is an accelerator.",
    "report_to": "Trackers of the losses: tensorboard, trackio, wandb and so on.",
    "disable_tqdm": "Show no progress bar.",
}
_OF_EACH_METHOD = ("num_train_epochs", "learning_rate")


def option_groups(
    names: Container[str] | None = None, left_out: Container[str] = ()
) -> dict[str, list[tuple[str, str]]]:
    """Group -> pairs of an option, as it is spelt with its kind of value, and what is said of it.

    Args:
        names: the options to list; default: all in `GROUPS`.
        left_out: those not to list.
    """
    known: dict[str, Field[object]] = {
        f.name: f for f in (*fields(UnlearningConfig), *fields(DataConfig), *fields(RunArguments))
    }
    placed = {name for group in GROUPS.values() for name in group}
    further = tuple(f.name for kind in (DataConfig, RunArguments) for f in fields(kind) if f.name not in placed)
    grouped = {**GROUPS, "Further options": further}
    listed = {
        title: [_row(known[name]) for name in group if (names is None or name in names) and name not in left_out]
        for title, group in grouped.items()
    }
    return {title: rows for title, rows in listed.items() if rows}


def _row(option: "Field[object]") -> tuple[str, str]:
    told = _HELP.get(option.name) or str(option.metadata.get("help", ""))
    shown = option.default not in (None, False, MISSING) and option.name not in _OF_EACH_METHOD
    if shown and "default" not in told:
        told = f"{told.rstrip('.')} (default {option.default})."
    kind = str(option.type)
    value = "" if kind == "bool" else " " + next(v for k, v in _VALUES.items() if k in kind)
    return f"--{option.name}{value}", told


_VALUES = {"list[str]": "A B ...", "int": "N", "float": "X", "bool": "BOOL", "": "TEXT"}
