"""A method is one file: what it says of itself reaches every place where methods are named."""

import importlib
import multiprocessing
from contextlib import redirect_stdout
from pathlib import Path

import pytest

import hf_unlearn
import hf_unlearn.methods
from hf_unlearn.cli.methods import methods as print_methods
from hf_unlearn.errors import UserError
from hf_unlearn.methods import METHODS, PAPER_METHODS, load_method, methods_table
from hf_unlearn.runs.builders import BUILDERS
from hf_unlearn.runs.command_line import parse_run
from hf_unlearn.runs.tuning import Search, propose
from hf_unlearn.runs.unlearn import unlearn_and_compare
from hf_unlearn.training.config import UnlearningConfig
from hf_unlearn.training.trainer import UnlearningTrainer

METHOD = '''
"""Decoupling: unlearn pairs are brought to a cosine of zero."""

from dataclasses import dataclass, field
from typing import ClassVar

from hf_unlearn.losses import info_nce, masked_mean
from hf_unlearn.records.method_description import RETAIN, MethodDescription
from hf_unlearn.training.config import UnlearningConfig
from hf_unlearn.training.search_space import Log, everywhere
from hf_unlearn.training.trainer import UnlearningTrainer


@dataclass
class DecouplingConfig(UnlearningConfig):
    """Decoupling, with the weight of its square."""

    method: ClassVar[str] = "decoupling"
    description: ClassVar[MethodDescription] = MethodDescription(
        title="Decoupling",
        summary="It brings the elements of unlearn pairs to a right angle.",
        equations=(RETAIN + r" + w\\, \\mathbb{E}_\\text{unlearn} \\cos(x, y)^2",),
        citation="@misc{decoupling}",
    )
    search_space = everywhere(weight=Log(0.1, 10))

    weight: float = field(default=1.5, metadata={"help": "Weight of the squared cosine."})


class DecouplingTrainer(UnlearningTrainer):
    """Minimises `InfoNCE_R + w mean_U cos^2`."""

    config_class = DecouplingConfig

    def batch_loss(self, terms, is_unlearn):
        cosine = masked_mean(terms.cosine.square(), is_unlearn)
        return info_nce(terms, ~is_unlearn) + self.args.weight * cosine, {"squared_cosine": cosine}
'''


def run(data: Path, model: Path, out: Path) -> None:
    """What a user does with the method, once it is installed; what is printed goes to a file beside the results."""
    argv = ["--dataset_name", str(data), "--model_name_or_path", str(model), "--unlearn_fraction", "0.1"]
    argv += ["--output_dir", str(out), "--num_train_epochs", "1", "--use_cpu", "true", "--decoupling.weight", "2"]
    with out.with_suffix(".txt").open("w") as file, redirect_stdout(file):
        importlib.reload(hf_unlearn.methods)  # which looks for packages that offer methods
        print_methods(None)
        of_a_run = parse_run([*argv, "--methods", "decoupling:DecouplingTrainer"])
        (row,) = [row for row in unlearn_and_compare(of_a_run, BUILDERS["clip"]).rows if row.method != "before"]
        print(row.method, row.method_title)
        search = Search(tuple(argv), ("decoupling",))
        print(propose(search.run_of("decoupling").methods["decoupling"], "image-text", [], 0))


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """A folder with the method's file, and what pip writes beside it for a package that offers it."""
    (tmp_path / "decoupling.py").write_text(METHOD.lstrip())
    metadata = tmp_path / "decoupling-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: decoupling\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[hf_unlearn.methods]\ndecoupling = decoupling:DecouplingTrainer\n")
    return tmp_path


def test_one_file_of_forty_lines_adds_a_method(plugin, shapes, tiny_clip, tmp_path, monkeypatch):
    assert len((plugin / "decoupling.py").read_text().splitlines()) <= 40
    shapes.save_to_disk(tmp_path / "data")
    monkeypatch.syspath_prepend(plugin)
    folders = (tmp_path / "data", tiny_clip, tmp_path / "out")
    # Of this process no method is left; a new interpreter would import the libraries once more.
    process = multiprocessing.get_context("fork").Process(target=run, args=folders)
    process.start()
    process.join(240)
    process.kill()  # which a process that has ended does not feel; one that hangs would be waited for
    process.join()
    assert process.exitcode == 0
    printed = (tmp_path / "out.txt").read_text()
    lines = [line for line in printed.splitlines() if not line.startswith("{'loss") and "train_runtime" not in line]
    assert [line.split()[0] for line in lines[:-2]] == [*METHODS, "decoupling"]
    assert lines[-2:] == ["decoupling Decoupling", "{'weight': 2.0}"]
    card = (tmp_path / "out" / "decoupling" / "README.md").read_text()
    assert (
        "unlearned with **Decoupling** by hf_unlearn. It brings the elements of unlearn pairs to a right angle." in card
    )
    assert "cos(x, y)^2" in card and "@misc{decoupling}" in card and "| weight | 2.0 |" in card
    assert "| Decoupling |" in (tmp_path / "out" / "results.md").read_text()


def test_every_method_says_all_of_itself():
    for method, trainer in METHODS.items():
        told = trainer.config_class.description
        assert told.title and told.summary.startswith("It ") and told.equations and told.citation, method
        assert f"| {told.title} | `{method}` |" in methods_table()
    assert list(METHODS)[: len(PAPER_METHODS)] == list(PAPER_METHODS)
    assert PAPER_METHODS[0] == "retrain" and PAPER_METHODS[-1] == "alignment_calibration"


def test_every_pair_is_exported_and_nothing_else_ends_alike():
    pairs = {cls.__name__ for trainer in METHODS.values() for cls in (trainer, trainer.config_class)}
    exported = {name for name in hf_unlearn.__all__ if name.endswith(("Trainer", "Config"))}
    assert exported - pairs == {"UnlearningTrainer", "UnlearningConfig", "DataConfig", "SimCLRConfig", "MoCoConfig"}
    assert pairs <= exported


def test_two_methods_of_one_id_are_refused():
    with pytest.raises(TypeError, match="both called fine_tune"):
        type("Other", (UnlearningTrainer,), {"config_class": METHODS["fine_tune"].config_class})
    assert METHODS["fine_tune"].__name__ == "FineTuneTrainer"


@pytest.mark.parametrize("forgotten", ["method", "description"])
def test_a_config_that_does_not_say_what_it_is_is_refused_where_it_is_written(forgotten):
    own = {"method": "amnesia", "description": METHODS["npo"].config_class.description}
    del own[forgotten]
    config = type("AmnesiaConfig", (UnlearningConfig,), own)
    with pytest.raises(UserError, match=rf"^AmnesiaConfig has no {forgotten}, which .*; give the class one, as"):
        type("AmnesiaTrainer", (UnlearningTrainer,), {"config_class": config})
    assert "amnesia" not in METHODS


@pytest.mark.parametrize("name", ["amnesia", "no_such_module:Trainer", "json:Trainer", "json:JSONDecoder"])
def test_an_unknown_method_is_a_sentence(name):
    with pytest.raises(UserError, match=name):
        load_method(name)
