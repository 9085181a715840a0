from trainers import _libraries_are_no_garbage, encoder, loss_of_batch, make_trainer, splits  # noqa: F401  (fixtures)
