"""Membership probe: a linear attack on one half's embeddings alone."""

import numpy as np
import numpy.typing as npt

from hf_unlearn.metrics._checks import check_features
from hf_unlearn.metrics.attacks import roc_auc

Array = npt.NDArray[np.floating]


def membership_probe(members: Array, others: Array, unlearn: Array) -> float:
    """AUC of unlearn samples against others, by a probe that was fitted to tell members from others.

    Logistic regression on standardised embeddings of one element of each pair, such as the text, fitted on the members
    and every second one of the others, and tested on the unlearn samples and the rest of the others. It needs no second
    element, so it sees what an alignment does not.

    Args:
        members: `[m, d]` embeddings of samples that stay.
        others: `[o, d]` embeddings of samples that were never trained on; four or more.
        unlearn: `[u, d]` embeddings of the unlearn samples.

    Returns:
        The AUC, from 0 to 1; one half where unlearn samples look as unseen ones do.

    Raises:
        UserError: There are no samples of a kind, or one is NaN or infinite.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> seen, unseen = rng.normal(1, 1, (200, 4)), rng.normal(-1, 1, (200, 4))
        >>> membership_probe(seen, unseen, rng.normal(1, 1, (50, 4))) > 0.95
        True
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    for name, given in (("members", members), ("others", others), ("unlearn", unlearn)):
        check_features(given, name)
    shown, held_back = others[::2], others[1::2]
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, class_weight="balanced"))
    probe.fit(np.concatenate([members, shown]), np.repeat([1, 0], [len(members), len(shown)]))
    return roc_auc(probe.decision_function(unlearn), probe.decision_function(held_back))
