"""How a card names, writes down and cites each method; the methods themselves live in `hf_unlearn.methods`."""

from dataclasses import dataclass

PAPER_CITATION = """\
@article{wang2024alignment,
  title   = {Alignment Calibration: Machine Unlearning for Contrastive Learning under Auditing},
  author  = {Wang, Yihan and Lu, Yiwei and Zhang, Guojun and Boenisch, Franziska and Dziedzic, Adam and
             Yu, Yaoliang and Gao, Xiao-Shan},
  journal = {arXiv preprint arXiv:2406.03603},
  year    = {2024}
}"""


@dataclass(frozen=True)
class MethodDescription:
    """A method as its card presents it: its name, what it does, what it minimises (lines of TeX), and its BibTeX."""

    name: str
    summary: str
    equations: tuple[str, ...]
    citation: str = PAPER_CITATION


_INFO_NCE = (
    r"\mathcal{L}(\mathcal{D}) = -\mathbb{E}_{(x, y) \sim p^+}\, s(x, y)"
    r" + \mathbb{E}_{x} \log \mathbb{E}_{y} \exp s(x, y)"
)
_RETAIN = r"\mathcal{L}(\mathcal{D}_\text{retain})"
_UNLEARN = r"\mathcal{L}(\mathcal{D}_\text{unlearn})"

METHODS = {
    "retrain": MethodDescription(
        "Retrain",
        "It trains from scratch on the retain split alone: the exact answer that other methods are compared with.",
        (_RETAIN, _INFO_NCE),
    ),
    "fine_tune": MethodDescription(
        "Fine-Tune",
        "It trains the base model further, on the retain split alone.",
        (_RETAIN, _INFO_NCE),
    ),
    "gradient_ascent": MethodDescription(
        "Gradient Ascent",
        "It raises the contrastive loss on the unlearn split, for a few steps only.",
        ("-" + _UNLEARN, _INFO_NCE),
    ),
    "neg_grad": MethodDescription(
        "NegGrad",
        "It lowers the contrastive loss on the retain split and raises it on the unlearn split.",
        (f"{_RETAIN} - {_UNLEARN}", _INFO_NCE),
    ),
    "l1_sparsity": MethodDescription(
        "ℓ1-Sparsity",
        "It trains the base model further on the retain split, with an ℓ1 penalty on the weights.",
        (_RETAIN + r" + \lambda \lVert \theta \rVert_1", _INFO_NCE),
    ),
    "alignment_calibration": MethodDescription(
        "Alignment Calibration",
        "It keeps the contrastive loss low on the retain split while it pushes the two halves of unlearn pairs apart "
        "and pulls different unlearn samples together, so that the data owner can see the change.",
        (
            r"\mathcal{L} = \mathcal{L}_\text{retain} + \varepsilon\, \mathcal{L}_\text{unlearn},"
            r" \qquad \varepsilon = |\mathcal{D}_\text{unlearn}| \,/\, |\mathcal{D}_\text{retain}|",
            r"\mathcal{L}_\text{retain} = -\mathbb{E}_{p_r^+}\, s(x, y)"
            r" + \mathbb{E}_{x \sim p_r} \log \mathbb{E}_{y \sim p_d} \exp s(x, y)",
            r"\mathcal{L}_\text{unlearn} = -\alpha\, \mathbb{E}_{p_u^\times}\, s(x, y)"
            r" + \beta\, \mathbb{E}_{p_u^+}\, s(x, y)"
            r" + \gamma\, \mathbb{E}_{x \sim p_u} \log \mathbb{E}_{y \sim p_d} \exp s(x, y)",
        ),
    ),
}


def describe_method(method: str) -> MethodDescription:
    """Look a method up by its id; for an id from outside the library the card gives the name alone."""
    known = METHODS.get(method)
    return known or MethodDescription(method.replace("_", " ").title(), "It is no method of hf_unlearn.", (), "")
