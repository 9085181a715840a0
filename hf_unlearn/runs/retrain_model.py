"""A Retrain that the user brings along, to measure gaps against."""

import logging
from pathlib import Path

from hf_unlearn.errors import UserError
from hf_unlearn.methods.retrain import RetrainConfig
from hf_unlearn.models.weights import has_weights, weights_sha256
from hf_unlearn.records.file_names import MANIFEST_NAME
from hf_unlearn.records.schemas import BaseModel, UnlearningManifest
from hf_unlearn.runs.run_data import UnlearningTask

logger = logging.getLogger(__name__)


def check_retrain(name_or_path: str, base: BaseModel, task: UnlearningTask) -> None:
    """Refuse the base model, and a checkpoint whose own record says that it is no Retrain, or one on other rows."""
    if has_weights(name_or_path) and weights_sha256(name_or_path) == base.sha256:
        raise UserError(
            f"--retrain_model {name_or_path} is the base model itself; name one trained without the requested rows"
        )
    if not (Path(name_or_path) / MANIFEST_NAME).is_file():
        logger.info("That %s was retrained without the requested rows is taken on trust.", name_or_path)
        return
    record = UnlearningManifest.load(name_or_path)
    if record.method != RetrainConfig.method:
        raise UserError(f"--retrain_model {name_or_path} is of {record.method}, not of retrain; name a Retrain")
    if record.retain_sha256 is not None:
        same = record.retain_sha256 == task.retain_sha256
    else:  # a record that does not tell its rows is compared by its request
        asked, own = record.request, task.request
        same = asked.salted != own.salted or asked.sha256 == own.sha256
    if not same:
        raise UserError(
            f"--retrain_model {name_or_path} was trained on other rows than this run retains; name a Retrain on "
            "the data without this request's rows and those of earlier ones, with the same rows held out, or train one "
            "in this run: --methods retrain and others"
        )
