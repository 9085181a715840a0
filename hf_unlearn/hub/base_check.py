"""With the base model at hand: is it the recorded one, and what of it did unlearning change?"""

import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from hf_unlearn.errors import UserError, listed
from hf_unlearn.hub.card import is_adapter
from hf_unlearn.hub.verification_report import Statement, failed, judged, unchecked
from hf_unlearn.models.weights import Difference, difference, has_weights, stored_tensors, weights_sha256
from hf_unlearn.parsing import parse_json
from hf_unlearn.records.schemas import UnlearningManifest

# What things are called and where they came from, not what they do; of a tokenizer, the length it was last asked for.
_NAMES = {"image_processor_type", "processor_class", "architectures", "auto_map", "dtype", "torch_dtype"}
_NAMES |= {"_name_or_path", "transformers_version", "version", "truncation", "padding"}
# What a tokenizer does beside its steps.
_TOKENIZER = ("model_max_length", "padding_side", "truncation_side", "model_input_names", "special_tokens_map")
_LITTLE = 1e-4  # of the size of all tensors: steps of any training are larger


def verify_base(folder: Path, manifest: UnlearningManifest, base: str | Path | None) -> Iterator[Statement]:
    """Check the base model's hash, that unlearning changed some of its tensors, and nothing else of it."""
    recorded = manifest.base_model.sha256
    if base is None:
        yield unchecked("base weights", "give the base model's folder with --base")
        if has_weights(folder):
            unseen = "model, image processor and tokenizer are compared with the base's where --base gives it"
            yield unchecked("settings", unseen)
            if is_adapter(manifest):
                unseen = "what an adapter holds, and makes of its base model, is seen with --base"
                yield unchecked("tensors", unseen)
        return
    actual = weights_sha256(base)
    if recorded is None:
        yield unchecked("base weights", "its hash was not recorded")
    else:
        problem = f"SHA-256 is {actual}, recorded {recorded}"
        yield judged("base weights", actual == recorded, f"SHA-256 {actual}", problem)
    if not has_weights(folder):
        return
    try:
        if is_adapter(manifest) and find_spec("peft") is None:
            yield unchecked("tensors", "what an adapter changes is seen with the package peft")
        else:
            yield _tensors(
                _adapted(folder, base)
                if is_adapter(manifest)
                else difference(stored_tensors(folder), stored_tensors(base))
            )
    except UserError as error:
        yield failed("tensors", str(error))
    yield _settings(folder, Path(base), is_adapter(manifest))


def _adapted(folder: Path, base: str | Path) -> Difference:
    """What an adapter makes of its base model, whatever its file holds: it may be multiplied by zero."""
    from hf_unlearn.models.adapters import merged
    from hf_unlearn.models.loading import load_model

    plain = load_model(str(base)).state_dict()
    return difference(merged(load_model(str(folder), base=str(base))).state_dict(), plain)


def _tensors(found: Difference) -> Statement:
    subject, alone = "tensors", f"{found.alone} names or shapes are in one of the two alone"
    if found.shared <= found.alone:
        return unchecked(subject, f"{alone}, so that nothing can be compared; give the base in the model's form")
    if not math.isfinite(found.apart):
        return failed(subject, "numbers that are not finite, here or in the base model")
    share = f"{found.apart:.2%}" if found.apart >= _LITTLE else f"less than {_LITTLE:.2%}"
    fine = f"{found.differing} of {found.shared} differ from the base model's, by {share} of their size"
    # A tensor that one of the two lacks is one that no model reads, and changes nothing.
    changed = found.differing > 0 and found.apart > 0
    if changed and found.apart < _LITTLE:
        return unchecked(subject, f"{fine}: whether so little unlearns is seen with --dataset alone")
    problem = "every tensor is the base model's: nothing was unlearned"
    return judged(subject, changed, f"{fine}; {alone}" if found.alone else fine, problem)


def _settings(folder: Path, base: Path, adapter: bool) -> Statement:
    """Pictures or captions that go in otherwise, or another activation, look unlearned, whatever the weights do."""
    subject = "settings"
    try:
        ours = _every_setting(folder, with_config=not adapter)
    except UserError as error:
        return failed(subject, str(error))
    try:
        theirs = _every_setting(base, with_config=not adapter)
    except UserError as error:
        return unchecked(subject, f"the base model's cannot be read: {error}")
    changed = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    problem = f"other than the base model's, which changes every figure without unlearning: {listed(changed)}"
    return judged(subject, not changed, "model, image processor and tokenizer are set as the base's", problem)


def _every_setting(folder: Path, with_config: bool) -> dict[str, object]:
    """What a model, its image processor and its tokenizer do, as plain values."""
    from hf_unlearn.models.loading import load_config, load_preparation

    images, tokenizer = load_preparation(folder)
    found = {"image processor": images.to_json_string()}
    if tokenizer is not None and hasattr(tokenizer, "backend_tokenizer"):
        found["tokenizer"] = tokenizer.backend_tokenizer.to_str()
    if with_config:
        found["model"] = load_config(folder).to_json_string(use_diff=False)
    settings: dict[str, object] = {
        f"{part}'s {name}": _plain(value)
        for part, text in found.items()
        for name, value in parse_json(text, part).items()
        if name not in _NAMES
    }
    # One image processor has a class for each backend.
    settings["image processor's class"] = type(images).__name__.removesuffix("Fast").removesuffix("Pil")
    return settings | {f"tokenizer's {name}": getattr(tokenizer, name, None) for name in _TOKENIZER}


def _plain(settings: object) -> object:
    if not isinstance(settings, dict):
        return settings
    return {name: _plain(value) for name, value in settings.items() if name not in _NAMES}
