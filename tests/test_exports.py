"""What `hf_unlearn` exports: typed for editors and mypy, and imported when first used."""

import os
import subprocess
import sys
from pathlib import Path

import hf_unlearn

ROOT = Path(__file__).parents[1]
SNIPPET = """
from hf_unlearn import AlignmentCalibrationConfig, DataConfig, load_encoder

model, processor = load_encoder("x", revison="main")
config = AlignmentCalibrationConfig(output_dir="x", betta=1.0)
config.alpha = "much"
reveal_type(DataConfig(views="light").max_length)
"""


def test_every_export_is_there():
    for name in hf_unlearn.__all__:
        assert getattr(hf_unlearn, name) is not None
    assert set(dir(hf_unlearn)) == set(hf_unlearn.__all__)


def test_importing_the_package_imports_neither_torch_nor_transformers():
    code = "import sys, hf_unlearn; print({'torch', 'transformers', 'datasets'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stderr


def test_a_misspelt_setting_is_an_error_of_the_type_checker(tmp_path):
    (tmp_path / "snippet.py").write_text(SNIPPET)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        str(ROOT / "pyproject.toml"),
        str(tmp_path / "snippet.py"),
    ]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT, env=environment)
    told = [line for line in done.stdout.splitlines() if "snippet.py:" in line]
    lines = [line.partition("snippet.py:")[2] for line in told if "defined in" not in line]
    assert [line.partition(": ")[0] for line in lines] == ["4", "5", "6", "7"], done.stdout + done.stderr
    assert "revison" in lines[0] and "betta" in lines[1] and "float" in lines[2] and "int | None" in lines[3]
