from trainers import encoder  # noqa: F401  (a fixture)
