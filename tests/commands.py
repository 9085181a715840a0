"""The command line in this process: a new interpreter takes ten seconds of a processor to import the libraries."""

import pytest

from hf_unlearn.cli import dispatch


def ends(*words: object) -> object:
    """The status that a command ends with."""
    with pytest.raises(SystemExit) as ended:
        dispatch([*map(str, words)])
    return ended.value.code or 0
