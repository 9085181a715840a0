"""The initial model that a checkpoint's record names: its estimated gap is to what that model predicts."""

from dataclasses import dataclass
from pathlib import Path

from hf_unlearn.data.openmoji import cache_folder
from hf_unlearn.errors import UserError
from hf_unlearn.hub.manifest import describe_base_model
from hf_unlearn.hub.verification_report import Outcome, Statement, held, judged, unchecked
from hf_unlearn.models.weights import has_weights, weights_sha256
from hf_unlearn.records.file_names import MANIFEST_NAME
from hf_unlearn.records.schemas import COMMIT, BaseModel, UnlearningManifest
from hf_unlearn.runs.command_line import Run
from hf_unlearn.runs.evaluation import ImageTextEvaluator
from hf_unlearn.runs.experiment import Experiment
from hf_unlearn.runs.initial import called, recorded_initial
from hf_unlearn.runs.run_data import UnlearningTask

SUBJECT = "initial model"


@dataclass(frozen=True)
class Measuring:
    """An experiment that measures a finished checkpoint as the run did that left it, as far as that is possible.

    Attributes:
        experiment: on the rows and with the base model that the options name.
        standing: what is to be said of the initial model; None where there is none.
    """

    experiment: Experiment
    standing: Statement | None

    @property
    def is_alike(self) -> bool:
        """Whether the estimated gap is of the recorded kind: no initial model, the recorded one, or views."""
        held = self.standing is None or self.standing.outcome is Outcome.HOLDS
        return held or self.experiment.evaluator.family != ImageTextEvaluator.family


def measuring(run: Run, task: UnlearningTask, base: str, checkpoint: str) -> Measuring:
    """Load what measures a finished checkpoint.

    Where its record names an initial model and the options name none, that one is taken if it is at hand: a folder of
    its name in the working directory, beside the base model or in the cache, or the commit on the Hub, with the
    recorded weights. No code of it runs.

    Args:
        run: the options.
        task: splits and request.
        base: the model before unlearning.
        checkpoint: its folder; one without a record, or on the Hub, says nothing of an initial model.

    Raises:
        UserError: as `Experiment` does.
    """
    folder, arguments = Path(checkpoint), run.arguments
    if not (folder / MANIFEST_NAME).is_file():
        return Measuring(Experiment(run, task, base), None)
    record = UnlearningManifest.load(folder)
    recorded, why = recorded_initial(record), ""
    # That foreign code may run was said of the models that the options name.
    if recorded is not None and arguments.initial_model is None and not arguments.trust_remote_code:
        try:
            found = _at_hand(recorded, record.base_model, base, arguments.model_revision)
            if found is not None:
                arguments.initial_model, arguments.initial_revision = found
                experiment = Experiment(run, task, base)
                return Measuring(experiment, _standing(recorded, experiment))
        except UserError as error:  # the checkpoint itself can be measured without
            arguments.initial_model = arguments.initial_revision = None
            why = f" ({error})"
    experiment = Experiment(run, task, base)
    return Measuring(experiment, _standing(recorded, experiment, why))


def _at_hand(
    recorded: BaseModel, base: BaseModel, own_base: str, base_revision: str | None
) -> tuple[str, str | None] | None:
    """Where the recorded initial model is read from, and its revision, if it is here and the base is the recorded one.

    Whatever the record says, a local name leads into no other folder, and a Hub's is read from the Hub.
    """
    own, _ = describe_base_model(own_base, base_revision)
    name, commit = recorded.name_or_path, recorded.revision
    if base.sha256 != own.sha256:
        return None
    if commit is not None:
        if not COMMIT.fullmatch(commit) or Path(name).exists():
            return None
        found, _ = describe_base_model(name, commit)
        return (name, commit) if recorded.sha256 in (None, found.sha256) else None
    if Path(name).name != name:
        return None
    places = (Path(name), Path(own_base).resolve().parent / name, cache_folder() / name)
    same = (str(place) for place in places if has_weights(place) and weights_sha256(place) == recorded.sha256)
    return next(((place, None) for place in same), None)


def _standing(recorded: BaseModel | None, experiment: Experiment, why: str = "") -> Statement | None:
    """What is to be said of the initial model that was used beside the recorded one."""
    used = None if experiment.initial is None else experiment.initial.record
    predicts = experiment.evaluator.family == ImageTextEvaluator.family
    kind = "the estimated gap here is of another kind than the recorded one" if predicts else "no figure depends on it"
    if recorded is None:
        told = f"{used.name_or_path} is named here, and none recorded; {kind}" if used is not None else None
        return None if told is None else unchecked(SUBJECT, told)
    name = called(recorded)
    if used is None:
        return unchecked(SUBJECT, f"the recorded {name} is not used here{why}, so {kind}; name it with --initial_model")
    if recorded.sha256 is None:
        if recorded.revision is not None and name == called(used):
            return held(SUBJECT, f"{name}, by its commit")
        return unchecked(SUBJECT, f"whether {called(used)} is the recorded {name} cannot be seen: no hash was recorded")
    problem = f"SHA-256 is {used.sha256}, recorded {recorded.sha256} of {name}; {kind}"
    return judged(SUBJECT, used.sha256 == recorded.sha256, f"SHA-256 {used.sha256}", problem)
