"""The block-wise log-partition against the dense form, and its memory."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from hf_unlearn.losses import CrossModalTerms, TwoViewTerms, info_nce, log_partition

ROWS, COLUMNS, WIDTH = 7, 11, 5


def parts(seed: int = 0) -> list[torch.Tensor]:
    """Anchors, candidates and a scale, float64 leaves."""
    generator = torch.Generator().manual_seed(seed)
    anchors, candidates = (
        F.normalize(torch.randn(n, WIDTH, generator=generator, dtype=torch.float64), dim=1) for n in (ROWS, COLUMNS)
    )
    return [part.requires_grad_() for part in (anchors, candidates, torch.tensor(9.0, dtype=torch.float64))]


def dense(anchors, candidates, scale, masked=None):
    similarities = scale * anchors @ candidates.T
    if masked is not None:
        left_out = F.one_hot(masked, len(candidates)).bool()
        similarities = similarities.masked_fill(left_out, float("-inf"))
    return similarities.logsumexp(1), similarities.logsumexp(0)


def weighted(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """A different weight for each value, so that a misplaced gradient shows."""
    return sum((torch.arange(1.0, len(v) + 1, dtype=v.dtype) * v).sum() for v in (rows, columns))


# One row a block, blocks that split the rows evenly, unevenly (3 + 3 + 1), and everything at once.
@pytest.mark.parametrize("block_elements", [1, COLUMNS, 2 * COLUMNS, 3 * COLUMNS + 5, 10**6])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("masks", [False, True])
def test_values_and_gradients_equal_the_dense_form(block_elements, both, masks):
    masked = torch.tensor([3, 3, 0, 10, 1, 2, 3]) if masks else None
    ours, wanted = parts(), parts()
    rows, columns = log_partition(*ours, masked=masked, both=both, block_elements=block_elements)
    dense_rows, dense_columns = dense(*wanted, masked)
    if not both:
        assert columns is None
        columns = dense_columns = dense_columns[:0].detach()
    torch.testing.assert_close((rows, columns), (dense_rows, dense_columns), rtol=1e-12, atol=1e-12)
    weighted(rows, columns).backward()
    weighted(dense_rows, dense_columns).backward()
    for our, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(our.grad, other.grad, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("block_elements", [1, 10**6])
def test_gradients_equal_finite_differences(block_elements):
    masked = torch.tensor([3, 3, 0, 10, 1, 2, 3])
    assert torch.autograd.gradcheck(
        lambda *leaves: log_partition(*leaves, masked=masked, both=True, block_elements=block_elements), parts()
    )


def test_rows_and_columns_without_a_candidate_are_minus_infinity_without_nan_gradients():
    anchors, candidates, scale = parts()
    masked = torch.zeros(ROWS, dtype=torch.int64)
    rows, columns = log_partition(anchors, candidates[:1], scale, masked=masked, both=True)  # nothing is left
    assert rows.isneginf().all() and columns.isneginf().all()
    _, columns = log_partition(anchors, candidates, scale, masked=masked, both=True)  # the first column is empty
    assert columns[0].isneginf() and columns[1:].isfinite().all()
    columns.exp().sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in (anchors, candidates, scale))
    assert candidates.grad[0].abs().max() == 0


def test_no_candidates_at_all():
    anchors, candidates, scale = parts()
    rows, columns = log_partition(anchors, candidates[:0], scale, both=True)
    assert rows.isneginf().all() and columns.shape == (0,)


def test_similarities_whose_exponential_overflows():
    anchors, candidates, _ = (part.detach().float().requires_grad_() for part in parts())
    scale = torch.tensor(1000.0, requires_grad=True)
    rows, columns = log_partition(anchors, candidates, scale, both=True, block_elements=2 * COLUMNS)
    torch.testing.assert_close((rows, columns), dense(anchors, candidates, scale))
    weighted(rows, columns).backward()
    assert all(leaf.grad.isfinite().all() for leaf in (anchors, candidates, scale))


@pytest.mark.parametrize("without", range(3), ids=("anchors", "candidates", "scale"))
@pytest.mark.parametrize("block_elements", [3 * COLUMNS, 10**6])
def test_what_needs_no_gradient_gets_none_and_the_rest_its_own(without, block_elements):
    """As where one of two encoders is frozen, and the temperature learns on."""
    leaves, wanted = ([part.detach() if i == without else part for i, part in enumerate(parts())] for _ in range(2))
    weighted(*log_partition(*leaves, both=True, block_elements=block_elements)).backward()
    weighted(*dense(*wanted)).backward()
    for given, expected in zip(leaves, wanted, strict=True):
        assert (given.grad is None) == (expected.grad is None)
        torch.testing.assert_close(given.grad, expected.grad)


def test_stays_in_float32_under_autocast():
    anchors, candidates, scale = (part.detach().float() for part in parts())
    plain = log_partition(anchors, candidates, scale)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(log_partition(anchors, candidates, scale), plain, rtol=0, atol=0)


def dense_cross_modal(x, y, scale):
    logits = scale * F.normalize(x, dim=1) @ F.normalize(y, dim=1).T
    target = torch.arange(len(x))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def dense_two_view(x, y, scale):
    views = F.normalize(torch.cat([x, y]), dim=1)
    logits = (scale * views @ views.T).fill_diagonal_(float("-inf"))
    return F.cross_entropy(logits, (torch.arange(len(views)) + len(x)) % len(views))


@pytest.mark.parametrize(
    ("family", "dense_loss"), [(CrossModalTerms, dense_cross_modal), (TwoViewTerms, dense_two_view)]
)
def test_a_large_batch_equals_the_dense_loss(family, dense_loss):
    n, d = (4096 if family is CrossModalTerms else 2048), 256  # 4,096 x 4,096 similarities
    generator = torch.Generator().manual_seed(0)
    elements = [torch.randn(n, d, generator=generator) for _ in range(2)]
    elements[1] += elements[0]  # aligned, as in training
    results = []
    for loss in (lambda *leaves: info_nce(family(*leaves), torch.ones(n)), dense_loss):
        leaves = [value.clone().requires_grad_() for value in (*elements, torch.tensor(20.0))]
        value = loss(*leaves)
        value.backward()
        results.append([value.detach(), *(leaf.grad for leaf in leaves)])
    for ours, wanted in zip(*results, strict=True):
        assert (ours - wanted).abs().max() <= 1e-4 * wanted.abs().max()


PEAK = """
import torch
from hf_unlearn.losses import CrossModalTerms, TwoViewTerms, info_nce

def status(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field))

def step(family, n):
    x, y = (torch.randn(n, 256).requires_grad_() for _ in range(2))
    x.grad, y.grad = torch.zeros_like(x), torch.zeros_like(y)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # start the peak anew
    before = status("VmRSS")
    loss = info_nce(family(x, y, torch.tensor(14.0, requires_grad=True)), torch.ones(n))
    loss.backward()
    return status("VmHWM") - before

step(CrossModalTerms, 64)
for family, sizes in ((CrossModalTerms, (4096, 8192)), (TwoViewTerms, (2048, 4096))):
    print(*(step(family, n) for n in sizes))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_above_embeddings_and_gradients_is_linear_in_the_batch():
    """Megabytes of a forward and backward pass; the dense matrix of the larger batches alone has 268."""
    # With a fixed threshold, freed tensors go back to the system instead of serving the next measurement.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", PEAK]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    for line in printed.splitlines():
        small, large = map(float, line.split())
        assert large < 100
        assert large < 2 * small + 10  # quadratic growth would be fourfold
