"""Tuning on a tiny CLIP: what is tried, what is chosen, what happens to trials that fail or are interrupted."""

import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest
import yaml

from hf_unlearn.errors import UserError
from hf_unlearn.methods import METHODS
from hf_unlearn.methods.fine_tune import FineTuneConfig
from hf_unlearn.runs import tuning
from hf_unlearn.runs.command_line import parse_run
from hf_unlearn.runs.tuning import Search, propose, ties, trials_table, tune, tuned_config
from hf_unlearn.training.search_space import Around, Choice, Log, Same, SearchSpace, Uniform, everywhere


@dataclass
class PlaygroundConfig(FineTuneConfig):
    """A config with every kind of range."""

    weight: float = 2.0
    copies: int = 3
    other: float = 2.0
    mode: str = "c"
    search_space: ClassVar[SearchSpace] = everywhere(
        learning_rate=Around(10),
        weight=Uniform(3, 4),
        other=Same("weight"),
        copies=Log(1, 8),
        mode=Choice(("a", "b")),
    )


def bowl(setting: dict) -> float:
    return abs(setting["weight"] - 3.5) + abs(setting["copies"] - 6) + (setting["mode"] != "a")


def trials(count: int, seed: int = 0, stop=lambda setting: False) -> list[dict]:
    past: list[dict] = []
    for _ in range(count):
        setting = propose(PlaygroundConfig(output_dir="x", report_to=[]), "views", past, seed)
        past.append({"setting": setting, **({"stopped": "NaN"} if stop(setting) else {"estimated_gap": bowl(setting)})})
    return past


def test_default_comes_first_and_every_draw_lies_in_its_range():
    rows = trials(30)
    assert rows[0]["setting"] == {"learning_rate": 5e-4, "weight": 2.0, "other": 2.0, "copies": 3, "mode": "c"}
    for row in rows[1:]:
        given = row["setting"]
        assert (
            5e-5 <= given["learning_rate"] <= 5e-3 and 2 <= given["weight"] <= 4 and given["other"] == given["weight"]
        )
        assert given["copies"] in range(1, 9) and given["mode"] in "abc"
    assert len({row["setting"]["weight"] for row in rows}) == 30


def test_search_finds_the_bottom_and_a_seed_repeats_it():
    rows = trials(40)
    assert min(row["estimated_gap"] for row in rows[-10:]) < 1 < rows[0]["estimated_gap"]
    assert trials(12, seed=3) == trials(12, seed=3) != trials(12)


def test_settings_like_those_that_were_stopped_are_avoided():
    rows = trials(40, stop=lambda setting: setting["mode"] == "a")  # the mode it would settle on
    assert [row["setting"]["mode"] for row in rows[-20:]].count("a") < 20 / 3
    assert [row["setting"]["mode"] for row in trials(40)[-20:]].count("a") > 20 / 3


@dataclass
class FewConfig(FineTuneConfig):
    """A config with six settings in all."""

    mode: str = "b"
    copies: int = 2
    search_space: ClassVar[SearchSpace] = everywhere(mode=Choice(("a", "b")), copies=Log(1, 3))


@pytest.mark.parametrize("seed", range(3))
def test_no_setting_is_tried_twice(seed):
    config, past = FewConfig(output_dir="x", report_to=[]), []
    while (setting := propose(config, "views", past, seed)) is not None:
        past.append({"setting": setting, "estimated_gap": float(setting["copies"])})
    assert len(past) == len({tuple(row["setting"].values()) for row in past}) == 6


def test_a_search_ends_where_all_settings_are_tried(search, tmp_path, monkeypatch):
    started = SimpleNamespace(
        before=SimpleNamespace(metrics={"estimated_gap": 9.0}), evaluator=SimpleNamespace(family="image-text")
    )
    monkeypatch.setattr(tuning, "start", lambda *_: started)
    found = {"estimated_gap": 1.0, "low_estimated_gap": 0.0, "high_estimated_gap": 2.0}
    monkeypatch.setattr(tuning, "_measured", lambda _, config: dict(found))
    said: list[str] = []
    rows = tune(Search(search.argv, ("slug",), trials=4), tmp_path / "out", say=said.append)
    assert sorted(row["setting"]["candidates"] for row in rows) == [1, 3, 5]
    assert "slug: its search space has 3 settings, and all are tried" in said


def test_the_best_setting_is_no_rival_of_its_own():
    best = {"method": "slug", "setting": {"candidates": 5}, "estimated_gap": 1.0, "high_estimated_gap": 2.0}
    assert ties([best, dict(best)]) is None
    assert "1 of 3 trials" in ties([best, dict(best), best | {"setting": {"candidates": 3}}])


def test_what_has_no_effect_on_an_adapter_is_not_searched():
    config = parse_run(["--methods", "targeted_calibration"]).methods["targeted_calibration"]
    plain, adapted = (propose(config, "image-text", [], 0, given) for given in (False, True))
    assert plain == adapted | {"shrink_perturb": 0.4} and "shrink_perturb" not in adapted


def test_value_that_no_factor_reaches_is_named():
    with pytest.raises(UserError, match=r"fine_tune\.copies=0 cannot be searched by factors"):
        propose(PlaygroundConfig(output_dir="x", report_to=[], copies=0), "views", trials(1), 0)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "retrain"])
@pytest.mark.parametrize("family", ["image-text", "views"])
def test_every_methods_space_names_its_fields(method, family):
    config = parse_run(["--methods", method]).methods[method]
    first = propose(config, family, [], 0)
    second = propose(config, family, [{"setting": first, "estimated_gap": 1.0}], 0)
    assert first and set(second) == set(first)
    options = [token for name, value in second.items() for token in (f"--{method}.{name}", str(value))]
    parse_run(["--methods", method, *options])


@pytest.fixture
def search(tiny_clip, shapes, tmp_path):
    """Three trials of two methods on 72 pictures."""
    shapes.save_to_disk(tmp_path / "data")
    config = {"dataset_name": str(tmp_path / "data"), "use_cpu": True, "disable_tqdm": True, "num_train_epochs": 1}
    config |= {
        "unlearn_fraction": 0.1,
        "per_device_train_batch_size": 16,
        "fine_tune": {"weight_decay": 0.1},
        "neg_grad": {"seed": 5},
    }
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(config))
    argv = ("--config", str(tmp_path / "task.yaml"), "--model_name_or_path", str(tiny_clip))
    return Search(argv, ("fine_tune", "alignment_calibration"), trials=3)


def test_stopped_search_ends_as_the_uninterrupted_one_and_never_sees_test(search, tmp_path, monkeypatch):
    said: list[str] = []
    rows = tune(search, tmp_path / "out", say=said.append)
    assert len(said) - 1 == len(rows) == 6 and said[0].startswith("fine_tune 1/3: learning_rate 0.0005")
    assert said[6].startswith("before unlearning: estimated gap ")
    gaps = [row["estimated_gap"] for row in rows]
    assert gaps == sorted(gaps)
    tuned = yaml.safe_load((tmp_path / "out" / "tuned.yaml").read_text())
    best = rows[0]["method"]
    assert tuned["methods"] == [best] and rows[0]["setting"].items() <= tuned[best].items()
    assert "neg_grad" not in tuned
    again = parse_run(["--config", str(tmp_path / "out" / "tuned.yaml")])
    assert all(getattr(again.methods[best], name) == value for name, value in rows[0]["setting"].items())
    with pytest.raises(UserError, match="--resume"):
        tune(search, tmp_path / "out")

    path = tmp_path / "out" / "trials.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"rows": content["rows"][:2]}))
    resumed = tune(search, tmp_path / "out", resume=True, say=said.append)
    assert len(said) == 7 + 4 + 1 and said[-1] == said[6]
    times = {"run_time_minutes"}
    assert [{k: v for k, v in row.items() if k not in times} for row in resumed] == [
        {k: v for k, v in row.items() if k not in times} for row in rows
    ]
    lines = trials_table(rows).splitlines()
    assert len({len(line) for line in lines[:1] + lines[1::2]}) == 1 and "spread" in lines[0]
    assert len(lines) == 1 + 2 * len(rows) and max(map(len, lines)) <= 80

    for ids in ("red-circle-3", "red-circle-3\nblue-circle-3"):  # another request in the file of the same name
        (tmp_path / "ids.txt").write_text(ids)
        asked = Search((*search.argv, "--unlearn_request", str(tmp_path / "ids.txt")), ("fine_tune",), trials=1)
        if "blue" not in ids:
            tune(asked, tmp_path / "asked")
    with pytest.raises(UserError, match="had other data, settings or seed"):
        tune(asked, tmp_path / "asked", resume=True)

    other = Search(search.argv, search.methods, trials=3, seed=1)
    with pytest.raises(UserError, match="seed"):
        tune(other, tmp_path / "out", resume=True)


def test_a_drawn_setting_that_these_rows_do_not_allow_is_no_candidate(search, tmp_path):
    """SSD's `alpha` is drawn up to 100, and a tenth of train is unlearned: from 10 on it could select no weight."""
    argv = (*search.argv, "--selective_synaptic_dampening.alpha", "3")
    rows = tune(Search(argv, ("selective_synaptic_dampening",), trials=6), tmp_path / "out")
    too_large = [row["setting"]["alpha"] * 0.1 >= 1 for row in rows]
    assert 0 < sum(too_large) < 6
    assert ["stopped" in row for row in rows] == too_large
    assert all("could select no weight" in row["stopped"] for row in rows if "stopped" in row)


def test_a_diverging_trial_is_no_candidate(search, tmp_path):
    diverging = Search((*search.argv, "--fine_tune.learning_rate", "1e30"), ("fine_tune",), trials=1)
    with pytest.raises(UserError, match="every trial was stopped"):
        tune(diverging, tmp_path / "out")
    row = json.loads((tmp_path / "out" / "trials.json").read_text())["rows"][0]
    assert "finite" in row["stopped"] and "estimated_gap" not in row and not (tmp_path / "out" / "tuned.yaml").exists()


def test_options_of_the_command_line_reach_the_tuned_config(tmp_path):
    (tmp_path / "c.yaml").write_text("pretrain: &p {seed: 1}\nretrain: *p\nscrub: {alpha: 2}\n")
    argv = [
        "--config",
        str(tmp_path / "c.yaml"),
        "--pretrain.seed",
        "7",
        "--methods",
        "scrub",
        "npo",
        "--bf16",
        "false",
    ]
    tuned = tuned_config(argv, "npo", {"beta": 0.5})
    assert tuned == {
        "pretrain": {"seed": "7"},
        "retrain": {"seed": 1},
        "methods": ["npo"],
        "bf16": "false",
        "npo": {"beta": 0.5},
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"methods": ("retrain",)}, "without retrain"),
        ({"methods": ("fine_tune",)}, "--family"),
        ({"methods": ("fine_tune",), "trials": 0}, "--n_trials 0"),
        ({"methods": ("fine_tune",), "argv": ("--family", "byol")}, "byol"),
        ({"methods": ("amnesia",), "argv": ("--family", "clip")}, "unknown method amnesia"),
    ],
)
def test_bad_searches_are_named(given, message):
    with pytest.raises(UserError, match=message):
        Search(**{"argv": (), **given})


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(tuning, "world_size", lambda: 2)
    with pytest.raises(UserError, match="one process"):
        Search(("--family", "clip"), ("fine_tune",))


def test_a_request_on_the_command_line_replaces_the_files_fraction(tmp_path):
    (tmp_path / "c.yaml").write_text("unlearn_fraction: 0.1\n")
    tuned = tuned_config(["--config", str(tmp_path / "c.yaml"), "--unlearn_where", "owner=alice"], "npo", {})
    assert tuned["unlearn_where"] == "owner=alice" and "unlearn_fraction" not in tuned
