"""The model owner's white-box metrics: pure functions of embeddings or scores, each with a frozen result."""

from hf_unlearn.metrics._checks import EmbeddingHealth, check_embeddings, embedding_health
from hf_unlearn.metrics.agreement import Agreement, agreement
from hf_unlearn.metrics.alignment import MatchedCosine, matched_cosine
from hf_unlearn.metrics.attacks import MembershipAttack, roc_auc, tpr_at_fpr
from hf_unlearn.metrics.cka import Cka, linear_cka
from hf_unlearn.metrics.cmia import cmia
from hf_unlearn.metrics.completeness import Completeness, sample_completeness
from hf_unlearn.metrics.emia import Emia, best_threshold, emia, view_alignment
from hf_unlearn.metrics.estimated_gap import (
    EstimatedGap,
    ImageTextEvidence,
    ProbeEvidence,
    ViewEvidence,
    wasserstein,
)
from hf_unlearn.metrics.forgetting_score import ForgettingScore, forgetting_score
from hf_unlearn.metrics.gap import Gap, gap_to_retrain
from hf_unlearn.metrics.klom import Klom, klom
from hf_unlearn.metrics.knn_probe import KnnProbe, knn_probe
from hf_unlearn.metrics.likelihood_ratio import LikelihoodRatioAttack, likelihood_ratio_attack
from hf_unlearn.metrics.linear_probe import LinearProbe, cached_views, linear_probe
from hf_unlearn.metrics.negative_alignment import NegativeAlignment, negative_alignment
from hf_unlearn.metrics.relative_position import (
    NeighbourhoodResidual,
    RelativePosition,
    neighbourhood_residual,
    relative_position,
)
from hf_unlearn.metrics.relearning import Relearning, relearning
from hf_unlearn.metrics.retrieval import Retrieval, retrieval

__all__ = [
    "Agreement",
    "Cka",
    "Completeness",
    "EmbeddingHealth",
    "Emia",
    "EstimatedGap",
    "ForgettingScore",
    "Gap",
    "ImageTextEvidence",
    "Klom",
    "KnnProbe",
    "LikelihoodRatioAttack",
    "LinearProbe",
    "MatchedCosine",
    "MembershipAttack",
    "NegativeAlignment",
    "NeighbourhoodResidual",
    "ProbeEvidence",
    "RelativePosition",
    "Relearning",
    "Retrieval",
    "ViewEvidence",
    "agreement",
    "best_threshold",
    "cached_views",
    "check_embeddings",
    "cmia",
    "embedding_health",
    "emia",
    "forgetting_score",
    "gap_to_retrain",
    "klom",
    "knn_probe",
    "likelihood_ratio_attack",
    "linear_cka",
    "linear_probe",
    "matched_cosine",
    "negative_alignment",
    "neighbourhood_residual",
    "relative_position",
    "relearning",
    "retrieval",
    "roc_auc",
    "sample_completeness",
    "tpr_at_fpr",
    "view_alignment",
    "wasserstein",
]
