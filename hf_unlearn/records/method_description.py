"""What a method says of itself: its file gives it, `unlearning.json` carries it, and the card shows it."""

from dataclasses import dataclass

PAPER_CITATION = """\
@article{wang2024alignment,
  title   = {Alignment Calibration: Machine Unlearning for Contrastive Learning under Auditing},
  author  = {Wang, Yihan and Lu, Yiwei and Zhang, Guojun and Boenisch, Franziska and Dziedzic, Adam and
             Yu, Yaoliang and Gao, Xiao-Shan},
  journal = {arXiv preprint arXiv:2406.03603},
  year    = {2024}
}"""

# What the equations of several methods are made of, as lines of TeX.
RETAIN = r"\mathcal{L}(\mathcal{D}_\text{retain})"
UNLEARN = r"\mathcal{L}(\mathcal{D}_\text{unlearn})"
INFO_NCE = (
    r"\mathcal{L}(\mathcal{D}) = -\mathbb{E}_{(x, y) \sim p^+}\, s(x, y)"
    r" + \mathbb{E}_{x} \log \mathbb{E}_{y} \exp s(x, y)"
)


@dataclass(frozen=True)
class MethodDescription:
    """A method as readers meet it; the method's own file writes it down, once.

    Attributes:
        title: its name in tables and sentences.
        summary: what it does, in one sentence that begins with "It".
        equations: what it minimises, lines of TeX.
        citation: BibTeX of its source.
        caveat: what a reader of its card must know of its figures; none if empty.
    """

    title: str = ""
    summary: str = ""
    equations: tuple[str, ...] = ()
    citation: str = ""
    caveat: str = ""


def bibtex(key: str, title: str, author: str, arxiv: str, year: int) -> str:
    """The BibTeX entry of a paper on arXiv."""
    return f"""\
@article{{{key},
  title   = {{{title}}},
  author  = {{{author}}},
  journal = {{arXiv preprint arXiv:{arxiv}}},
  year    = {{{year}}}
}}"""
