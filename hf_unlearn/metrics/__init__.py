"""The model owner's white-box metrics: pure functions of embeddings or scores, each with a frozen result."""

from hf_unlearn.metrics._checks import EmbeddingHealth, check_embeddings, embedding_health
from hf_unlearn.metrics.agreement import Agreement, agreement
from hf_unlearn.metrics.alignment import MatchedCosine, matched_cosine
from hf_unlearn.metrics.forgetting_score import ForgettingScore, forgetting_score
from hf_unlearn.metrics.gap import Gap, gap_to_retrain
from hf_unlearn.metrics.negative_alignment import NegativeAlignment, negative_alignment
from hf_unlearn.metrics.retrieval import Retrieval, retrieval

__all__ = [
    "Agreement",
    "EmbeddingHealth",
    "ForgettingScore",
    "Gap",
    "MatchedCosine",
    "NegativeAlignment",
    "Retrieval",
    "agreement",
    "check_embeddings",
    "embedding_health",
    "forgetting_score",
    "gap_to_retrain",
    "matched_cosine",
    "negative_alignment",
    "retrieval",
]
