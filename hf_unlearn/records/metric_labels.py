"""How a card names the metrics of `evaluation.json`, and in which order and unit it shows them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hf_unlearn.errors import listed


@dataclass(frozen=True)
class MetricLabel:
    """A metric as a reader sees it: its name, its unit, and how the header of a wide table calls it, if otherwise."""

    name: str
    unit: str = "%"
    short: str = ""


METRIC_LABELS = {
    "cosine_retain": MetricLabel("Matched cosine, retain", "×100", "Cosine, retain"),
    "cosine_unlearn": MetricLabel("Matched cosine, unlearn", "×100", "Cosine, unlearn"),
    "cosine_validation": MetricLabel("Matched cosine, validation (held out)", "×100"),
    "cosine_test": MetricLabel("Matched cosine, test (held out)", "×100", "Cosine, test"),
    "emia": MetricLabel("EMIA efficacy: unlearn taken for never trained on, from the encoder", short="EMIA"),
    "emia_auc": MetricLabel("EMIA attack, AUC"),
    "emia_tpr_at_1_fpr": MetricLabel("EMIA attack, true positives at 1% false positives"),
    "retain_accuracy": MetricLabel("RA: linear probe accuracy, retain", short="RA"),
    "validation_accuracy": MetricLabel("Linear probe accuracy, validation"),
    "test_accuracy": MetricLabel("TA: linear probe accuracy, test", short="TA"),
    "unlearn_accuracy": MetricLabel("UA: linear probe accuracy, unlearn", short="UA"),
    "cmia": MetricLabel("CMIA efficacy: unlearn taken for never trained on, from the probe's confidence", short="CMIA"),
    "cmia_auc": MetricLabel("CMIA attack, AUC"),
    "cmia_tpr_at_1_fpr": MetricLabel("CMIA attack, true positives at 1% false positives"),
    "forgetting_score": MetricLabel("Forgetting score, unlearn", "×100", "FS"),
    "negative_alignment": MetricLabel(
        "Negative alignment: gap between different unlearn samples", "×100", "Neg. alignment gap"
    ),
    "recall_at_1_image_to_text": MetricLabel("Recall at 1, image to text"),
    "recall_at_5_image_to_text": MetricLabel("Recall at 5, image to text"),
    "recall_at_1_text_to_image": MetricLabel("Recall at 1, text to image"),
    "recall_at_5_text_to_image": MetricLabel("Recall at 5, text to image"),
    "zero_shot_retain": MetricLabel("Zero-shot accuracy, retain"),
    "zero_shot_unlearn": MetricLabel("Zero-shot accuracy, unlearn"),
    "zero_shot_validation": MetricLabel("Zero-shot accuracy, validation"),
    "zero_shot_test": MetricLabel("Zero-shot accuracy, test", short="Zero-shot, test"),
    "recall_validation": MetricLabel("Recall on validation, mean over both ways at 1 and 5"),
    "estimated_gap": MetricLabel("Average gap to Retrain, estimated without Retrain", "", "Est. gap"),
    "estimated_gap_retain": MetricLabel("Estimated gap, retain cosine", "×100"),
    "estimated_gap_unlearn": MetricLabel("Estimated gap, unlearn cosine", "×100"),
    "estimated_gap_utility": MetricLabel("Estimated gap, recall lost on validation"),
    "estimated_gap_holdout": MetricLabel("Estimated gap, lost by samples that nobody asked for", "×100"),
    "estimated_gap_spread": MetricLabel("Estimated gap, spread of the unlearn cosines", "×100"),
    "estimated_gap_emia": MetricLabel("Estimated gap, attack on the encoder"),
    "estimated_gap_retain_accuracy": MetricLabel("Estimated gap, RA"),
    "estimated_gap_test_accuracy": MetricLabel("Estimated gap, TA (from validation)"),
    "estimated_gap_unlearn_accuracy": MetricLabel("Estimated gap, UA"),
    "estimated_gap_cmia": MetricLabel("Estimated gap, attack on the probe's confidence"),
    "agreement_pearson": MetricLabel("Agreement with Retrain sample by sample, Pearson", "", "Agreement"),
    "agreement_difference": MetricLabel("Difference from Retrain sample by sample, mean absolute", "×100"),
    "cka_to_retrain": MetricLabel("Linear CKA with Retrain, unlearn samples", ""),
    "run_time_minutes": MetricLabel("Run time", "minutes", "RTE (min)"),
}

_HOLDOUT_LABELS = {"cosine_holdout_": "Matched cosine", "alignment_holdout_": "View alignment"}

# What the average gap to Retrain is over, by family (Tables 1 and 4); without labels there is no probe, and EMIA alone.
GAP_KEYS = {
    "image-text": ("cosine_retain", "cosine_unlearn"),
    "views": ("emia", "retain_accuracy", "test_accuracy", "unlearn_accuracy", "cmia"),
}
_PROBED = GAP_KEYS["views"][1:]


def gap_keys(family: str, measured: Iterable[str]) -> tuple[str, ...]:
    """Name the metrics that a family's average gap to Retrain is over.

    Args:
        family: image-text or views.
        measured: The metrics that were measured: without any of the probe's, views are judged by EMIA alone.

    Returns:
        Keys of metrics; none for a family that is not known.
    """
    keys = GAP_KEYS.get(family, ())
    return keys if family != "views" or set(measured) & set(_PROBED) else keys[:1]


# Of what a comparison shows, the figures of unlearn samples: each request has its own.
_OF_UNLEARN = ("cosine_unlearn", "emia", "unlearn_accuracy", "cmia")


def first_request_note(keys: Iterable[str]) -> str:
    """What is to be said where figures of the model before any request stand beside those of a later request."""
    names = listed(short_name(key) for key in _OF_UNLEARN if key in keys)
    return f"The original model's {names} and gaps are of the first request's samples."


def metric_label(key: str) -> MetricLabel:
    """Look up a metric of `evaluation.json`; one that is not in the table is named after its key."""
    for prefix, name in _HOLDOUT_LABELS.items():
        if key.startswith(prefix) and not key.endswith("_std"):
            return MetricLabel(f"{name}, {key.removeprefix(prefix)} (not asked for)", "×100")
    return METRIC_LABELS.get(key) or MetricLabel(key.replace("_", " ").capitalize(), "")


def short_name(key: str) -> str:
    """Name a metric in the header of a wide table."""
    for prefix in _HOLDOUT_LABELS:
        if key.startswith(prefix):
            return f"Holdout {key.removeprefix(prefix)}"
    label = metric_label(key)
    return label.short or label.name


def in_display_order(keys: Iterable[str]) -> list[str]:
    """Order metrics for display, leaving out standard deviations and ends of intervals, which stand beside a metric."""
    keys = list(keys)
    known = [key for key in METRIC_LABELS if key in keys]
    return known + [key for key in keys if key not in METRIC_LABELS and not is_beside(key, keys)]


def is_of_a_holdout(key: str) -> bool:
    """Say whether a metric is the alignment of a split that was held out to see whether more was erased than asked."""
    return key.startswith(tuple(_HOLDOUT_LABELS)) and not key.endswith("_std")


def is_beside(key: str, keys: Iterable[str]) -> bool:
    """Say whether `key` is the standard deviation, or an end of the interval, of another metric among `keys`."""
    beside = (key.removesuffix("_std"), key.removeprefix("low_"), key.removeprefix("high_"))
    return any(other != key and other in keys for other in beside)


def shown(metrics: Mapping[str, object], key: str = "estimated_gap", decimals: int = 2) -> str:
    """A metric as tables, cards and the terminal show it, with its interval where it has one.

    Example:
        >>> shown({"estimated_gap": 4.9, "low_estimated_gap": 3.123, "high_estimated_gap": 6.8})
        '4.90 [3.12, 6.80]'
        >>> shown({"emia": 4.9}, "emia"), shown({}, "emia")
        ('4.90', '–')
    """
    value, low, high = (metrics.get(name) for name in (key, f"low_{key}", f"high_{key}"))
    interval = "" if low is None or high is None else f" [{low:.{decimals}f}, {high:.{decimals}f}]"
    return "–" if value is None else f"{value:.{decimals}f}{interval}"
