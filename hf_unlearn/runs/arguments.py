"""Arguments of a run: command line over YAML over defaults, each value checked by its config's own parser."""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from transformers import HfArgumentParser

from hf_unlearn.data.config import DataConfig
from hf_unlearn.errors import UserError, listed
from hf_unlearn.methods import METHODS, PAPER_METHODS, load_method
from hf_unlearn.methods.retrain import RetrainConfig
from hf_unlearn.models.adapters import ALL_LINEAR, require_peft
from hf_unlearn.runs.options import INITIAL, MODEL, PRETRAIN, Option, grouped_options, read_yaml, yaml_value
from hf_unlearn.runs.shipped import config_file
from hf_unlearn.training.config import UnlearningConfig, refuse_evaluating

if TYPE_CHECKING:
    from peft import LoraConfig

T = TypeVar("T")
EARLIER_TRAININGS = (PRETRAIN, INITIAL)
OPENMOJI = "openmoji"  # the embedded dataset
FAMILY = "family"  # what kind of small encoder that architecture is
FAMILIES = ("clip", "simclr", "moco")
UNLEARN = ("unlearn_fraction", "unlearn_request", "unlearn_where")  # ways to say what is unlearned
# Options that say where all trainings run, the base model's own among them.
_OF_THE_MACHINE = ("use_cpu", "ddp_backend", "ddp_timeout")
# Options of an adapter, as TRL names them: what peft calls them, and their defaults.
LORA: dict[str, tuple[str, Any]] = {
    "lora_r": ("r", 16),
    "lora_alpha": ("lora_alpha", 32),
    "lora_dropout": ("lora_dropout", 0.0),
    "lora_target_modules": ("target_modules", None),
}


@dataclass
class RunArguments:
    """What is unlearned from which model, by which methods, and where the results go."""

    dataset_name: str = field(
        default=OPENMOJI, metadata={"help": "openmoji, a Hub id, an imagefolder, parquet, or a saved dataset."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Revision of a Hub dataset."})
    image_column: str = field(default="image", metadata={"help": "Column that holds the pictures."})
    caption_column: str | None = field(default=None, metadata={"help": "Column of captions: strings or lists."})
    label_column: str | None = field(default=None, metadata={"help": "Column of class labels, for the probes."})
    id_column: str | None = field(
        default=None,
        metadata={"help": "Column of ids; default: id, the paths in a folder of images, or else row numbers."},
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read retain from parquet or WebDataset shards as it is needed; for data that does not fit."},
    )
    max_eval_samples: int | None = field(
        default=None,
        metadata={"help": "With streaming: most rows of retain, validation and test measured on (default 10,000)."},
    )
    num_samples: int | None = field(
        default=None, metadata={"help": "Use this many rows of a dataset, drawn by split_seed; default: all."}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Encoder to unlearn from; default: a small one pre-trained on the dataset."}
    )
    model_revision: str | None = field(default=None, metadata={"help": "Revision of a Hub model."})
    initial_model: str | None = field(
        default=None,
        metadata={"help": "Model that the encoder was fine-tuned from; Retrain starts there, not from new weights."},
    )
    initial_revision: str | None = field(default=None, metadata={"help": "Revision of a Hub's initial model."})
    initial_where: str | None = field(
        default=None,
        metadata={
            "help": "Rows by column, category=Flags, that a small initial model is pre-trained on; no split has them."
        },
    )
    vision_model: str | None = field(
        default=None,
        metadata={"help": "Vision model, such as a ViT or DINOv2, to start a SimCLR or MoCo from; then pre-trained."},
    )
    vision_revision: str | None = field(default=None, metadata={"help": "Revision of a Hub's vision model."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code a Hub model brings along."})
    methods: list[str] = field(
        default_factory=lambda: list(PAPER_METHODS),
        metadata={"help": "Methods to run, in order; default: the paper's."},
    )
    use_peft: bool = field(
        default=False, metadata={"help": "Train a LoRA adapter and leave the model's own weights as they are."}
    )
    lora_r: int | None = field(default=None, metadata={"help": "Rank of the adapter (default 16)."})
    lora_alpha: int | None = field(
        default=None, metadata={"help": "The adapter's change is scaled by lora_alpha / lora_r (default 32)."}
    )
    lora_dropout: float | None = field(default=None, metadata={"help": "Dropout before the adapter (default 0)."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Layers to adapt, by the end of their names; default: all linear ones, and convolutions."},
    )
    retrain_model: str | None = field(
        default=None, metadata={"help": "A finished Retrain checkpoint to measure gaps against."}
    )
    save_dtype: str | None = field(
        default=None,
        metadata={"help": "Type of the saved weights: float32, bfloat16 or float16; default: the base model's."},
    )
    save_format: str | None = field(
        default=None,
        metadata={"help": "transformers, open_clip or sentence_transformers; default: the form the model came in."},
    )
    output_dir: str = field(default="runs/unlearn", metadata={"help": "Folder of the results."})
    resume: bool = field(
        default=False, metadata={"help": "Go on with the run in output_dir: what is finished is not run again."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace the run that output_dir holds."})
    unlearn_fraction: float | None = field(
        default=None, metadata={"help": "Share of train to unlearn, drawn at random."}
    )
    unlearn_request: str | None = field(default=None, metadata={"help": "File of ids to unlearn: txt, csv or json."})
    unlearn_where: str | None = field(default=None, metadata={"help": "Rows to unlearn by column: owner=alice."})
    split_seed: int = field(default=0, metadata={"help": "Seed of the split."})
    validation_fraction: float = field(default=0.1, metadata={"help": "Share held out for validation."})
    test_fraction: float = field(default=0.1, metadata={"help": "Share held out for the test."})
    duplicates: str = field(
        default="refuse", metadata={"help": "Copies of unlearn images elsewhere: refuse, move or keep."}
    )
    skip_bad_images: bool = field(default=False, metadata={"help": "Leave out bad pictures, never unlearn ones."})
    request_salt: str | None = field(
        default=None, metadata={"help": "Secret for the request's row hashes: who knows it can check a row is in it."}
    )
    earlier_requests: list[str] | None = field(
        default=None,
        metadata={"help": "Request files of earlier runs on this model, where its records cannot tell their rows."},
    )
    audit_samples: int = field(default=6, metadata={"help": "Unlearn samples shown in the heatmaps."})
    show_samples: bool | None = field(
        default=None,
        metadata={"help": "Draw pictures and captions of unlearn samples on the heatmaps; default: openmoji's only."},
    )

    def __post_init__(self) -> None:
        self.methods = [load_method(name) for name in self.methods]
        starts = ("model_name_or_path", "initial_model", "vision_model", "initial_where")
        for one, other in combinations(starts, 2):
            if getattr(self, one) is not None and getattr(self, other) is not None and other not in starts[:2]:
                raise UserError(f"--{other} makes a model to start from, and --{one} names one; give one of them")
        for name in ("initial", "vision"):
            if getattr(self, f"{name}_revision") is not None and getattr(self, f"{name}_model") is None:
                raise UserError(f"--{name}_revision is that of --{name}_model; give both, or neither")
        if self.save_dtype not in (None, "float32", "bfloat16", "float16"):
            raise UserError(f"--save_dtype {self.save_dtype} is unknown; choose float32, bfloat16 or float16")
        if self.save_dtype is not None and self.use_peft:
            raise UserError("--save_dtype is for whole models; an adapter is saved as it was trained, so leave one out")
        if not self.dataset_name.strip():
            raise UserError("--dataset_name is empty; name a dataset, as --help says")
        if self.show_samples is None:  # a card must not show what somebody asked to have removed
            self.show_samples = self.dataset_name == OPENMOJI
        if Path(self.output_dir).exists() and not Path(self.output_dir).is_dir():
            raise UserError(f"--output_dir {self.output_dir} is a file; name a folder")
        for name, least in (("audit_samples", 1), ("num_samples", 4)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise UserError(f"--{name} {getattr(self, name)} must be at least {least}")
        if self.streaming:
            self._check_streaming()
        elif self.max_eval_samples is not None:
            raise UserError("--max_eval_samples bounds what --streaming measures on; give both, or neither")
        chosen = [name for name in UNLEARN if getattr(self, name) is not None]
        if len(chosen) > 1:
            raise UserError(f"--{' and --'.join(chosen)} exclude each other; give one")
        if self.resume and self.overwrite:
            raise UserError("--resume goes on with the run in output_dir, --overwrite replaces it; give one")
        lora = [name for name in LORA if getattr(self, name) is not None]
        if lora and not self.use_peft:
            raise UserError(f"--{lora[0]} describes an adapter; give --use_peft, too")
        if self.use_peft and set(self.methods) == {RetrainConfig.method}:
            raise UserError("Retrain draws every weight anew, which no adapter can hold; leave --use_peft unset")
        whole = [method for method in self.methods if not METHODS[method].adaptable]
        if self.use_peft and whole:
            raise UserError(
                f"--use_peft: no adapter can hold what {listed(whole)} would change, the model's own weights; leave it "
                "unset, or run other methods"
            )

    def _check_streaming(self) -> None:
        """Refuse what needs every row at hand."""
        if self.model_name_or_path is None or self.unlearn_request is None:
            raise UserError("--streaming needs --model_name_or_path and --unlearn_request, a file of ids")
        if self.dataset_name == OPENMOJI:
            raise UserError("--streaming reads shards; name their folder or Hub dataset with --dataset_name")
        if self.max_eval_samples is not None and self.max_eval_samples < 2:
            raise UserError(f"--max_eval_samples {self.max_eval_samples} must be at least 2")
        defaults = {f.name: f.default for f in fields(RunArguments)}
        needing_all = ("num_samples", "validation_fraction", "test_fraction", "duplicates")
        for name in needing_all:
            if getattr(self, name) != defaults[name]:
                raise UserError(f"--{name} would need every row at hand, which --streaming never has; leave it unset")


def get_peft_config(arguments: RunArguments) -> "LoraConfig | None":
    """The LoRA config that a run's arguments describe; None without `use_peft`.

    Raises:
        UserError: when peft is not installed, or a value is out of range.
    """
    if not arguments.use_peft:
        return None
    given = {name: getattr(arguments, name) for name in LORA}
    settings = {own: default if given[name] is None else given[name] for name, (own, default) in LORA.items()}
    if settings["target_modules"] == [ALL_LINEAR]:
        settings["target_modules"] = ALL_LINEAR  # peft's word for all of them, not the name of one
    try:
        return require_peft().LoraConfig(**settings)
    except ValueError as error:
        raise UserError(f"--use_peft: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True)
class Run:
    """Parsed arguments: the run's own, the data's, a config per method and earlier training, and the model's kind."""

    arguments: RunArguments
    methods: dict[str, UnlearningConfig]
    pretrain: RetrainConfig
    initial: RetrainConfig
    data: DataConfig
    model: dict[str, Any] = field(default_factory=dict)
    family: str | None = None


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help and hf-unlearn methods NAME list the options")


def parse_run(argv: Sequence[str] | None = None, default_config: str | Path | None = None) -> Run:
    """Parse a recipe's arguments.

    `--config FILE` names a YAML file, or a config of the package, with the fields of `RunArguments`, any field of a
    method's config for all methods, and sections named after a method for one of them, `pretrain` for the base model's
    training, `model` for its architecture and `family` for its kind. On the command line `--beta 1` reaches every
    chosen method that has the field and `--alignment_calibration.beta 1` that method alone.

    Args:
        argv: arguments; default `sys.argv[1:]`.
        default_config: YAML file, or a config of the package, when neither `--config` nor `--model_name_or_path` is
            given.

    Raises:
        UserError: naming the argument that is unknown, of the wrong type or out of range.
    """
    options = grouped_options(sys.argv[1:] if argv is None else argv)
    configs = [values[0] for name, values in options if name == "config" and values]
    given = {name for name, _ in options}
    if not configs and default_config is not None and "model_name_or_path" not in given:
        configs = [str(default_config)]
    named = [" ".join(values) for name, values in options if name == FAMILY]
    options = [(name, values) for name, values in options if name not in ("config", FAMILY)]
    general, sections, model = read_yaml(config_file(configs[-1])) if configs else ([], {}, {})
    family = _family([*[" ".join(values) for name, values in general if name == FAMILY], *named])
    model |= {name.partition(".")[2]: yaml_value(name, v) for name, v in options if name.startswith(f"{MODEL}.")}
    options = [(name, values) for name, values in options if not name.startswith(f"{MODEL}.")]
    general = [(name, values) for name, values in general if name not in (FAMILY, *displaced(given))]
    arguments = _parse(RunArguments, [(n, v) for n, v in [*general, *options] if n in _names(RunArguments)])
    data = _parse(DataConfig, [(n, v) for n, v in [*general, *options] if n in _names(DataConfig)])
    own = _names(RunArguments) | _names(DataConfig)
    dotted = [(name, values) for name, values in options if "." in name]
    shared_yaml = [option for option in general if option[0] not in own]
    shared = [(name, values) for name, values in options if name not in own and "." not in name]
    targets: dict[str, type[UnlearningConfig]] = {m: METHODS[m].config_class for m in arguments.methods}
    targets |= dict.fromkeys(EARLIER_TRAININGS, RetrainConfig)
    _check_names(shared_yaml + shared, targets)
    _check_dotted(dotted, targets)
    of_sections = [(f"{section}.{name}", value) for section, given in sections.items() for name, value in given]
    _check_dotted(of_sections, {method: trainer.config_class for method, trainer in METHODS.items()} | targets)
    parsed = {}
    for target, config_class in targets.items():
        names = _names(config_class)
        alone = [(name.partition(".")[2], values) for name, values in dotted if name.partition(".")[0] == target]
        # The base model's own training is set in its section alone: --num_train_epochs means the unlearning's.
        reaching = [(n, v) for n, v in shared if target not in EARLIER_TRAININGS or n in _OF_THE_MACHINE]
        usable = [*shared_yaml, *sections.get(target, []), *reaching, *alone]
        folder = Path(arguments.output_dir) / target
        parsed[target] = _parse(config_class, [*(o for o in usable if o[0] in names), ("output_dir", [str(folder)])])
    for config in parsed.values():
        refuse_evaluating(config)
    pretrain, initial = (parsed.pop(section) for section in EARLIER_TRAININGS)
    assert isinstance(pretrain, RetrainConfig) and isinstance(initial, RetrainConfig)
    return Run(arguments, parsed, pretrain, initial, data, model, family)


def _family(named: list[str]) -> str | None:
    """The family that the config and the command line agree in, if any says one."""
    if unknown := [name for name in named if name not in FAMILIES]:
        raise UserError(f"family {unknown[0]!r} is unknown; choose from {', '.join(FAMILIES)}")
    if len(set(named)) > 1:
        raise UserError(f"the config is for the family {named[0]}, and --family says {named[-1]}; name one of them")
    return named[-1] if named else None


def displaced(given: set[str]) -> tuple[str, ...]:
    """Fields of a config file that the options given on the command line stand in for, whatever they are called."""
    return UNLEARN if given & set(UNLEARN) else ()


def _names(config_class: type[Any]) -> set[str]:
    return {f.name for f in fields(config_class)}


def _check_names(shared: list[Option], targets: dict[str, type[UnlearningConfig]]) -> None:
    """Every option must reach some config."""
    known = _names(RunArguments) | _names(DataConfig)
    known |= {name for config_class in targets.values() for name in _names(config_class)}
    for name, _ in shared:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"; did you mean --{close[0]}?" if close else ""
            raise UserError(f"unknown option --{name}{hint or '; see the README for what there is'}")


def _check_dotted(dotted: list[Option], targets: dict[str, type[UnlearningConfig]]) -> None:
    """What is said of one method must be one of its settings."""
    for name, _ in dotted:
        target, _, field_name = name.partition(".")
        if target not in targets:
            raise UserError(f"--{name}: {target!r} is not among the methods of this run ({', '.join(targets)})")
        said = "how the data is read" if field_name in _names(DataConfig) else "where all trainings run"
        if field_name in (*_names(DataConfig), *_OF_THE_MACHINE):
            raise UserError(
                f"--{name}: {field_name} says {said}, once for all methods; give it as --{field_name}, or at the top "
                "of the config file"
            )
        names = _names(targets[target])
        if field_name not in names:
            close = get_close_matches(field_name, names, n=1)
            hint = f"; did you mean --{target}.{close[0]}?" if close else f"; hf-unlearn methods {target} lists them"
            raise UserError(f"--{name}: {targets[target].description.title} has no such option{hint}")


def _parse(config_class: type[T], options: list[Option]) -> T:
    tokens = [token for name, values in options for token in (f"--{name}", *values)]
    parser: ArgumentParser = _Parser(config_class, allow_abbrev=False)  # type: ignore[arg-type]
    try:
        return parser.parse_args_into_dataclasses(tokens, look_for_args_file=False)[0]  # type: ignore[attr-defined]
    except (ValueError, TypeError, OSError) as error:  # a config's own checks, or the parser's, or a file it names
        raise UserError(f"{config_class.__name__}: {error}") from error
