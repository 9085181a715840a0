"""What a run is told: command line over YAML over defaults, each value checked by its config's own parser."""

import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from transformers import HfArgumentParser

from hf_unlearn.data.config import DataConfig
from hf_unlearn.errors import UserError, listed
from hf_unlearn.methods import METHODS
from hf_unlearn.methods.retrain import RetrainConfig
from hf_unlearn.parsing import parse_yaml, read_text
from hf_unlearn.runs.run_arguments import OPENMOJI, PARTED_BY, UNLEARN, RunArguments
from hf_unlearn.training.config import UnlearningConfig, refuse_evaluating

T = TypeVar("T")
Option = tuple[str, list[str]]  # ("learning_rate", ["5e-4"])
Setting = tuple[str, str, list[str]]  # of one section: ("fine_tune", "learning_rate", ["5e-4"])
CONFIGS = Path(__file__).parents[1] / "configs"  # those that come with the package
PRETRAIN = "pretrain"  # the section of the base model's own training
INITIAL = "initial"  # the section of the training of what that starts from
MODEL = "model"  # the section of the architecture to pre-train
EARLIER_TRAININGS = (PRETRAIN, INITIAL)
FAMILY = "family"  # what kind of small encoder that architecture is
FAMILIES = ("clip", "simclr", "moco")
# Options that say where all trainings run, the base model's own among them.
_OF_THE_MACHINE = ("use_cpu", "ddp_backend", "ddp_timeout")
_OF_ALL_TRAININGS = (*_OF_THE_MACHINE, "disable_tqdm")


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
    general, sections, model = read_yaml(config_file(configs[-1])) if configs else ([], {}, {})
    family = _family([" ".join(values) for name, values in [*general, *options] if name == FAMILY])
    alone: list[Setting] = []
    for name, values in options:
        section, dot, field_name = name.partition(".")
        if section == MODEL and dot:
            model[field_name] = parse_yaml(" ".join(values), f"--{name} {' '.join(values)!r}")
        elif dot:
            alone.append((section, field_name, values))
    plain = [option for option in options if "." not in option[0] and option[0] not in ("config", FAMILY)]
    general = [
        option for option in general if option[0] not in (FAMILY, *displaced(given), *_of_other_data(general, plain))
    ]
    arguments = _parse(RunArguments, [option for option in [*general, *plain] if option[0] in _names(RunArguments)])
    data = _parse(DataConfig, [option for option in [*general, *plain] if option[0] in _names(DataConfig)])
    targets: dict[str, type[UnlearningConfig]] = {m: METHODS[m].config_class for m in arguments.methods}
    targets |= {PRETRAIN: RetrainConfig} | ({INITIAL: RetrainConfig} if arguments.initial_where is not None else {})
    _check_names([*general, *plain], targets)
    _check_settings(alone, targets)
    of_sections = [(section, *option) for section, chosen in sections.items() for option in chosen]
    all_targets = {method: trainer.config_class for method, trainer in METHODS.items()}
    _check_settings(of_sections, {**all_targets, **dict.fromkeys(EARLIER_TRAININGS, RetrainConfig)})
    own = _names(RunArguments, DataConfig)
    # Where a model is named, no base is trained: a precision that is not to be had here must not stop the run for it.
    of_all = (*_OF_ALL_TRAININGS, "bf16") if arguments.model_name_or_path is not None else _OF_ALL_TRAININGS
    parsed = {}
    for target, config_class in targets.items():
        # The base model's own training is set in its section alone: --num_train_epochs means the unlearning's.
        reaching = [o for o in plain if target not in EARLIER_TRAININGS or o[0] in of_all]
        usable = [option for option in general if option[0] not in own]
        usable += [(name, values) for section, name, values in of_sections if section == target]
        usable += [option for option in reaching if option[0] not in own]
        usable += [(name, values) for section, name, values in alone if section == target]
        folder = ("output_dir", [str(Path(arguments.output_dir) / target)])
        parsed[target] = _parse(config_class, [*(o for o in usable if o[0] in _names(config_class)), folder])
        refuse_evaluating(parsed[target])
    pretrain, initial = (parsed.pop(section, None) for section in EARLIER_TRAININGS)
    assert isinstance(pretrain, RetrainConfig) and isinstance(initial, RetrainConfig | None)
    return Run(arguments, parsed, pretrain, initial, data, model, family)


def refuse_idle_sections(argv: Iterable[str], arguments: RunArguments) -> None:
    """Refuse what a command line says of a base model that is not trained; sections of its config may stay.

    Raises:
        UserError: naming the option, and what makes it idle.
    """
    named = next((name for name in ("model_name_or_path", "initial_model") if getattr(arguments, name)), None)
    idle = {"model_name_or_path": (MODEL, *EARLIER_TRAININGS), "initial_model": (MODEL,)}.get(named or "", ())
    for name, _ in grouped_options(argv):
        section, dot, _ = name.partition(".")
        if dot and section in idle:
            what = "architecture" if section == MODEL else "training"
            raise UserError(
                f"--{name} would have no effect: it is of the {what} of a model that a run makes, and --{named} names "
                "one; leave it out"
            )


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


def _of_other_data(general: list[Option], plain: list[Option]) -> tuple[str, ...]:
    """Fields of a config of the embedded data that say how that is parted, where the command line names other data."""
    of_config, given = (dict(options).get("dataset_name", [OPENMOJI]) for options in (general, plain))
    return PARTED_BY if of_config == [OPENMOJI] != given else ()


def _names(*kinds: type) -> set[str]:
    return {f.name for kind in kinds for f in fields(kind)}


def _check_names(options: list[Option], targets: Mapping[str, type[UnlearningConfig]]) -> None:
    """Every option must reach some config."""
    known = _names(RunArguments, DataConfig, *targets.values())
    for name, _ in options:
        if name not in known:
            if owners := [method for method, trainer in METHODS.items() if name in _names(trainer.config_class)]:
                run = ", ".join(method for method in targets if method not in EARLIER_TRAININGS)
                raise UserError(
                    f"--{name} is an option of {listed(owners)}, which this run has not ({run}); leave it out"
                )
            close = get_close_matches(name, [*sorted(known), "config", "family"], n=1)
            hint = f"did you mean --{close[0]}?" if close else "--help lists what there is"
            raise UserError(f"unknown option --{name}; {hint}")


def _check_settings(alone: list[Setting], targets: Mapping[str, type[UnlearningConfig]]) -> None:
    """What is said of one method must be one of its settings."""
    for target, name, _ in alone:
        option = f"--{target}.{name}"
        if target not in targets:
            raise UserError(f"{option}: {target!r} is not among the methods of this run ({', '.join(targets)})")
        said = "how the data is read" if name in _names(DataConfig) else "where all trainings run"
        if name in (*_names(DataConfig), *_OF_THE_MACHINE):
            raise UserError(
                f"{option}: {name} says {said}, once for all methods; give it as --{name}, or at the top of the config "
                "file"
            )
        names = _names(targets[target])
        if name not in names:
            close = get_close_matches(name, names, n=1)
            hint = f"; did you mean --{target}.{close[0]}?" if close else f"; hf-unlearn methods {target} lists them"
            raise UserError(f"{option}: {targets[target].description.title} has no such option{hint}")


@cache
def _parser(config_class: type) -> ArgumentParser:
    """The parser of a config's fields, made once: over a hundred fields take longer than what is parsed with them."""
    return _Parser(config_class, allow_abbrev=False)  # type: ignore[arg-type]


def _made_defaults(config_class: type) -> dict[str, object]:
    return {f.name: f.default_factory() for f in fields(config_class) if f.init and callable(f.default_factory)}


def _parse(config_class: type[T], options: list[Option]) -> T:
    parser = _parser(config_class)  # type: ignore[arg-type]
    parser.set_defaults(**_made_defaults(config_class))  # so that no two configs share a list
    try:
        parsed, *_, unread = parser.parse_args_into_dataclasses(  # type: ignore[attr-defined]
            as_words(options), look_for_args_file=False, return_remaining_strings=True
        )
    except (ValueError, TypeError, OSError, ImportError) as error:  # its own checks, the parser's, what it names
        raise UserError(f"{config_class.__name__}: {error}") from error
    if unread:
        name, values = next(option for option in options if unread[0] in option[1])
        raise UserError(f"--{name} takes one value, and was given {listed(values)}; give it one")
    return parsed


def grouped_options(tokens: Iterable[str]) -> list[Option]:
    """Group `--name value ...` and `--name=value` tokens."""
    options: list[Option] = []
    for token in underscored(tokens):
        if token.startswith("--"):
            name, equals, value = token[2:].partition("=")
            options.append((name, [value] if equals else []))
        elif options:
            options[-1][1].append(token)
        else:
            raise UserError(f"unexpected argument {token!r}; options start with --")
    return options


def as_words(options: Iterable[Option]) -> list[str]:
    """The words of a command line that give these options: what `grouped_options` undoes."""
    return [word for name, values in options for word in (f"--{name}", *values)]


def section_options(section: str, setting: Mapping[str, object]) -> list[str]:
    """The words of a command line that set fields of one section, such as a method."""
    return as_words((f"{section}.{name}", [str(value)]) for name, value in setting.items())


def underscored(tokens: Iterable[str]) -> list[str]:
    """The words of a command line with the names of options spelt as the fields are: `--a-b=c-d` is `--a_b=c-d`."""
    named = [token.partition("=") for token in tokens]
    return [
        (f"--{name[2:].replace('-', '_')}" if name.startswith("--") else name) + equals + value
        for name, equals, value in named
    ]


def read_yaml(path: Path) -> tuple[list[Option], dict[str, list[Option]], dict[str, object]]:
    """A YAML config as general options, one list of options per method, and the model section."""
    content = parse_yaml(read_text(path, "mend it"), f"--config {path}", unique=True)
    if not isinstance(content, dict):
        raise UserError(f"--config {path} must hold a mapping of fields, not {type(content).__name__}")
    model = content.pop(MODEL, None) or {}
    if not isinstance(model, dict):
        raise UserError(f"--config {path}: the section model must be a mapping, not {type(model).__name__}")
    sections = {k: options_of(v) for k, v in content.items() if isinstance(v, dict)}
    unknown = [name for name in sections if name not in (*METHODS, *EARLIER_TRAININGS)]
    if unknown:
        raise UserError(f"--config {path} has a section {unknown[0]!r} that is no method; known: {', '.join(METHODS)}")
    return options_of({k: v for k, v in content.items() if not isinstance(v, dict)}), sections, model


def options_of(content: Mapping[str, object]) -> list[Option]:
    """Values by the names of their options, as a YAML file holds them; one without a value is left out."""
    return [
        (str(name), [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)])
        for name, value in content.items()
        if value is not None
    ]


def shipped_configs() -> list[str]:
    """Names of the shipped configs, sorted."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def config_file(name_or_path: str | Path) -> Path:
    """The YAML file that `--config` means: a file that is there, or else the shipped config of that name.

    Raises:
        UserError: when it is neither, naming what is shipped.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    shipped = shipped_configs()
    if str(name_or_path) in shipped:
        return CONFIGS / f"{name_or_path}.yaml"
    close = get_close_matches(path.stem, shipped, n=3, cutoff=0.4) or shipped
    raise UserError(
        f"--config {name_or_path} does not exist; name a YAML file, or a config of the package: {', '.join(close)}"
    )
