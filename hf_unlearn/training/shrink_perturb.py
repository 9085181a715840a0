"""Shrink and perturb: a training starts from weights that have lost a share of what they knew."""

from collections.abc import Callable, Iterator
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from hf_unlearn.distributed import world_size
from hf_unlearn.errors import UserError, listed
from hf_unlearn.models.contrastive import ModelInputs, as_weights, unwrap
from hf_unlearn.models.effective_settings import differing_settings
from hf_unlearn.models.moco import MoCoModel

# Added to a run's seed: a base model trained with the same seed would be moved back to its own start, unperturbed.
SEED_OFFSET = 191_008_475
NOT_SHRUNK = (
    "An adapter leaves the base model's weights as they are, so shrink_perturb moved none of them, and what they know "
    "is still there."
)


def taken(share: float, has_initial: bool) -> str:
    """What a share takes from the weights, as part of a sentence."""
    if has_initial:
        return f"every weight was moved {100 * share:.0f}% of the way back to the initial model"
    return f"{100 * share:.0f}% of every weight was new"


@torch.no_grad()
def shrink_and_perturb(model: nn.Module, share: float, seed: int) -> None:
    """Move every trained matrix towards a new initialisation, in place: `W <- (1 - a) W + a W_fresh`.

    `W_fresh` is drawn by the model's own `_init_weights`, so embeddings, attention and convolutions are perturbed on
    the scale each of them starts from. Vectors and scalars (biases, norms, the temperature) stay, and so does what is
    frozen. A momentum encoder moves as the weights it follows, towards the same draw.

    Args:
        model: the encoder, without wrappers; it is built anew from its config for the draw.
        share: a in [0, 1]; 0 changes nothing, 1 draws every matrix anew.
        seed: of the draw, the same on all processes. The global random state is seeded by it.

    Source: Ash and Adams, "On Warm-Starting Neural Network Training", arXiv 1910.08475, section 4. Deviations: the
    noise is an initialisation of full size times a, where the paper scales it by hand; vectors stay as they are.
    """
    set_seed((seed + SEED_OFFSET) % 2**32)
    fresh = type(model)(deepcopy(model.config))  # type: ignore[operator]
    _mix(model, fresh, share, least_dimensions=2)


@torch.no_grad()
def move_towards(model: nn.Module, initial: nn.Module, share: float) -> None:
    """Move every trained weight back towards the model that training began from, in place: `W <- (1 - a) W + a W_0`.

    The initial model takes the place of a new initialisation: what fine-tuning has added is what is to be forgotten.
    Vectors move, too, since they were trained from there.

    Args:
        model: the encoder, without wrappers.
        initial: a model of the same architecture; it is not changed.
        share: a in [0, 1]; 0 changes nothing, 1 gives the initial model.
    """
    _mix(model, initial, share)


def refuse_other_start(initial: nn.Module, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Refuse an initial model of other settings: weights that compute something else cannot be mixed or compared.

    Args:
        initial: what the model is said to have been fine-tuned from.
        model: the encoder.
        tokenizer: the model's, if it embeds texts.

    Raises:
        UserError: naming the settings that differ, or when it is no model.
    """
    if not isinstance(initial, PreTrainedModel):
        raise UserError(
            f"initial_model is a {type(initial).__name__}, no model; load it with load_encoder, and give that"
        )
    own = unwrap(model).config
    if differing := differing_settings(initial.config, own, tokenizer, tokenizer):  # type: ignore[arg-type]
        raise UserError(
            f"initial_model makes something else of its weights than the model ({listed(differing)}); give the model "
            "that it was fine-tuned from"
        )


def _mix(model: nn.Module, other: nn.Module, share: float, least_dimensions: int = 0) -> None:
    """Mix the weights that training moves with another's; those of MoCo's key encoder follow the query encoder's."""
    weights, others = dict(model.named_parameters()), dict(other.named_parameters())
    for name, weight in weights.items():
        trained = weights[name.removeprefix("key_")] if isinstance(model, MoCoModel) else weight
        if trained.requires_grad and weight.ndim >= least_dimensions:
            weight.copy_(torch.lerp(weight.float(), others[name].to(weight.device).float(), share))


@torch.no_grad()
def refill_queue(model: nn.Module, batches: Callable[[int], Iterator[ModelInputs]]) -> None:
    """Replace MoCo's keys by those of the key encoder as it now is; other models have none.

    Args:
        model: the encoder, without wrappers; batch norms take the batch's statistics, as in training.
        batches: from a number of rows wanted to one pass over at least one of them, and as many as there are.
    """
    if not isinstance(model, MoCoModel):
        return
    was_training, missing = model.training, len(model.queue)
    model.train()
    while missing > 0:
        for batch in batches(missing):
            pixels = as_weights(model, batch["pixel_values"][:, 1])
            keys = F.normalize(model.get_key_features(pixels).float(), dim=-1)
            model.enqueue(keys)
            missing -= len(keys) * world_size()
            if missing <= 0:
                break
    model.train(was_training)
