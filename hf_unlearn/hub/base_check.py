"""With the base model at hand: is it the recorded one, and what of it did unlearning change?"""

import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hf_unlearn.errors import UserError, listed
from hf_unlearn.hub.card import is_adapter
from hf_unlearn.hub.verification_report import Statement, failed, judged, unchecked
from hf_unlearn.models.weights import Difference, difference, has_weights, stored_tensors, weights_sha256
from hf_unlearn.records.schemas import UnlearningManifest

if TYPE_CHECKING:
    from torch import Tensor

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
            yield _tensors(_adapted(folder, base) if is_adapter(manifest) else difference(*_stored(folder, Path(base))))
    except UserError as error:
        yield failed("tensors", str(error))
    yield _settings(folder, Path(base), is_adapter(manifest))


def _adapted(folder: Path, base: str | Path) -> Difference:
    """What an adapter makes of its base model, whatever its file holds: it may be multiplied by zero."""
    from hf_unlearn.models.adapters import merged
    from hf_unlearn.models.loading import load_model

    plain = load_model(str(base)).state_dict()
    return difference(merged(load_model(str(folder), base=str(base))).state_dict(), plain)


def _stored(*folders: Path) -> "list[dict[str, Tensor]]":
    """The tensors of two checkpoints; where their forms differ, under the names that transformers has for them."""
    from hf_unlearn.models.checkpoint_forms import OPEN_CLIP, form_of
    from hf_unlearn.models.loading_errors import told
    from hf_unlearn.models.open_clip import from_open_clip

    forms, stored = [form_of(folder) for folder in folders], [stored_tensors(folder) for folder in folders]
    if OPEN_CLIP not in forms or len(set(forms)) == 1:
        return stored
    with told(lambda reason: f"the tensors cannot be read in transformers' form: {reason}", str(folders[0])):
        found = zip(forms, stored, strict=True)
        return [from_open_clip(tensors) if form == OPEN_CLIP else tensors for form, tensors in found]


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
    from hf_unlearn.models.effective_settings import image_settings, model_settings, tokenizer_settings
    from hf_unlearn.models.loading import load_config, load_preparation

    images, tokenizer = load_preparation(folder)
    config = load_config(folder) if with_config else None
    found = {"image processor": image_settings(images)}
    if tokenizer is not None:
        text = None if config is None else config.get_text_config()
        found["tokenizer"] = tokenizer_settings(tokenizer, getattr(text, "max_position_embeddings", None))
    if config is not None:
        found["model"] = model_settings(config, tokenizer)
    return {f"{part}'s {name}": value for part, settings in found.items() for name, value in settings.items()}
