"""Which settings change the weights of a training: one list, of those that do not, for caches, resuming and records.

A setting that is not in the list counts, whether transformers adds it or a method from elsewhere brings it.
"""

import dataclasses
from enum import Enum
from typing import Any

# Where, how often and how loudly, never what.
WITHOUT_EFFECT = frozenset({
    "output_dir", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id",
    "logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter", "log_on_each_node",
    "log_level", "log_level_replica", "disable_tqdm", "report_to", "debug", "skip_memory_metrics",
    "include_num_input_tokens_seen", "include_for_metrics", "prediction_loss_only", "batch_eval_metrics",
    "do_train", "do_eval", "do_predict", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start",
    "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps", "per_device_eval_batch_size",
    "save_strategy", "save_steps", "save_total_limit", "save_only_model", "save_on_each_node", "enable_jit_checkpoint",
    "checkpoint_minutes", "resume_from_checkpoint", "restore_callback_states_from_checkpoint",
    "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision",
    "dataloader_drop_last", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
    "dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order",
    "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend",
    "ddp_timeout", "local_rank", "resident_bytes",
})  # fmt: skip


def weight_settings(*configs: Any) -> dict[str, Any]:
    """Every setting of some dataclasses that may change weights, by name, as plain values."""
    return {
        field.name: _plain(getattr(config, field.name))
        for config in configs
        for field in dataclasses.fields(config)
        if field.name not in WITHOUT_EFFECT
    }


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        waits = {"non_blocking": False} if hasattr(value, "non_blocking") else {}  # how batches are copied, not which
        return str(dataclasses.replace(value, **waits))
    return value
