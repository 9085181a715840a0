"""Arguments of a run: command line over YAML over defaults, each value checked by its config's own parser."""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from transformers import HfArgumentParser

from hf_unlearn.data.config import DataConfig
from hf_unlearn.errors import UserError
from hf_unlearn.methods import METHODS
from hf_unlearn.methods.retrain import RetrainConfig
from hf_unlearn.runs.options import INITIAL, MODEL, PRETRAIN, Option, grouped_options, read_yaml, yaml_value
from hf_unlearn.runs.run_arguments import UNLEARN, RunArguments
from hf_unlearn.runs.shipped import config_file
from hf_unlearn.training.config import UnlearningConfig, refuse_evaluating

T = TypeVar("T")
EARLIER_TRAININGS = (PRETRAIN, INITIAL)
FAMILY = "family"  # what kind of small encoder that architecture is
FAMILIES = ("clip", "simclr", "moco")
# Options that say where all trainings run, the base model's own among them.
_OF_THE_MACHINE = ("use_cpu", "ddp_backend", "ddp_timeout")


@dataclass(frozen=True)
class Run:
    """Parsed arguments: the run's own, the data's, a config per method and earlier training, and the model's kind."""

    arguments: RunArguments
    methods: dict[str, UnlearningConfig]
    pretrain: RetrainConfig
    initial: RetrainConfig | None
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
    targets |= {PRETRAIN: RetrainConfig} | ({INITIAL: RetrainConfig} if arguments.initial_where is not None else {})
    _check_names(shared_yaml + shared, targets)
    _check_dotted(dotted, targets)
    of_sections = [(f"{section}.{name}", value) for section, given in sections.items() for name, value in given]
    _check_dotted(of_sections, {**_configs(), **dict.fromkeys(EARLIER_TRAININGS, RetrainConfig)})
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
    pretrain, initial = (parsed.pop(section, None) for section in EARLIER_TRAININGS)
    assert isinstance(pretrain, RetrainConfig) and isinstance(initial, RetrainConfig | None)
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
    starts = ("initial_where",) if given & {"model_name_or_path", "initial_model", "vision_model"} else ()
    return starts + (UNLEARN if given & set(UNLEARN) else ())


def _configs() -> dict[str, type[UnlearningConfig]]:
    return {method: trainer.config_class for method, trainer in METHODS.items()}


def _names(config_class: type) -> set[str]:
    return {f.name for f in fields(config_class)}


def _check_names(shared: list[Option], targets: dict[str, type[UnlearningConfig]]) -> None:
    """Every option must reach some config."""
    known = _names(RunArguments) | _names(DataConfig)
    known |= {name for config_class in targets.values() for name in _names(config_class)}
    for name, _ in shared:
        if name not in known:
            close = get_close_matches(name, [*sorted(known), "config", "family"], n=1)
            hint = f"did you mean --{close[0]}?" if close else "--help lists what there is"
            raise UserError(f"unknown option --{name}; {hint}")


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
    except (ValueError, TypeError, OSError, ImportError) as error:  # its own checks, the parser's, what it names
        raise UserError(f"{config_class.__name__}: {error}") from error
