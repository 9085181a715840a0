"""Random batches of every family, in NumPy for the oracle and in torch for the library."""

from dataclasses import dataclass

import loss_oracle
import numpy as np
import torch

from hf_unlearn.losses import ContrastiveTerms, CrossModalTerms, QueueTerms, TwoViewTerms

FAMILIES = {"cross_modal": CrossModalTerms, "two_view": TwoViewTerms, "queue": QueueTerms}
UNLEARN = {
    "several": [False, True, False, True, True, False],
    "two": [True, False, False, False, True, False],
    "one": [False, False, True, False, False, False],
    "none": [False] * 6,
    "all": [True] * 6,
}


@dataclass(frozen=True)
class Batch:
    """Halves that are not yet normalised, an inverse temperature, and for a queue its unit-norm keys."""

    family: str
    x: np.ndarray
    y: np.ndarray
    scale: np.ndarray
    queue: np.ndarray | None

    def leaves(self) -> list[torch.Tensor]:
        """What the library differentiates with respect to."""
        return [torch.tensor(value, dtype=torch.float32, requires_grad=True) for value in (self.x, self.y, self.scale)]

    def terms(self, x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor) -> ContrastiveTerms:
        further = () if self.queue is None else (torch.tensor(self.queue, dtype=torch.float32),)
        return FAMILIES[self.family](x, y, scale, *further)

    def oracle(self, function, *arguments):
        """A function of elements and scale that calls an oracle on normalised elements."""
        return lambda x, y, scale: function(
            self.family, loss_oracle.unit(x), loss_oracle.unit(y), float(scale), *arguments, queue=self.queue
        )


def batch(family: str, seed: int = 0, n: int = 6, d: int = 4, keys: int = 5, scale: float = 7.0) -> Batch:
    rng = np.random.default_rng(seed)
    x, y = (3 * rng.normal(size=(n, d)) for _ in range(2))  # any length: the terms normalise
    queue = loss_oracle.unit(rng.normal(size=(keys, d))) if family == "queue" else None
    return Batch(family, x, y, np.array(scale), queue)


def assert_value_and_gradient(loss_of_terms, drawn: Batch, oracle, tolerance: float = 1e-5) -> None:
    """The loss and its gradient with respect to both elements and the scale equal the oracle's."""
    leaves = drawn.leaves()
    loss = loss_of_terms(drawn.terms(*leaves))
    loss.backward()
    arrays = [array.copy() for array in (drawn.x, drawn.y, drawn.scale)]
    np.testing.assert_allclose(loss.item(), oracle(*arrays), rtol=tolerance, atol=tolerance)
    for leaf, wanted in zip(leaves, loss_oracle.finite_differences(oracle, *arrays), strict=True):
        found = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * max(np.abs(wanted).max(), 0.1))
