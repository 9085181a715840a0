"""How a program of this library ends on bad input: one sentence, a non-zero exit, and a traceback on request."""

import os
import sys
from collections.abc import Callable

from hf_unlearn.errors import UserError


def guarded(main: Callable[[], None]) -> None:
    """Run a program; print a `UserError` as one sentence and exit with status 2, unless `--debug` is given."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        main()
    except UserError as error:
        if debug:
            raise
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
