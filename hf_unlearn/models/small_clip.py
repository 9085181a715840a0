"""A CLIP small enough to pre-train on a laptop, with a tokenizer of its own."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

MAX_LENGTH = 16
# In this order: were the end number 2, transformers' CLIP would read a text up to its greatest token and no further.
SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>", "<pad>")


def train_tokenizer(captions: Iterable[str], vocab_size: int = 1536) -> PreTrainedTokenizerFast:
    """A lower-case byte-level BPE tokenizer trained on captions, with CLIP's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    start, end, pad = SPECIAL_TOKENS
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIAL_TOKENS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(token, tokenizer.token_to_id(token)) for token in (start, end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token=end,
        pad_token=pad,
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_small_clip(captions: Iterable[str], image_size: int = 32) -> tuple[CLIPModel, CLIPProcessor]:
    """A CLIP of about 1 M parameters with random weights, and its processor.

    Args:
        captions: texts the tokenizer is trained on.
        image_size: side of the pictures in pixels, a multiple of 8.

    Returns:
        The model and the processor to save beside it.
    """
    tokenizer = train_tokenizer(captions)
    common = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "projection_dim": 64}
    config = CLIPConfig(
        text_config={
            **common,
            "num_hidden_layers": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": MAX_LENGTH,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={**common, "num_hidden_layers": 3, "image_size": image_size, "patch_size": 8},
        projection_dim=64,
    )
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    return CLIPModel(config), CLIPProcessor(image_processor=image_processor, tokenizer=tokenizer)
