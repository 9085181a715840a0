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


def _citation(key: str, title: str, author: str, arxiv: str, year: int) -> str:
    return f"""\
@article{{{key},
  title   = {{{title}}},
  author  = {{{author}}},
  journal = {{arXiv preprint arXiv:{arxiv}}},
  year    = {{{year}}}
}}"""


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
    "targeted_calibration": MethodDescription(
        "Targeted Calibration",
        "It brings every sample to the alignment that exact retraining is predicted to give it, and no further: "
        "unlearn samples to those of held-out samples, while retain samples keep at least their own, and their "
        "similarities to each other.",
        (
            rf"{_RETAIN} + w_u\, \mathbb{{E}}_\text{{unlearn}} (c_i - t_i)^2"
            r" + w_r\, \mathbb{E}_\text{retain} \max(0, t_i - c_i)^2 + w_n\, (\bar c_{i \neq j} - n_0)^2"
            r" + w_s\, \mathbb{E}_\text{retain} (c_{ij} - c^0_{ij})^2, \qquad c_{ij} = \cos(x_i, y_j),\; c_i = c_{ii}",
            _INFO_NCE,
        ),
    ),
    "npo": MethodDescription(
        "NPO",
        "It raises the contrastive loss of unlearn samples above the base model's, ever more gently the further it has "
        "risen, and keeps it low on the retain split (Negative Preference Optimization).",
        (
            rf"w\, {_RETAIN} - \frac{{2}}{{\beta}}\, \mathbb{{E}}_\text{{unlearn}}"
            r" \log \sigma\left(-\beta \log \frac{p_\theta}{p_{\theta_0}}\right),"
            r" \qquad p(x, y) = \frac{\exp s(x, y)}{\sum_{y'} \exp s(x, y')}",
            _INFO_NCE,
        ),
        _citation(
            "zhang2024negative",
            "Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning",
            "Zhang, Ruiqi and Lin, Licong and Bai, Yu and Mei, Song",
            "2404.05868",
            2024,
        ),
    ),
    "scrub": MethodDescription(
        "SCRUB",
        "It keeps the model's choices among candidates those of the base model on the retain split, and drives them "
        "away from it on the unlearn split in the first part of the training.",
        (
            r"\alpha\, \mathbb{E}_\text{retain}\, \mathrm{KL}(p_{\theta_0} \,\|\, p_\theta)"
            rf" + \gamma\, {_RETAIN}"
            r" - \mathbb{E}_\text{unlearn}\, \mathrm{KL}(p_{\theta_0} \,\|\, p_\theta),"
            r" \qquad p(y \mid x) \propto \exp s(x, y)",
            _INFO_NCE,
        ),
        _citation(
            "kurmanji2023towards",
            "Towards Unbounded Machine Unlearning",
            "Kurmanji, Meghdad and Triantafillou, Peter and Hayes, Jamie and Triantafillou, Eleni",
            "2302.09880",
            2023,
        ),
    ),
    "task_vector": MethodDescription(
        "Task Vector",
        "It trains copies of the base model further on the unlearn split, and moves the base model the opposite way; "
        "of several copies only those entries count in which all moved the same way (NegMerge).",
        (
            r"\theta = \theta_0 - \lambda\, \frac{1}{n} \sum_k v_k \odot"
            r" \mathbb{1}[\operatorname{sign} v_1 = \dots = \operatorname{sign} v_n],"
            r" \qquad v_k = \arg\min_\theta^{(k)} " + _UNLEARN + r" - \theta_0",
            _INFO_NCE,
        ),
        _citation(
            "ilharco2022editing",
            "Editing Models with Task Arithmetic",
            "Ilharco, Gabriel and Ribeiro, Marco Tulio and Wortsman, Mitchell and Gururangan, Suchin and Schmidt, "
            "Ludwig and Hajishirzi, Hannaneh and Farhadi, Ali",
            "2212.04089",
            2022,
        )
        + "\n"
        + _citation(
            "kim2024negmerge",
            "NegMerge: Sign-Consensual Weight Merging for Machine Unlearning",
            "Kim, Hyo Seo and Han, Dongyoon and Choe, Junsuk",
            "2410.05583",
            2024,
        ),
    ),
    "selective_synaptic_dampening": MethodDescription(
        "SSD",
        "It shrinks, once and without training, the weights that matter far more to the unlearn split than to all "
        "training samples (Selective Synaptic Dampening, in its label-free form).",
        (
            r"\theta_i = \min\left(\lambda\, \frac{I_i(\mathcal{D})}{I_i(\mathcal{D}_\text{unlearn})},\, 1\right)"
            r" \theta_{0,i} \quad \text{where} \quad"
            r" I_i(\mathcal{D}_\text{unlearn}) > \alpha\, I_i(\mathcal{D})",
            r"I_i(\mathcal{D}) = \mathbb{E}_{x \sim \mathcal{D}}"
            r" \left| \partial \lVert f_\theta(x) \rVert_2^2 / \partial \theta_i \right|",
        ),
        _citation(
            "foster2023fast",
            "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening",
            "Foster, Jack and Schoepf, Stefan and Brintrup, Alexandra",
            "2308.07707",
            2023,
        )
        + "\n"
        + _citation(
            "foster2024loss",
            "Loss-Free Machine Unlearning",
            "Foster, Jack and Schoepf, Stefan and Brintrup, Alexandra",
            "2402.19308",
            2024,
        ),
    ),
    "slug": MethodDescription(
        "SLUG",
        "It makes one step on one layer, chosen to matter to the unlearn split and not to the retain split, just long "
        "enough to bring unlearn pairs to the alignment of held-out ones (Single Layer Unlearning Gradient).",
        (
            r"\theta_l = \theta_{0,l} - t\, \nabla_{\theta_l}\, \mathbb{E}_\text{unlearn} \cos(x, y),"
            r" \qquad t : \mathbb{E}_\text{unlearn} \cos(x, y) = \mathbb{E}_\text{held-out} \cos_0(x, y)",
        ),
        _citation(
            "cai2024targeted",
            "Targeted Unlearning with Single Layer Unlearning Gradient",
            "Cai, Zikui and Tan, Yaoteng and Asif, M. Salman",
            "2407.11867",
            2024,
        ),
    ),
}


def describe_method(method: str) -> MethodDescription:
    """Look a method up by its id; for an id from outside the library the card gives the name alone."""
    known = METHODS.get(method)
    return known or MethodDescription(method.replace("_", " ").title(), "It is no method of hf_unlearn.", (), "")
