"""The inputs of a model's kind: image-text pairs for dual encoders, random views for SimCLR and MoCo."""

from transformers import PreTrainedModel

from hf_unlearn.data.config import DataConfig
from hf_unlearn.data.preprocessing import ContrastivePreprocessor, ImageTextPreprocessor, ImageViewPreprocessor
from hf_unlearn.data.resizing import Processor
from hf_unlearn.data.views import VIEW_PRESETS
from hf_unlearn.errors import UserError
from hf_unlearn.models.contrastive import caption_length, is_dual_encoder, unwrap
from hf_unlearn.models.processor_fit import check_fit


def make_preprocessor(model: PreTrainedModel, processing_class: Processor, data: DataConfig) -> ContrastivePreprocessor:
    """How rows become batches for a model.

    Args:
        model: the encoder, wrapped or not.
        processing_class: the processor saved with it.
        data: the settings of the data.

    Raises:
        UserError: without the model's processor, when it does not fit the model, or when the text encoder takes fewer
            tokens than `max_length`.
    """
    if processing_class is None:
        raise UserError(
            "processing_class is missing; pass the processor saved with the model (AutoProcessor.from_pretrained)"
        )
    check_fit(model, processing_class, model.name_or_path or type(model).__name__)
    model = unwrap(model)  # type: ignore[assignment]
    if is_dual_encoder(model):
        tokenizer = getattr(processing_class, "tokenizer", None)
        length = caption_length(model, tokenizer, data.max_length)
        # CLIP's text encoder looks back only, from a text's first end: padding after it changes nothing, and a mask
        # would cost a read on the host at every step and the fused attention without one.
        looks_back = model.config.model_type == "clip" and tokenizer.padding_side == "right"  # type: ignore[union-attr]
        return ImageTextPreprocessor(processing_class, length, data.flip_probability, masked=not looks_back)
    return ImageViewPreprocessor(processing_class, VIEW_PRESETS[data.views])
