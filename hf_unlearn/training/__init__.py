"""What trainers share: the Trainer itself, its config, guards, checkpoints and masks."""
