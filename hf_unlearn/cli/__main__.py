"""`python -m hf_unlearn.cli` is `hf-unlearn`."""

from hf_unlearn.cli import main

main()
