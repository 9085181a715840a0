"""The number of processes changes neither a loss, nor a gradient, nor an evaluation; asserted on real processes."""

import distributed_worker
import pytest
import torch
from distributed_worker import RETAIN, own_process

pytestmark = pytest.mark.slow
PROCESSES = (1, 2, 4)
METHODS = (
    "fine_tune",
    "neg_grad",
    "neg_grad reference",
    "alignment_calibration",
    "targeted_calibration",
    "alignment_calibration reference",
)
CASES = [f"{family} {method}" for family in ("clip", "simclr", "moco") for method in METHODS]
CASES += [f"{family} alignment_calibration lora" for family in ("clip", "simclr")]
# The others go through the same gathering, so that a few combinations will do.
FURTHER = ("clip retrain", "clip gradient_ascent", "clip l1_sparsity", "clip alignment_calibration level")
FURTHER += ("clip npo", "moco npo", "clip scrub", "simclr scrub", "clip task_vector", "clip saliency")
# Four processes differ from two in that parts of a batch have no unlearn rows.
ON_FOUR = (
    *(f"{family} alignment_calibration" for family in ("clip", "simclr", "moco")),
    *(f"clip {method}" for method in ("neg_grad", "neg_grad reference", "targeted_calibration", "scrub", "npo")),
)


@pytest.fixture(scope="session")
def launches(tmp_path_factory):
    """What launches of one, two and four processes computed, by their number."""
    folder = tmp_path_factory.mktemp("launches")
    own_process(distributed_worker.main, folder)
    return {count: torch.load(folder / f"{count}.pt", weights_only=False) for count in PROCESSES}


def assert_same_gradients(gradients, wanted):
    """Relative 1e-5, as a whole and for every parameter; one whose gradient only is rounding is compared as such."""
    norms = {name: gradient.norm() for name, gradient in wanted.items()}
    total = torch.stack(list(norms.values())).norm()
    differences = {name: (gradients[name] - wanted[name]).norm() for name in wanted}
    assert torch.stack(list(differences.values())).norm() <= 1e-5 * total
    for name, norm in norms.items():
        assert differences[name] <= 1e-5 * norm + 1e-7 * total, name


def assert_same_training(ours, wanted):
    # Targeted Calibration multiplies float32's rounding by weights of up to 8,000.
    assert ours["terms"] == pytest.approx(wanted["terms"], rel=3e-5, abs=1e-5)
    assert ours["last_loss"] == pytest.approx(wanted["last_loss"], rel=3e-5, abs=1e-5)
    assert_same_gradients(ours["gradients"], wanted["gradients"])
    for name, buffer in wanted["buffers"].items():  # batch statistics, and MoCo's queue in its order
        torch.testing.assert_close(ours["buffers"][name], buffer, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", PROCESSES)
def test_so_many_processes_took_part(launches, count):
    assert [own["world_size"] for own in launches[count]["ranks"]] == [count] * count


@pytest.mark.parametrize(
    ("case", "count"),
    [*((case, 2) for case in (*CASES, *FURTHER, "siglip alignment_calibration")), *((case, 4) for case in ON_FOUR)],
)
def test_losses_and_gradients_are_those_of_one_process(launches, case, count):
    wanted = launches[1]["training"][case]
    assert any(gradient.abs().max() > 0 for gradient in wanted["gradients"].values())
    assert_same_training(launches[count]["training"][case], wanted)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("method", ["selective_synaptic_dampening", "slug"])
def test_methods_without_steps_edit_the_weights_as_one_process_does(launches, method, count):
    ours, wanted = launches[count]["edits"][method], launches[1]["edits"][method]
    difference = torch.cat([(ours[name] - wanted[name]).flatten() for name in wanted])
    assert difference.norm() <= 1e-3 * torch.cat([value.flatten() for value in wanted.values()]).norm()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", ["whole", "chunks"])
def test_a_batch_of_2048_in_chunks_of_64_equals_the_whole(launches, kind, count):
    assert_same_training(launches[count]["chunked"][kind], launches[1]["chunked"]["whole"])


@pytest.mark.parametrize("count", [2, 4])
def test_evaluations_are_those_of_one_process(launches, count):
    ours, wanted = launches[count]["evaluation"], launches[1]["evaluation"]
    assert ours["metrics"] == wanted["metrics"]  # to the last bit: whole batches are dealt out
    assert (ours["features"] == wanted["features"]).all()
    assert ours["numbers"].tolist() == wanted["numbers"].tolist() == [row // 5 for row in range(47)]
    assert ours["losses"] == pytest.approx(wanted["losses"], rel=1e-5)


@pytest.mark.parametrize("count", PROCESSES)
def test_processes_share_out_an_epoch_and_shuffle_it_anew(launches, count):
    orders = [own["orders"]["epochs"] for own in launches[count]["ranks"]]
    first, second = ([row for own in orders for batch in own[epoch] for row in batch] for epoch in (0, 1))
    assert first != second
    for epoch in (first, second):
        assert set(range(24)) <= set(epoch)  # every retain row
        assert sum(row >= 24 for row in epoch) > 0
    batches = [tuple(batch) for own in orders for batch in own[0]]
    repeated = len(batches) - len(set(batches))
    assert repeated < count  # the last round is filled up from the first
    for foreseen, steps in (own["orders"]["updates"] for own in launches[count]["ranks"]):
        assert foreseen == steps


@pytest.mark.parametrize("count", [2, 4])
def test_processes_draw_different_views(launches, count):
    assert len({own["orders"]["view_seed"] for own in launches[count]["ranks"]}) == count


def test_two_processes_share_a_stream(launches):
    first, second = (own["stream"] for own in launches[2]["ranks"])
    assert (
        first["steps"] == second["steps"] == len(first["pixels"]) == len(second["pixels"]) == -(-RETAIN // 10)
    )  # of 8 rows a process, 3 are unlearn
    assert first["weights"] == second["weights"]
    shares = [{row.numpy().tobytes() for row in torch.cat(own["pixels"])[: RETAIN // 2]} for own in (first, second)]
    assert len(shares[0]) == len(shares[1]) == RETAIN // 2 and not shares[0] & shares[1]
