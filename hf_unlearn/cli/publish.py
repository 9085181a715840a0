"""`hf-unlearn publish`: send a finished run to the Hub, or say what would be sent."""

from pathlib import Path
from typing import Annotated

import typer


def publish(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    repo: Annotated[str, typer.Option(help="Repository on the Hub, as owner/name.")],
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Visibility of a repository that is created now.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to; created if there is none.")] = None,
    create_pr: Annotated[
        bool, typer.Option("--create_pr", help="Open a pull request, for instance against the base model's repository.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry_run", help="Send nothing; list what would be sent.")] = False,
    show_samples: Annotated[
        bool, typer.Option("--show_samples", help="Publish heatmaps although they show the requested samples.")
    ] = False,
    sign: Annotated[
        Path | None, typer.Option(help="Private key (EC, PEM): add evidence and sign everything with it.")
    ] = None,
    token: Annotated[str | None, typer.Option(help="Token with write access; default: the one logged in with.")] = None,
) -> None:
    """Publish a run to the Hub in one commit: weights, processor, records, pictures and card, checked first."""
    from hf_unlearn.hub.publishing import publish_run
    from hf_unlearn.text import printable

    result = publish_run(
        run,
        repo,
        private=private,
        revision=revision,
        create_pr=create_pr,
        dry_run=dry_run,
        show_samples=show_samples,
        token=token,
        sign=sign,
    )
    width = max(len(file.name) for file in result.files)
    print(f"{'Sent' if result.sent else 'Would send'} to {result.repo_id}:")
    for file in result.files:
        print(f"  {printable(file.name):{width}}  {file.size:>13,} bytes")
    print(f"  {'total':{width}}  {sum(file.size for file in result.files):>13,} bytes")
    if result.removed is None:
        print("What the repository holds now could not be looked up, so what would be removed is not listed.")
    for name in result.removed or ():
        print(f"{'Removed' if result.sent else 'Would remove'} from the repository: {printable(name)}")
    if result.kept_back:
        print(f"Never sent: {printable(', '.join(result.kept_back))}")
    if result.sent:
        print(printable(result.pull_request or result.commit_url))
