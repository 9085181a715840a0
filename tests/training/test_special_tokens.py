"""A training leaves the special tokens of a config as they were, and nothing says otherwise."""

import logging


def test_a_config_keeps_its_tokens_and_no_warning_says_otherwise(make_trainer, encoder):
    model, _ = encoder("clip")
    text, said = model.config.text_config, []
    text.bos_token_id = other = text.bos_token_id + 1
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("transformers.trainer_utils")
    logger.addHandler(handler)
    try:
        make_trainer("fine_tune", given_model=model, max_steps=1, per_device_train_batch_size=12).train()
    finally:
        logger.removeHandler(handler)
    assert text.bos_token_id == other and not [line for line in said if "aligned accordingly" in line]
