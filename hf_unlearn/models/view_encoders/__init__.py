"""The code of SimCLR and MoCo, as it travels with a model: `hf_unlearn.models.simclr` and `.moco` register it."""
