"""Fine-tuned bases: Retrain starts from the initial model, weights lead back there, and targets are predicted there."""

import json
import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from datasets import DatasetDict
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from hf_unlearn.errors import UserError
from hf_unlearn.files import owned
from hf_unlearn.hub.verification import verify_repo
from hf_unlearn.models import loading
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.models.moco import MoCoModel
from hf_unlearn.models.simclr import SimCLRModel
from hf_unlearn.models.weights import weights_sha256
from hf_unlearn.records.schemas import EvaluationRecord, UnlearningManifest
from hf_unlearn.runs import experiment
from hf_unlearn.runs.builders import BUILDERS
from hf_unlearn.runs.command_line import parse_run
from hf_unlearn.runs.initial import load_initial_model, prepare_vision_model
from hf_unlearn.runs.resuming import settings_hash
from hf_unlearn.runs.run_arguments import RunArguments
from hf_unlearn.runs.run_data import prepare_task
from hf_unlearn.runs.unlearn import base_model, unlearn_and_compare


@pytest.fixture(scope="module")
def initial(tmp_path_factory, loaded_clip):
    """A model of other weights than `tiny_clip`, and the same architecture."""
    model, processor = loaded_clip
    torch.manual_seed(7)
    model = type(model)(model.config)
    folder = tmp_path_factory.mktemp("public")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def unlearn(shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    shapes.save_to_disk(tmp_path / "data")

    def run(*argv: str, out="out", family="clip"):
        given = ["--dataset_name", str(tmp_path / "data"), "--use_cpu", "true", "--output_dir", str(tmp_path / out)]
        given += ["--unlearn_fraction", "0.1", "--per_device_train_batch_size", "16", "--pretrain.max_steps", "1"]
        given += ["--pretrain.warmup_steps", "0"]
        unlearn_and_compare(parse_run([*given, *map(str, argv)]), BUILDERS[family])
        return tmp_path / out

    return run


def weights(folder) -> dict[str, torch.Tensor]:
    return load_encoder(str(folder))[0].state_dict()


def distance(one, other) -> float:
    return sum((one[name] - other[name]).square().sum().item() for name in one) ** 0.5


def test_retrain_starts_from_the_initial_model(unlearn, tiny_clip, initial):
    barely = ["--methods", "retrain", "--max_steps", "1", "--learning_rate", "1e-9", "--warmup_steps", "0"]
    out = unlearn("--model_name_or_path", tiny_clip, "--initial_model", initial, *barely)
    begun, retrained = weights(initial), weights(out / "retrain")
    assert 0 < distance(retrained, begun) < 1e-4 < 1 < distance(retrained, weights(tiny_clip))
    manifest = UnlearningManifest.load(out / "retrain")
    assert manifest.hyper_parameters["initial_model"] == initial.name
    assert initial.name in (out / "retrain" / "README.md").read_text() and verify_repo(out / "retrain").ok
    anew = unlearn("--model_name_or_path", tiny_clip, *barely, out="anew")  # not what is cached for the other
    assert distance(weights(anew / "retrain"), begun) > 1


def test_a_second_request_that_forgets_the_recorded_initial_model_is_told(unlearn, tiny_clip, initial, caplog):
    barely = ["--methods", "fine_tune", "--max_steps", "1"]
    first = unlearn("--model_name_or_path", tiny_clip, "--initial_model", initial, *barely)
    again = ["--model_name_or_path", first / "fine_tune", "--unlearn_fraction", "0.2", *barely]
    told = f"The record of fine_tune names the initial model {initial.name}, and this run names none"
    second = unlearn(*again, out="second")
    assert told in caplog.text and told in (second / "fine_tune" / "README.md").read_text()
    caplog.clear()
    unlearn(*again, "--initial_model", initial, out="named")
    assert "and this run names none" not in caplog.text


def test_a_run_is_resumed_with_the_same_initial_model_alone(unlearn, tiny_clip, initial):
    given = ["--model_name_or_path", tiny_clip, "--methods", "fine_tune", "--max_steps", "1"]
    unlearn(*given, "--initial_model", initial)
    unlearn(*given, "--initial_model", initial, "--resume")
    with pytest.raises(UserError, match="initial_model was"):
        unlearn(*given, "--resume")


def test_weights_lead_back_to_the_initial_model(unlearn, tiny_clip, initial):
    given = ["--model_name_or_path", tiny_clip, "--initial_model", initial, "--methods", "fine_tune"]
    given += ["--max_steps", "1", "--learning_rate", "1e-9", "--shrink_perturb", "0.8"]
    ours, begun, base = weights(unlearn(*given) / "fine_tune"), weights(initial), weights(tiny_clip)
    for name, value in ours.items():  # vectors and the temperature, too
        torch.testing.assert_close(value, 0.2 * base[name] + 0.8 * begun[name], atol=1e-5, rtol=1e-4)


def test_a_method_that_never_sees_retain_is_not_told_to_learn_it_again(
    shapes, tiny_clip, initial, tmp_path, monkeypatch
):
    shapes.save_to_disk(tmp_path / "data")
    given = ["--dataset_name", str(tmp_path / "data"), "--unlearn_fraction", "0.1", "--use_cpu", "true"]
    given += ["--model_name_or_path", str(tiny_clip), "--initial_model", str(initial), "--max_steps", "1"]
    given += ["--methods", "fine_tune", "gradient_ascent", "--shrink_perturb", "0.5", "--disable_tqdm", "true"]
    run = parse_run(given)
    ours, asked = experiment.Experiment(run, prepare_task(run.arguments), tiny_clip), []
    monkeypatch.setattr(experiment, "sanity_notes", lambda *given: asked.append(given[-1]) or ())
    for config in run.methods.values():
        ours.train_and_evaluate(config)
    assert asked == ["every weight was moved 50% of the way back to the initial model", None]


def test_targets_are_predicted_from_the_initial_model_or_from_another(unlearn, tiny_clip, initial):
    given = ["--model_name_or_path", tiny_clip, "--methods", "targeted_calibration", "--max_steps", "2"]
    given += ["--shrink_perturb", "0"]  # which would lead to the initial model where there is one
    runs = {
        "none": unlearn(*given, out="none"),
        "initial": unlearn(*given, "--initial_model", initial, "--target_epochs", "0", out="initial"),
        "features": unlearn(*given, "--target_features", initial, out="features"),
        "fine-tuned": unlearn(*given, "--initial_model", initial, out="fine-tuned"),
    }
    hashes = {name: weights_sha256(out / "targeted_calibration") for name, out in runs.items()}
    assert hashes["initial"] == hashes["features"] and len(set(hashes.values())) == 3
    # Targets, and the estimated gap of a known initial model, depend on it: it is said once on a card.
    for out in runs.values():
        notes = UnlearningManifest.load(out / "targeted_calibration").notes
        assert sum("The level of unlearn pairs is uncertain" in note for note in notes) == 1
    # Where the initial model is known, the estimated gap is to what it predicts, too, whatever orders the targets.
    before = {name: EvaluationRecord.load(out / "targeted_calibration").before for name, out in runs.items()}
    gaps = {name: metrics["estimated_gap_unlearn"] for name, metrics in before.items()}
    plain = abs(before["none"]["cosine_unlearn"] - before["none"]["cosine_validation"])
    assert gaps["none"] == gaps["features"] == pytest.approx(plain, abs=1e-4)
    assert gaps["initial"] == gaps["fine-tuned"] != pytest.approx(plain, abs=0.01)


def test_rows_set_apart_train_the_initial_model_and_are_in_no_split(shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    shapes.save_to_disk(tmp_path / "data")
    given = ["--dataset_name", str(tmp_path / "data"), "--unlearn_fraction", "0.1", "--use_cpu", "true"]
    given += ["--methods", "fine_tune", "--initial_where", "label=circle", "--model.image_size", "16"]
    steps = ["--initial.max_steps", "2", "--pretrain.max_steps", "1", "--pretrain.learning_rate", "1e-9"]
    steps += ["--pretrain.warmup_steps", "0"]
    run = parse_run([*given, *steps, "--per_device_train_batch_size", "16"])
    task = prepare_task(run.arguments)
    circle = shapes.features["label"].str2int("circle")
    assert set(task.initial_rows["label"]) == {circle} and len(task.initial_rows) == 24
    assert sum(map(len, task.splits.values())) == 48 and all(
        circle not in part["label"] for part in task.splits.values()
    )
    base = base_model(run, task, BUILDERS["clip"])
    begun = run.arguments.initial_model
    assert 0 < distance(weights(base), weights(begun)) < 1e-3  # it was fine-tuned from there, barely
    same = parse_run([*given, *steps, "--per_device_train_batch_size", "16"])
    other = parse_run([*given, *steps, "--per_device_train_batch_size", "16", "--initial.max_steps", "3"])
    assert settings_hash(same) != settings_hash(other)
    with pytest.raises(UserError, match="--initial_where 'label=oval': no training row has oval"):
        prepare_task(parse_run([*given, "--initial_where", "label=oval"]).arguments)
    with pytest.raises(UserError, match="--initial_where makes a model to start from, and --initial_model names one"):
        parse_run([*given, "--initial_model", base])
    named = parse_run(["--config", "clip_finetuned", "--model_name_or_path", base, "--unlearn_request", "ids.txt"])
    assert named.arguments.initial_where is None and named.arguments.unlearn_fraction is None and named.initial is None
    with pytest.raises(UserError, match="'initial' is not among the methods of this run"):
        parse_run(["--unlearn_fraction", "0.1", "--initial.max_steps", "2"])
    DatasetDict(train=shapes, test=shapes).save_to_disk(tmp_path / "several")
    with pytest.raises(UserError, match="sets rows of one split apart"):
        prepare_task(parse_run([*given, "--dataset_name", str(tmp_path / "several")]).arguments)


def test_without_a_base_the_initial_model_is_fine_tuned_on_train(unlearn, initial):
    given = ["--initial_model", initial, "--methods", "fine_tune", "--max_steps", "1", "--pretrain.learning_rate"]
    out = unlearn(*given, "1e-9", "--learning_rate", "1e-9")
    assert 0 < distance(weights(out / "fine_tune"), weights(initial)) < 1e-3


@pytest.mark.parametrize(("family", "kind"), [("simclr", SimCLRModel), ("moco", MoCoModel)])
def test_a_vision_model_is_the_start_of_view_encoders(unlearn, tmp_path, family, kind):
    small = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = ViTModel(ViTConfig(**small, image_size=16, patch_size=8))
    vision.save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    given = ["--vision_model", tmp_path / "vit", "--methods", "retrain", "--max_steps", "1", "--learning_rate", "1e-9"]
    out = unlearn(*given, "--warmup_steps", "0", "--model.projection_dim", "4", family=family)
    model, _ = load_encoder(str(out / "retrain"))
    assert type(model) is kind and model.config.image_size == 16 and model.config.projection_dim == 4
    for name, value in vision.state_dict().items():  # Retrain starts from the vision model, too
        torch.testing.assert_close(model.encoder.backbone.state_dict()[name], value, atol=1e-6, rtol=1e-4)


def test_what_is_no_start_is_refused(unlearn, tiny_clip, initial, tmp_path):
    given = ["--model_name_or_path", tiny_clip, "--methods", "fine_tune"]
    halved, processor = load_encoder(str(tiny_clip))
    halved.to(torch.bfloat16).save_pretrained(tmp_path / "halved")
    processor.save_pretrained(tmp_path / "halved")
    for own in (tiny_clip, tmp_path / "halved"):
        with pytest.raises(UserError, match="has the model's own weights"):
            unlearn(*given, "--initial_model", own)
    config = json.loads((initial / "config.json").read_text())
    other, processor = load_encoder(str(initial))
    config["projection_dim"] = 8
    type(other)(type(other.config).from_dict(config)).save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=r"another architecture than the model \(text_projection.weight, visual_pro"):
        unlearn(*given, "--initial_model", tmp_path / "other")
    for option in ("initial", "vision"):
        with pytest.raises(UserError, match=f"--{option}_revision is that of --{option}_model"):
            unlearn(*given, f"--{option}_revision", "main")
    with pytest.raises(UserError, match="--vision_model makes a model to start from, and --model_name_or_path names"):
        unlearn(*given, "--vision_model", initial)
    with pytest.raises(UserError, match="the family simclr, from --family or the config, is not that of the model"):
        unlearn("--initial_model", initial, "--methods", "fine_tune", "--family", "simclr")
    with pytest.raises(UserError, match="the backbone of a SimCLR or MoCo"):
        unlearn("--vision_model", initial, "--methods", "fine_tune")


def test_of_views_no_other_encoder_is_offered_for_targets(encoder, tmp_path):
    for family, folder in (("simclr", tmp_path / "simclr"), ("moco", tmp_path / "moco")):
        for part in encoder(family):
            part.save_pretrained(folder)
    with pytest.raises(UserError, match=r"that the model was fine-tuned from; or leave it out$"):
        load_initial_model(RunArguments(initial_model=str(tmp_path / "moco"), methods=["npo"]), *encoder("simclr"))


def edit(folder, name, change):
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def swap(content):
    words = content["model"]["vocab"]
    one, other = sorted(words, key=words.get)[-2:]
    words[one], words[other] = words[other], words[one]


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        (
            "config.json",
            lambda config: config["vision_config"].update(hidden_act="gelu", num_attention_heads=1),
            r"vision_config.hidden_act is gelu, the model's quick_gelu, vision_config.num_attention_heads is 1, the",
        ),
        ("config.json", lambda config: config["text_config"].update(eos_token_id=5), "eos_token_id is 5, the model's"),
        (
            "tokenizer.json",
            swap,
            r"other words by the same numbers than the model \(2 of its tokenizer's \d+: \d+ is",
        ),
    ],
    ids=["what towers compute", "where texts are read", "words"],
)
def test_weights_that_mean_something_else_are_no_start(name, change, told, loaded_clip, initial, tmp_path, monkeypatch):
    folder = shutil.copytree(initial, tmp_path / "public")
    edit(folder, name, change)
    monkeypatch.setattr(loading, "check_fit", lambda *_: None)  # which another end of texts would not pass
    with pytest.raises(UserError, match=told):
        load_initial_model(RunArguments(initial_model=str(folder), methods=["fine_tune"]), *loaded_clip)


def test_settings_that_change_nothing_are_no_reason_to_refuse(loaded_clip, initial, tmp_path):
    folder = shutil.copytree(initial, tmp_path / "public")

    def change(config):
        config |= {"_name_or_path": "elsewhere", "transformers_version": "4.1.0", "logit_scale_init_value": 1.0}
        config["text_config"] |= {"bos_token_id": 7, "pad_token_id": 8, "initializer_range": 1.0, "top_k": 50}
        config["text_config"] |= {"attention_dropout": 0.1, "projection_dim": 512, "torch_dtype": "float16"}

    edit(folder, "config.json", change)
    assert load_initial_model(RunArguments(initial_model=str(folder), methods=["fine_tune"]), *loaded_clip) is not None


def test_an_initial_model_of_other_pictures_is_told_of(unlearn, tiny_clip, initial, tmp_path):
    """A model may have been fine-tuned on pictures that were prepared in another way; its card says so."""
    folder = shutil.copytree(initial, tmp_path / "public")
    edit(folder, "processor_config.json", lambda content: content["image_processor"].update(image_mean=[0] * 3))
    given = ["--model_name_or_path", tiny_clip, "--methods", "fine_tune", "--max_steps", "1"]
    out = unlearn(*given, "--initial_model", folder)
    (note,) = [n for n in UnlearningManifest.load(out / "fine_tune").notes if "does not read rows as the base" in n]
    assert note.startswith("The initial model public does") and "its image processor's mean is 0, 0, 0" in note


def test_a_model_with_a_fresh_head_is_made_by_one_run_at_a_time(tiny_clip, loaded_clip, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    built = []

    def build(run, task):
        (lock,) = tmp_path.rglob(".lock")
        with pytest.raises(UserError, match="still at work"), owned(lock.parent, "Another run"):
            pass
        built.append(lock.parent.name)
        return loaded_clip

    def prepared(seed, vision=tiny_clip):
        arguments = SimpleNamespace(vision_model=str(vision), vision_revision=None, initial_model=None)
        run = SimpleNamespace(arguments=arguments, pretrain=SimpleNamespace(seed=seed), model={})
        prepare_vision_model(run, None, build)
        return arguments.initial_model

    folder = prepared(0)
    assert prepared(0) == folder and [folder.rpartition("/")[2]] == built

    brighter = shutil.copytree(tiny_clip, tmp_path / "brighter")
    edit(brighter, "processor_config.json", lambda content: content["image_processor"].update(image_mean=[0, 0, 0]))
    assert prepared(0, brighter) != folder and len(built) == 2

    @contextmanager
    def another_makes_it(folder):
        shutil.copytree(tiny_clip, folder)
        yield

    monkeypatch.setattr("hf_unlearn.runs.initial.alone", another_makes_it)
    assert prepared(1) != folder and len(built) == 2
