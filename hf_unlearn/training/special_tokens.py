"""The token numbers of a model's config stay what they were: the Trainer replaces them by its tokenizer's."""

from torch import nn
from transformers import TrainerCallback

from hf_unlearn.models.contrastive import unwrap

# Which logger says that a config was aligned with its tokenizer, and how: it is put back at once.
ALIGNMENT_REPORT = ("transformers.trainer_utils", "The tokenizer has new PAD/BOS/EOS tokens")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


class OwnTokens(TrainerCallback):
    """Puts back the special tokens of a text encoder's config, which `Trainer.train` aligns with the tokenizer's.

    They say where CLIP reads a text: at its greatest token where `eos_token_id` is 2, as in OpenAI's and OpenCLIP's
    checkpoints. The model was built by the number that it came with and is trained by that; saved with another one, it
    would be another model than the one that was measured.

    Args:
        model: the model to train.
    """

    def __init__(self, model: nn.Module) -> None:
        config = unwrap(model).config
        self._config = config.get_text_config()  # type: ignore[union-attr,operator]
        self._tokens = {name: getattr(self._config, name) for name in _TOKENS if hasattr(self._config, name)}

    def on_train_begin(self, *_: object, **kwargs: object) -> None:
        """Put back what they were when the trainer was built."""
        for name, token in self._tokens.items():
            setattr(self._config, name, token)
