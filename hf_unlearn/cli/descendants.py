"""`hf-unlearn descendants`: models on the Hub that descend from one that was unlearned."""

from typing import Annotated

import typer


def descendants(
    old: Annotated[str, typer.Argument(help="The model before unlearning, as owner/name.")],
    new: Annotated[str | None, typer.Option(help="The unlearned model, for the line of the old card.")] = None,
    token: Annotated[str | None, typer.Option(help="Token that can see private models.")] = None,
) -> None:
    """List the Hub's models that name OLD as their base, directly or through others, so that they can be told."""
    from hf_unlearn.hub.descendants import MOST, find_descendants
    from hf_unlearn.text import printable

    found, complete = find_descendants(old, token)
    for model in found:
        print(printable(f"{'  ' * (model.distance - 1)}{model.repo_id}  (from {model.base})"))
    print(f"{len(found)} models descend from {printable(old)}." if found else f"No model names {printable(old)}.")
    if not complete:
        print(f"The list ends at {MOST}; there are more.")
    print(f"\nFor the metadata of the old card:\nnew_version: {printable(new or 'owner/name-of-the-unlearned-model')}")
