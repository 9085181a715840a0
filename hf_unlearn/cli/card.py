"""`hf-unlearn card`: write a run's model card, check one, or keep a copy of it without the weights."""

from pathlib import Path
from typing import Annotated

import typer


def card(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 if the card was edited by hand.")
    ] = False,
    with_evidence: Annotated[
        bool, typer.Option("--evidence", help="Also write the removal statement, bill of materials and erasure record.")
    ] = False,
    copy_to: Annotated[
        Path | None, typer.Option("--copy_to", help="Also copy card, records and pictures here, without the weights.")
    ] = None,
) -> None:
    """Write README.md into a run's folder, from unlearning.json and evaluation.json."""
    from hf_unlearn.errors import UserError
    from hf_unlearn.hub.card import keep_card, refuse_copy, write_card
    from hf_unlearn.hub.evidence import write_evidence
    from hf_unlearn.hub.verification import check_card
    from hf_unlearn.text import printable

    if check and (copy_to is not None or with_evidence):
        raise UserError("--check writes nothing, so neither --copy_to nor --evidence can go with it; give one of them.")
    if check:
        problems = check_card(run)
        for line in problems:
            print(printable(f"{line.subject}: {line.detail}"))
        if problems:
            raise typer.Exit(1)
        print(f"{run.name}: the card is as generated.")
        return
    if copy_to is not None:
        refuse_copy(run, copy_to)
    print(write_card(run))
    if with_evidence:
        for path in write_evidence(run):
            print(path)
    if copy_to is not None:
        print(keep_card(run, copy_to))
