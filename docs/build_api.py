"""Build the API reference from the docstrings, a page a module, into build/docs: `make docs`. A warning is an error."""

import sys
import warnings
from pathlib import Path

import pdoc

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "build" / "docs"
# transformers writes these signatures itself, with annotations that can only be read where it is.
FOREIGN = ("MoCoConfig.__init__", "SimCLRConfig.__init__")


def modules() -> list[str]:
    """Every public module of the package."""
    files = sorted((ROOT / "hf_unlearn").rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]
    return [
        name.removesuffix(".__init__")
        for name in names
        if not name.rpartition(".")[2].startswith("_") or name.endswith("__init__")
    ]


def main() -> None:
    """Write the pages; end with 1 and what was wrong if something could not be documented."""
    pdoc.render.configure(docformat="google", math=True, search=True)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        pdoc.pdoc(*modules(), output_directory=OUTPUT)
    wrong = [
        str(w.message) for w in found if "pdoc" in w.filename and not any(name in str(w.message) for name in FOREIGN)
    ]
    sys.stdout.write(f"{len(list(OUTPUT.rglob('*.html')))} pages in {OUTPUT}\n")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
