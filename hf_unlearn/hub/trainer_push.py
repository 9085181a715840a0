"""`trainer.push_to_hub()` for unlearning: the trained model with its card and records, and nothing of the training."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hf_unlearn.hub.card import write_card
from hf_unlearn.hub.manifest import UnlearningManifest
from hf_unlearn.hub.publishing import PublishResult, publish_run

if TYPE_CHECKING:
    from transformers import Trainer


def push_trainer(
    trainer: "Trainer",
    record: Callable[[Path], UnlearningManifest],
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    show_samples: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
) -> PublishResult | None:
    """Save a trainer's model into its `output_dir`, write its records and card there, and publish the folder.

    The Trainer's own `push_to_hub` uploads the whole output folder, the pickled arguments with the token in them
    included; this sends the files that `hf_unlearn.hub.contents` lists. `audit.json`, where the folder holds one, goes
    along.

    Args:
        trainer: A Trainer; its `hub_model_id`, `hub_private_repo`, `hub_revision` and `hub_token` apply where the
            arguments here are None. Without a `hub_model_id` the repository is called like the output folder.
        record: Writes `unlearning.json` into the folder it is given, such as `functools.partial(record_run, ...)`.
        private: As for `publish_run`, as are the others.
        revision: A branch.
        create_pr: Open a pull request instead of committing.
        dry_run: Only say what would be sent.
        show_samples: Publish heatmaps that show the requested samples.
        token: A token with write access.
        commit_message: The commit's first line.

    Returns:
        What was sent; None on every process but the first.

    Raises:
        UserError: As `publish_run` does.
    """
    arguments = trainer.args
    folder = Path(str(arguments.output_dir))
    trainer.save_model(str(folder), _internal_call=True)  # every process takes part; the flag keeps it from pushing
    if not trainer.is_world_process_zero():
        return None
    record(folder)
    write_card(folder)
    return publish_run(
        folder,
        arguments.hub_model_id or folder.resolve().name,
        private=arguments.hub_private_repo if private is None else private,
        revision=revision or arguments.hub_revision,
        create_pr=create_pr,
        dry_run=dry_run,
        show_samples=show_samples,
        token=token or arguments.hub_token,
        commit_message=commit_message,
    )
