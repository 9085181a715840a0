import pytest

from hf_unlearn.errors import UserError
from hf_unlearn.methods import PAPER_METHODS
from hf_unlearn.runs.command_line import parse_run
from hf_unlearn.runs.run_arguments import RunArguments, get_peft_config


@pytest.fixture
def yaml_config(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "methods: [retrain, alignment_calibration]\n"
        "learning_rate: 3e-4\n"  # YAML reads this as a string
        "per_device_train_batch_size: 32\n"
        "retrain: {num_train_epochs: 7, learning_rate: 1.0e-3}\n"
        "pretrain: {num_train_epochs: 9}\n"
        "model: {width: 16, stem: cifar}\n"
    )
    return path


def test_command_line_over_section_over_general_over_default(yaml_config):
    run = parse_run(["--config", str(yaml_config), "--num_train_epochs", "2", "--retrain.learning_rate", "2e-3"])
    retrain, calibration = run.methods["retrain"], run.methods["alignment_calibration"]
    assert (retrain.learning_rate, retrain.num_train_epochs) == (2e-3, 2)
    assert (calibration.learning_rate, calibration.num_train_epochs) == (3e-4, 2)
    assert retrain.per_device_train_batch_size == calibration.per_device_train_batch_size == 32
    assert run.pretrain.num_train_epochs == 9  # --num_train_epochs means the unlearning's
    assert run.model == {"width": 16, "stem": "cifar"}


@pytest.mark.parametrize("family", ["clip", "simclr"])
def test_a_config_of_the_embedded_data_does_not_part_other_data(family):
    embedded, other, asked = (
        parse_run(words, f"{family}_openmoji").arguments
        for words in ([], ["--dataset_name", "org/own"], ["--dataset_name", "org/own", "--unlearn_fraction", "0.3"])
    )
    parted = [(a.unlearn_fraction, a.num_samples, a.test_fraction) for a in (embedded, other, asked)]
    default = RunArguments()
    assert parted[0][0] == 0.1 and (family == "clip") == (parted[0][1] is None)
    assert parted[1] == (None, None, default.test_fraction) and parted[2] == (0.3, None, default.test_fraction)
    assert other.methods == embedded.methods and other.audit_samples == embedded.audit_samples


def test_a_config_of_own_data_parts_what_the_command_line_names_instead(tmp_path):
    """Whoever wrote it knows; such as one task on several versions of its data."""
    (tmp_path / "run.yaml").write_text("dataset_name: org/own\nunlearn_fraction: 0.2\ntest_fraction: 0.3\n")
    arguments = parse_run(["--config", str(tmp_path / "run.yaml"), "--dataset_name", "org/other"]).arguments
    assert (arguments.unlearn_fraction, arguments.test_fraction) == (0.2, 0.3)


def test_names_of_options_have_two_spellings_and_values_one():
    run = parse_run(["--retrain.learning-rate", "1e-2", "--output-dir=runs/a-b", "--unlearn-where", "owner=a-b"])
    assert run.methods["retrain"].learning_rate == 1e-2
    assert (run.arguments.output_dir, run.arguments.unlearn_where) == ("runs/a-b", "owner=a-b")


@pytest.mark.parametrize("methods", [("fine_tune", "neg_grad"), ("neg_grad", "fine_tune")])
def test_settings_of_the_data_are_given_once_for_all_methods_and_the_base_model(methods, tmp_path):
    (tmp_path / "run.yaml").write_text("views: light\nmax_length: 9\n")
    run = parse_run(["--config", str(tmp_path / "run.yaml"), "--methods", *methods, "--max_length", "4"])
    assert (run.data.views, run.data.max_length, run.data.flip_probability) == ("light", 4, 0.0)
    assert not any(hasattr(config, "max_length") for config in (*run.methods.values(), run.pretrain))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("neg_grad: {views: light}", "--neg_grad.views: views says how the data is read"),
        ("slug: {retain_rows: 4}", "--slug.retain_rows: retain_rows says how"),  # the run has no SLUG
        ("alignment_calibration: {betta: 1}", "Alignment Calibration has no such option; did you mean"),
        ("pretrain: {betta: 1}", "has no such option"),
    ],
)
def test_sections_of_a_file_hold_settings_of_their_method(section, message, tmp_path):
    (tmp_path / "run.yaml").write_text(section)
    with pytest.raises(UserError, match=message):
        parse_run(["--config", str(tmp_path / "run.yaml")])


def test_model_section_from_the_command_line(yaml_config):
    assert parse_run(["--config", str(yaml_config), "--model.width", "8"]).model["width"] == 8


def test_an_option_reaches_the_methods_that_have_it():
    run = parse_run(["--beta", ".25"])
    assert run.methods["alignment_calibration"].beta == 0.25
    assert list(run.methods) == list(PAPER_METHODS)


def test_default_config_gives_way_to_a_model_or_a_config(yaml_config, tmp_path):
    assert parse_run([], default_config=yaml_config).pretrain.num_train_epochs == 9
    named = parse_run(["--model_name_or_path", "somewhere"], default_config=yaml_config)
    assert list(named.methods) == list(PAPER_METHODS)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--betta", "1"], r"--betta; did you mean --beta\?"),
        (["--confg", "clip_openmoji"], r"--confg; did you mean --config\?"),
        (["--xyzzy", "1"], "--xyzzy; --help lists what there is"),
        (["--methods", "forget_it"], "unknown method forget_it; choose from retrain"),
        (["--learning_rate", "fast"], "invalid float value: 'fast'"),
        (["stray"], "unexpected argument 'stray'"),
        (
            ["--alignment_calibration.delta", "1"],
            "Alignment Calibration has no such option",
        ),
        (["--neg_grad.preset", "1", "--methods", "retrain"], "'neg_grad' is not among the methods"),
        (["--unlearn_fraction", ".1", "--unlearn_where", "a=b"], "exclude each other"),
        (["--alignment_calibration.bta", "1"], r"has no such option; did you mean --alignment_calibration.beta\?"),
        (["--resume", "--overwrite"], "--overwrite replaces it; give one"),
        (["--audit_samples", "0"], "--audit_samples 0 must be at least 1"),
        (["--num_samples", "-5"], "--num_samples -5 must be at least 4"),
        (["--learning_rate", "nan"], "learning_rate=nan must be a number of at least 0"),
        (["--num_train_epochs", "inf"], "num_train_epochs=inf must be a number"),
        (["--seed", "-1"], "seed=-1 must be from 0 to 4294967295"),
        (["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps=0 must be a number of at least 1"),
        (["--warmup_steps", "nan"], "warmup_steps=nan must be a number of at least 0"),
        (
            ["--fine_tune.warmup_steps", "3"],
            "warmup_steps=3.0 would have no effect on Fine-Tune, whose lr_sched",
        ),
        (["--checkpoint_minutes", "nan"], "checkpoint_minutes=nan must be a number of at least 0"),
        (["--logging_steps", "nan"], "logging_steps=nan must be a number of at least 0"),
        (["--save_strategy", "steps", "--save_steps", "-5"], "save_steps=-5.0 must be a number of at least 0"),
        (["--adam_epsilon", "-1"], r"optim=adamw_torch.*: Invalid epsilon value: -1\.0; see adam_beta1"),
        (["--adam_beta1", "nan"], r"optim=adamw_torch.*: Invalid beta parameter at index 0: nan; see adam_beta1"),
        (["--slug.shrink_perturb", ".3", "--methods", "slug"], "SLUG trains nothing, .* set it for others alone"),
        (
            ["--model_name_or_path", ".", "--model_revision", "v1"],
            r"--model_revision v1 would have no effect: \. is a folder, not on the Hub; leave it out",
        ),
        (["--initial_model", ".", "--initial_revision", "v1"], "--initial_revision v1 would have no effect"),
        (["--vision_model", ".", "--vision_revision", "v1"], "--vision_revision v1 would have no effect"),
        (["--model_revision", "v1"], "--model_revision is that of --model_name_or_path; give both, or neither"),
        (["--learning_rate", "0"], "learning_rate=0.0 would train nothing; use more than 0"),
        (["--max_steps", "0"], "max_steps=0 would make no update"),
        (["--dataset_name", " "], "--dataset_name is empty; name a dataset"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml does not exist"),
        (["--per_device_train_batch_size", "1"], "without negatives"),
        (["--neg_grad.preset", "best"], "preset='best' is unknown"),
        (["--alignment_calibration.preset", "reference", "--alpha", ".5"], "ties gamma to alpha"),
        (["--views", "wild"], "views='wild' is unknown; choose one of cifar"),
        (["--neg_grad.max_length", "4"], r"--neg_grad.max_length: max_length says how the data is read, once for all"),
        (["--pretrain.use_cpu", "true"], r"--pretrain.use_cpu: use_cpu says where all trainings run, .* as --use_cpu"),
        (["--neftune_noise_alpha", "5"], "neftune_noise_alpha is noise for the embeddings of language models; leave"),
        (["--pretrain.views", "light"], r"--pretrain.views: views says how the data is read, .* give it as --views"),
    ],
)
def test_bad_arguments_are_named(argv, message):
    with pytest.raises(UserError, match=message):
        parse_run(argv)


def test_bfloat16_is_turned_off_for_a_base_that_is_not_trained(tmp_path):
    """`--bf16 false` is enough where a model is named; of a base that is trained, the config says it."""
    (tmp_path / "run.yaml").write_text("bf16: true\nuse_cpu: true\n")
    options = ["--config", str(tmp_path / "run.yaml"), "--bf16", "false"]
    assert parse_run(options).pretrain.bf16
    assert not parse_run([*options, "--model_name_or_path", "somewhere"]).pretrain.bf16


def test_progress_bars_are_turned_off_for_every_training(tmp_path):
    given = ["--disable_tqdm", "true", "--initial_where", "label=circle"]
    run = parse_run(given)
    assert run.initial is not None and run.pretrain.disable_tqdm and run.initial.disable_tqdm
    assert all(config.disable_tqdm for config in run.methods.values())
    assert not parse_run([*given, "--pretrain.disable_tqdm", "false"]).pretrain.disable_tqdm


def test_the_command_line_says_what_to_unlearn_in_another_way_than_the_file(tmp_path):
    (tmp_path / "run.yaml").write_text("unlearn_fraction: 0.1\n")
    arguments = parse_run(["--config", str(tmp_path / "run.yaml"), "--unlearn_where", "owner=alice"]).arguments
    assert (arguments.unlearn_fraction, arguments.unlearn_where) == (None, "owner=alice")


# Of the settings that transformers itself would refuse when a training begins, those that are foreseen: a model is
# loaded and measured by then, and the run written down.
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--lr_scheduler_type", "cosine_with_min_lr"],
            "=cosine_with_min_lr: One of min_lr .* set lr_scheduler_kwargs",
        ),
        (
            ["--lr_scheduler_type", "warmup_stable_decay"],
            "num_decay_steps.*; set lr_scheduler_kwargs, or choose another",
        ),
        (["--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", '{"cycles": 2}'], "'cycles'; set lr_scheduler_kw"),
        (["--report_to", "wandb"], "report_to=wandb is not installed here; install it"),
        (["--report_to", "somewhere"], "report_to=somewhere is not installed here"),
        (["--deepspeed", "settings.json"], "FineTuneConfig: .*deepspeed"),
        (["--eval_strategy", "epoch"], "--eval_strategy: a run measures its methods when they are done"),
        (["--fine_tune.eval_strategy", "steps", "--fine_tune.eval_steps", "5"], "--eval_strategy: a run measures"),
        (["--save_strategy", "best"], "--save_strategy best: a run measures"),
        (["--load_best_model_at_end", "true"], "--load_best_model_at_end: a run measures"),
    ],
)
def test_settings_that_no_training_could_begin_with_are_refused_before(argv, message, monkeypatch):
    monkeypatch.setattr("hf_unlearn.training.config.get_available_reporting_integrations", lambda: ["tensorboard"])
    with pytest.raises(UserError, match=message):
        parse_run(["--methods", "fine_tune", *argv])


def test_schedules_and_reports_that_have_what_they_need_are_taken(monkeypatch):
    monkeypatch.setattr("hf_unlearn.training.config.get_available_reporting_integrations", lambda: ["tensorboard"])
    kwargs = ("--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr": 1e-6}')
    config = parse_run(["--methods", "fine_tune", "--report_to", "tensorboard", *kwargs]).methods["fine_tune"]
    assert (config.lr_scheduler_kwargs, config.report_to) == ({"min_lr": 1e-6}, ["tensorboard"])


@pytest.mark.parametrize("content", ["- a list", "a: [1", "nonsense: {a: 1}", "model: 3"])
def test_bad_yaml_is_named(tmp_path, content):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        parse_run(["--config", str(path)])


def test_an_adapter_is_described_as_trl_describes_it(tmp_path):
    given = ["--use_peft", "--lora_r", "8", "--lora_alpha", "4", "--lora_target_modules", "q_proj", "v_proj"]
    config = get_peft_config(parse_run(given).arguments)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (8, 4, 0.0)
    assert config.target_modules == {"q_proj", "v_proj"}
    (tmp_path / "run.yaml").write_text("use_peft: true\nlora_target_modules: all-linear\nlora_dropout: 0.1\n")
    config = get_peft_config(parse_run(["--config", str(tmp_path / "run.yaml")]).arguments)
    assert (config.r, config.lora_alpha, config.lora_dropout, config.target_modules) == (16, 32, 0.1, "all-linear")
    assert get_peft_config(parse_run([]).arguments) is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lora_r", "8"], "--lora_r describes an adapter; give --use_peft, too"),
        (["--use_peft", "--methods", "retrain"], "Retrain draws every weight anew"),
        (
            ["--use_peft", "--methods", "fine_tune", "slug", "task_vector", "selective_synaptic_dampening"],
            "no adapter can hold what slug, task_vector, selective_synaptic_dampening would change",
        ),
    ],
)
def test_adapters_that_cannot_be_are_refused(argv, message):
    with pytest.raises(UserError, match=message):
        parse_run(argv)


def test_a_second_value_of_an_option_that_takes_one_is_refused_by_its_name():
    words = ["--config", "clip_openmoji", "--caption_column", "caption", "title", "--methods", "npo", "scrub"]
    with pytest.raises(UserError, match=r"^--caption_column takes one value, and was given caption, title; give it"):
        parse_run(words)
    with pytest.raises(UserError, match=r"^--beta takes one value, and was given 1, 2"):
        parse_run(["--config", "clip_openmoji", "--methods", "npo", "scrub", "--npo.beta", "1", "2"])


def test_an_option_of_a_method_that_the_run_has_not_is_refused_by_that_method():
    words = ["--config", "clip_openmoji", "--methods", "fine_tune", "--target_epochs", "1"]
    with pytest.raises(
        UserError, match=r"^--target_epochs is an option of targeted_calibration, .* has not \(fine_tune\)"
    ):
        parse_run(words)
