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
    """A method as its card presents it: its name, one sentence, what it minimises (TeX), and BibTeX for its source."""

    name: str
    summary: str
    equation: str
    citation: str = PAPER_CITATION


_INFO_NCE = (
    r"\mathcal{L}(\mathcal{D}) = -\mathbb{E}_{(x, y) \sim p^+}\, s(x, y)"
    r" + \mathbb{E}_{x} \log \mathbb{E}_{y} \exp s(x, y)"
)

METHODS = {
    "retrain": MethodDescription(
        "Retrain",
        "Trained from scratch on the retain split alone: the exact answer that every other method is compared with.",
        _INFO_NCE + r", \qquad \text{minimised over } \mathcal{D}_\text{retain} \text{ from random weights}",
    ),
    "fine_tune": MethodDescription(
        "Fine-Tune",
        "Trained further on the retain split alone, from the base model's weights.",
        _INFO_NCE + r", \qquad \text{minimised over } \mathcal{D}_\text{retain}",
    ),
    "gradient_ascent": MethodDescription(
        "Gradient Ascent",
        "Trained to raise the contrastive loss on the unlearn split, for a few steps only.",
        r"-\mathcal{L}(\mathcal{D}_\text{unlearn}), \qquad " + _INFO_NCE,
    ),
    "neg_grad": MethodDescription(
        "NegGrad",
        "Trained to lower the contrastive loss on the retain split and to raise it on the unlearn split.",
        r"\mathcal{L}(\mathcal{D}_\text{retain}) - \mathcal{L}(\mathcal{D}_\text{unlearn}), \qquad " + _INFO_NCE,
    ),
    "l1_sparsity": MethodDescription(
        r"ℓ1-Sparsity",
        "Trained further on the retain split with an ℓ1 penalty on the weights.",
        r"\mathcal{L}(\mathcal{D}_\text{retain}) + \lambda \lVert \theta \rVert_1, \qquad " + _INFO_NCE,
    ),
    "alignment_calibration": MethodDescription(
        "Alignment Calibration",
        "Keeps the contrastive loss low on the retain split while it pushes the two halves of unlearn pairs apart and "
        "pulls different unlearn samples together, so that the data owner can see the change.",
        r"""\begin{aligned}
\mathcal{L} &= \mathcal{L}_\text{retain} + \varepsilon\, \mathcal{L}_\text{unlearn},
  \qquad \varepsilon = |\mathcal{D}_\text{unlearn}| \,/\, |\mathcal{D}_\text{retain}| \\
\mathcal{L}_\text{retain} &= -\mathbb{E}_{p_r^+}\, s(x, y)
  + \mathbb{E}_{x \sim p_r} \log \mathbb{E}_{y \sim p_d} \exp s(x, y) \\
\mathcal{L}_\text{unlearn} &= -\alpha\, \mathbb{E}_{p_u^\times}\, s(x, y) + \beta\, \mathbb{E}_{p_u^+}\, s(x, y)
  + \gamma\, \mathbb{E}_{x \sim p_u} \log \mathbb{E}_{y \sim p_d} \exp s(x, y)
\end{aligned}""",
    ),
}


def describe_method(method: str) -> MethodDescription:
    """Look a method up by its id; an id from outside the library gets a card that says only its name."""
    return METHODS.get(method) or MethodDescription(
        method.replace("_", " ").title(), "A method that is not part of hf_unlearn.", "", citation=""
    )
