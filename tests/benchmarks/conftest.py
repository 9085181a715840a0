from trainers import encoder, loss_of_batch, make_trainer, splits  # noqa: F401  (fixtures)
