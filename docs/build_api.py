"""Bring the tables of methods in the pages up to date, and build the API reference into build/docs: `make docs`.

The reference is made of the docstrings, a page a module; a warning is an error.
"""

import importlib
import re
import sys
import warnings
from pathlib import Path

import pdoc

from hf_unlearn.methods import methods_table, needs_table

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "build" / "docs"
TABLES = {"README.md": needs_table, "docs/methods.md": methods_table}
# transformers writes this signature of its configs itself, with annotations that can only be read where it is.
FOREIGN = "Config.__init__. Import of Literal failed"


def refresh_tables() -> None:
    """Write the tables of the method files into the pages that show them."""
    for name, table in TABLES.items():
        page = ROOT / name
        text = page.read_text(encoding="utf-8")
        head = table().splitlines()[0]
        page.write_text(
            re.sub(re.escape(head) + r"\n(?:\|.*\n)+", lambda _, table=table: table(), text), encoding="utf-8"
        )


def modules() -> list[str]:
    """What is to be named so that every module gets a page: a package that names no exports brings its own along."""
    files = [path.relative_to(ROOT).with_suffix("").parts for path in sorted((ROOT / "hf_unlearn").rglob("*.py"))]
    names = [
        ".".join(parts).removesuffix(".__init__")
        for parts in files
        if not parts[-1].startswith("_") or parts[-1] == "__init__"
    ]
    return [n for n in names if "." not in n or hasattr(importlib.import_module(n.rpartition(".")[0]), "__all__")]


def main() -> None:
    """Write the pages; end with 1 and what was wrong if something could not be documented."""
    refresh_tables()
    pdoc.render.configure(docformat="google", math=True, search=True)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        pdoc.pdoc(*modules(), output_directory=OUTPUT)
    wrong = [str(warning.message) for warning in found if "pdoc" in warning.filename]
    wrong = [words for words in wrong if FOREIGN not in words]
    sys.stdout.write(f"{len(list(OUTPUT.rglob('*.html')))} pages in {OUTPUT}\n")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
