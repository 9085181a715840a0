from audit.conftest import arms, captions, checkpoints, endpoint, small_plots  # noqa: F401  (fixtures for test_audit)
