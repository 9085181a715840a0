"""What a run is told: the fields of a command line or config that are no method's own."""

from dataclasses import dataclass, field, fields
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from hf_unlearn.data.config import setting
from hf_unlearn.data.fingerprint import check_salt
from hf_unlearn.errors import UserError, first_line, listed
from hf_unlearn.files import refuse_revision, refuse_to_write_to
from hf_unlearn.methods import METHODS, PAPER_METHODS, load_method
from hf_unlearn.methods.retrain import RetrainConfig
from hf_unlearn.models.adapters import ALL_LINEAR, require_peft

if TYPE_CHECKING:
    from peft import LoraConfig

OPENMOJI = "openmoji"  # the embedded dataset
UNLEARN = ("unlearn_fraction", "unlearn_request", "unlearn_where")  # ways to say what is unlearned
PARTED_BY = (*UNLEARN, "validation_fraction", "test_fraction", "num_samples")  # how rows are parted into splits
# Options of an adapter, as TRL names them: what peft calls them, and their defaults.
LORA: dict[str, tuple[str, object]] = {
    "lora_r": ("r", 16),
    "lora_alpha": ("lora_alpha", 32),
    "lora_dropout": ("lora_dropout", 0.0),
    "lora_target_modules": ("target_modules", None),
}


@dataclass
class RunArguments:
    """What is unlearned from which model, by which methods, and where the results go."""

    dataset_name: str = setting(OPENMOJI, "openmoji, a Hub id, an imagefolder, parquet, or a saved dataset.")
    dataset_config: str | None = setting(None, "Configuration of a Hub dataset.")
    dataset_revision: str | None = setting(None, "Revision of a Hub dataset.")
    image_column: str = setting("image", "Column that holds the pictures.")
    caption_column: str | None = setting(None, "Column of captions: strings or lists.")
    label_column: str | None = setting(None, "Column of class labels, for the probes.")
    id_column: str | None = setting(
        None,
        "Column of ids; default: id, the paths in a folder of images, or row numbers, which a parquet stream lacks.",
    )
    streaming: bool = setting(
        False, "Read retain from parquet or WebDataset shards as it is needed; for data that does not fit."
    )
    max_eval_samples: int | None = setting(
        None, "With streaming: most rows of retain, validation and test measured on (default 10,000)."
    )
    num_samples: int | None = setting(None, "Use this many rows of a dataset, drawn by split_seed; default: all.")
    model_name_or_path: str | None = setting(
        None, "Encoder to unlearn from; default: a small one pre-trained on the dataset."
    )
    model_revision: str | None = setting(None, "Revision of a Hub model.")
    initial_model: str | None = setting(
        None, "Model that the encoder was fine-tuned from; Retrain starts there, not from new weights."
    )
    initial_revision: str | None = setting(None, "Revision of a Hub's initial model.")
    initial_where: str | None = setting(
        None, "Rows by column, category=Flags, that a small initial model is pre-trained on; no split has them."
    )
    vision_model: str | None = setting(
        None, "Vision model, such as a ViT or DINOv2, to start a SimCLR or MoCo from; then pre-trained."
    )
    vision_revision: str | None = setting(None, "Revision of a Hub's vision model.")
    trust_remote_code: bool = setting(False, "Run the code a Hub model brings along.")
    methods: list[str] = field(
        default_factory=lambda: list(PAPER_METHODS),
        metadata={"help": "Methods to run, in order; default: the paper's."},
    )
    use_peft: bool = setting(False, "Train a LoRA adapter and leave the model's own weights as they are.")
    lora_r: int | None = setting(None, "Rank of the adapter (default 16).")
    lora_alpha: int | None = setting(None, "The adapter's change is scaled by lora_alpha / lora_r (default 32).")
    lora_dropout: float | None = setting(None, "Dropout before the adapter (default 0).")
    lora_target_modules: list[str] | None = setting(
        None, "Layers to adapt, by the end of their names; default: all linear ones, and convolutions."
    )
    retrain_model: str | None = setting(None, "A finished Retrain checkpoint to measure gaps against.")
    save_dtype: str | None = setting(
        None, "Type of the saved weights: float32, bfloat16 or float16; default: the base model's."
    )
    save_format: str | None = setting(
        None, "transformers, open_clip or sentence_transformers; default: the form the model came in."
    )
    output_dir: str = setting("runs/unlearn", "Folder of the results.")
    resume: bool = setting(False, "Go on with the run in output_dir: what is finished is not run again.")
    overwrite: bool = setting(False, "Replace the run that output_dir holds.")
    unlearn_fraction: float | None = setting(None, "Share of train to unlearn, drawn at random.")
    unlearn_request: str | None = setting(None, "File of ids to unlearn: txt, csv or json.")
    unlearn_where: str | None = setting(None, "Rows to unlearn by column: owner=alice.")
    split_seed: int = setting(0, "Seed of the split.")
    validation_fraction: float = setting(0.1, "Share held out for validation.")
    test_fraction: float = setting(0.1, "Share held out for the test.")
    duplicates: str = setting("refuse", "Copies of unlearn images elsewhere: refuse, move or keep.")
    skip_bad_images: bool = setting(False, "Leave out bad pictures, never unlearn ones.")
    request_salt: str | None = setting(
        None, "Secret for the request's row hashes: who knows it can check a row is in it."
    )
    earlier_requests: list[str] | None = setting(
        None, "Request files of earlier runs on this model, where its records cannot tell their rows."
    )
    allow_unfound_rows: bool = setting(
        False, "Go on though hardly any row that earlier runs recorded is in the data: they were dropped."
    )
    prompt_templates: list[str] | None = setting(
        None, "Measure zero-shot accuracy with these prompts, {} for a class's name: 'a photo of a {}'."
    )
    class_names: list[str] | None = setting(
        None, "Names of the classes in these prompts, by number; default: the labels' own."
    )
    audit_samples: int = setting(6, "Unlearn samples shown in the heatmaps.")
    show_samples: bool | None = setting(
        None, "Draw pictures and captions of unlearn samples on the heatmaps; default: openmoji's only."
    )

    def __post_init__(self) -> None:
        self.methods = [load_method(name) for name in self.methods]
        starts = ("model_name_or_path", "initial_model", "vision_model", "initial_where")
        for one, other in combinations(starts, 2):
            if getattr(self, one) is not None and getattr(self, other) is not None and other not in starts[:2]:
                raise UserError(f"--{other} makes a model to start from, and --{one} names one; give one of them")
        for kind, of in (("model", "model_name_or_path"), ("initial", "initial_model"), ("vision", "vision_model")):
            revision, name = getattr(self, f"{kind}_revision"), getattr(self, of)
            if revision is not None and name is None:
                raise UserError(f"--{kind}_revision is that of --{of}; give both, or neither")
            refuse_revision(name, revision, f"--{kind}_revision")
        if self.save_dtype not in (None, "float32", "bfloat16", "float16"):
            raise UserError(f"--save_dtype {self.save_dtype} is unknown; choose float32, bfloat16 or float16")
        if self.save_dtype is not None and self.use_peft:
            raise UserError("--save_dtype is for whole models; an adapter is saved as it was trained, so leave one out")
        for template in self.prompt_templates or ():
            if template.count("{}") != 1:
                raise UserError(f"prompt_templates: {template!r} must hold {{}} once, where a class's name goes")
        if self.class_names is not None and not self.prompt_templates:
            raise UserError("class_names go into prompts; give prompt_templates, too")
        names = self.class_names or []
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"class_names has {listed(twice)} more than once; give each class a name of its own")
        check_salt(self.request_salt)
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
        starts_anew = self.initial_model is None and self.initial_where is None
        if self.use_peft and starts_anew and set(self.methods) == {RetrainConfig.method}:
            raise UserError(
                "Retrain draws every weight anew, which no adapter can hold; leave --use_peft unset, or name what the "
                "model was fine-tuned from with --initial_model"
            )
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
        raise UserError(f"--use_peft: {first_line(error)}") from error


def refuse_to_write_to_sources(arguments: RunArguments, output_dir: str | Path) -> None:
    """Refuse an output that lies in a folder of a model or of data that a run starts from, or around one."""
    for name in ("model_name_or_path", "initial_model", "vision_model", "dataset_name"):
        refuse_to_write_to(getattr(arguments, name), f"--{name}", output_dir)
