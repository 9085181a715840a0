"""`hf-unlearn card`: write a run's model card, check one, or keep a copy of it without the weights."""

from pathlib import Path
from typing import Annotated

import typer


def card(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 if the card was edited by hand.")
    ] = False,
    copy_to: Annotated[
        Path | None, typer.Option(help="Also copy card, records and pictures here, without the weights.")
    ] = None,
) -> None:
    """Write README.md into a run's folder, from unlearning.json and evaluation.json."""
    from hf_unlearn.errors import UserError
    from hf_unlearn.hub.card import keep_card, write_card
    from hf_unlearn.hub.verification import check_card
    from hf_unlearn.text import printable

    if check and copy_to is not None:
        raise UserError("--check writes nothing, so --copy-to cannot go with it; give one of the two.")
    if check:
        problems = check_card(run)
        for line in problems:
            print(printable(f"{line.subject}: {line.detail}"))
        if problems:
            raise typer.Exit(1)
        print(f"{run.name}: the card is as generated.")
        return
    print(write_card(run))
    if copy_to is not None:
        print(keep_card(run, copy_to))
